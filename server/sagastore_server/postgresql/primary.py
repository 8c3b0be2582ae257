"""Primary: which of the PostgreSQL servers of a cluster may be used.

Only the primary is used: a standby refuses writes and may lack the last commits. A promotion begins
a new timeline, so of two servers that both accept writes, the one on the higher timeline is the
primary, and the other one is an old primary that was not stopped. What that one commits is lost,
so it is never used again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import asyncpg

from sagastore_server.config.connection import Address
from sagastore_server.postgresql.session import BEGIN_READ

ROLE = """
SELECT pg_is_in_recovery(), CASE WHEN NOT pg_is_in_recovery()
    THEN pg_walfile_name(pg_current_wal_lsn()) END
"""
"""Returns whether the server is a standby, and the name of the WAL file that a primary writes. It
begins with the timeline in eight hexadecimal digits (PostgreSQL documentation, 9.28.3). The control
file shows a new timeline only after the first checkpoint."""

_ROLE_ALONE = "SELECT pg_is_in_recovery(), NULL"
"""The same for a server without its own WAL files, such as Amazon Aurora, or a role that may not
see them."""

_TIMELINE_DIGITS = 8

_log = logging.getLogger(__name__)


class NotThePrimaryError(ConnectionError):
    """The server is a standby, or an old primary. One line."""


class Role(NamedTuple):
    """Role of a server of PostgreSQL."""

    is_standby: bool
    timeline: int
    """Timeline of a primary; 0: unknown."""


async def role_of(connection: Any) -> Role:
    """Return the role of the server that answers ``connection``, which is in a transaction.

    Raises:
        asyncpg.PostgresError, OSError, ...: See ``errors.DRIVER_ERRORS``.

    """
    await connection.execute("SAVEPOINT role")
    try:
        row = await connection.fetchrow(ROLE)
    except (asyncpg.FeatureNotSupportedError, asyncpg.InsufficientPrivilegeError):
        await connection.execute("ROLLBACK TO SAVEPOINT role")
        row = await connection.fetchrow(_ROLE_ALONE)
    is_standby, file = row
    return Role(is_standby, int(file[:_TIMELINE_DIGITS], 16) if file else 0)


async def asked_role(connection: Any) -> Role:
    """Return the role of the server that answers ``connection``, which is in no transaction.

    Raises:
        asyncpg.PostgresError, OSError, ...: See ``errors.DRIVER_ERRORS``.

    """
    # In a transaction because of poolers, which may assign a server to each.
    await connection.execute(BEGIN_READ)
    role = await role_of(connection)
    await connection.execute("COMMIT")
    return role


class Primary:
    """The primary of one cluster, as far as it is known. Belongs to one event loop."""

    def __init__(self, on_promotion: Callable[[], None]) -> None:
        """Know no primary yet; call ``on_promotion`` when one follows another."""
        self._on_promotion = on_promotion
        self.address: Address | None = None
        """Address of the last primary; None: not known yet."""
        self.timeline = 0
        """Highest timeline of a primary; 0: not known."""

    @property
    def is_known(self) -> bool:
        """Whether a primary was found before."""
        return self.address is not None or self.timeline > 0

    def first(self, addresses: Sequence[Address]) -> list[Address]:
        """Return ``addresses`` with that of the last primary first."""
        return sorted(addresses, key=lambda address: address != self.address)

    def accept(self, address: Address, role: Role) -> None:
        """Record the role of the server at ``address``, which is going to be used.

        Raises:
            NotThePrimaryError: It must not be used.

        """
        if role.is_standby:
            raise NotThePrimaryError("the server of PostgreSQL is a standby")
        if role.timeline and role.timeline < self.timeline:
            raise NotThePrimaryError(
                f"the server of PostgreSQL is an old primary (timeline {role.timeline}, the "
                f"current one is {self.timeline})"
            )
        self.address = address
        if role.timeline > self.timeline:
            is_new, self.timeline = self.timeline > 0, role.timeline
            if is_new:
                _log.warning(
                    "PostgreSQL has a new primary: %s, timeline %d", address, role.timeline
                )
                self._on_promotion()

    def choose(self, found: Sequence[tuple[Address, Role]]) -> None:
        """Record the primary on the highest timeline, of the servers that answered at a start.

        If there is no primary among them, nothing is recorded.
        """
        primaries = [(address, role) for address, role in found if not role.is_standby]
        if not primaries:
            return
        chosen, role = max(primaries, key=lambda one: one[1].timeline)
        self.accept(chosen, role)
        for address, former in primaries:
            if former.timeline < role.timeline:
                _log.warning(
                    "PostgreSQL at %s is an old primary (timeline %d; %s is on %d) and is not "
                    "used; stop it, because other clients may write to it",
                    *(address, former.timeline, chosen, role.timeline),
                )
