"""Commit of a transaction, with the confirmation of PostgreSQL's synchronous replication.

``COMMIT`` first writes the transaction to the disk of the primary and then waits for the
synchronous standbys, if there are any. If that wait is cancelled, by an administrator or a cancel
request, PostgreSQL reports success with a warning: the transaction is visible, and a failover may
lose it. Such a write must not be acknowledged. ``statement_timeout`` does not apply to the wait.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import asyncpg

from sagastore_server.postgresql.queries import QUERIES
from sagastore_server.storage.errors import NotReplicatedError, UnavailableError

_CANCELLED_IN = "SyncRepWaitForLSN"
"""Function of PostgreSQL that sends the warning (backend/replication/syncrep.c, since 9.1). The
text of the warning depends on the language of the server, and it is sent only if
``client_min_messages`` lets it pass (``session``)."""

_OUTCOME_UNKNOWN = (
    "PostgreSQL has committed the write, but its standby has not confirmed it, so a failover may "
    "lose it; repeat the write with the same id, or read it once the standby is back"
)

_NOT_REPLICATED, _UNVERIFIABLE = "SG002", "SG003"
"""SQLSTATE of a commit that ``require_standby`` of queries.sql refuses."""

_REFUSED = {
    _NOT_REPLICATED: (
        "no synchronous standby of PostgreSQL receives changes, and postgres_require_sync is set, "
        "so the write was refused; start a standby that synchronous_standby_names includes"
    ),
    _UNVERIFIABLE: (
        "this role of PostgreSQL cannot see whether a synchronous standby receives changes, and "
        "postgres_require_sync is set, so the write was refused; GRANT pg_read_all_stats to it"
    ),
}

_STANDBY_RETURNS_WITHIN = 5.0
"""Seconds after the first refusal in which clients may repeat a write. After a failover or a
restart of the primary, the standbys take up to three seconds to connect (measured with Patroni,
docs/how-to/patroni.md)."""

_RETRY_AFTER = 0.2
"""Seconds after which a refused write may be repeated."""


class Commits:
    """The commits of one pool."""

    def __init__(
        self, *, requires_standby: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Count commits.

        Args:
            requires_standby: Whether a write is refused unless a synchronous standby streams.
            clock: Seconds.

        """
        self._requires_standby = requires_standby
        self._clock = clock
        self._began: dict[object, float] = {}
        self.unconfirmed = 0
        """Commits whose wait for a standby was cancelled, since the start."""
        self.is_refused = False
        """Whether the latest write was refused because no synchronous standby streams."""
        self._refused_at: float | None = None
        """When refusals began that no confirmed write has ended; None before the first confirmed
        write: a standby that never streamed does not return."""

    @property
    def longest_seconds(self) -> float:
        """How long the oldest commit in progress has lasted; 0 without one."""
        began = min(self._began.values(), default=None)
        return 0.0 if began is None else max(0.0, self._clock() - began)

    async def commit(self, connection: Any) -> None:
        """Commit, whether or not a standby streams.

        Raises:
            UnavailableError: The standby has not confirmed it; the outcome is unknown.
            asyncpg.PostgresError, OSError, ...: See ``errors.DRIVER_ERRORS``.

        """
        await self._commit(connection, "COMMIT")

    async def commit_write(self, connection: Any, then: str = "") -> None:
        """Commit rows that are then acknowledged; as `commit`, but may require a standby.

        ``then`` are statements to send in one message with it, with a leading semicolon.

        Raises:
            NotReplicatedError: No synchronous standby streams, or that cannot be seen; nothing
                was committed, and the transaction must be rolled back.
            UnavailableError, asyncpg.PostgresError, OSError, ...: As `commit`.

        """
        if not self._requires_standby:
            await self._commit(connection, f"COMMIT{then}")
            return
        try:
            await self._commit(connection, f"{QUERIES['require_standby']}; COMMIT{then}")
        except asyncpg.PostgresError as exc:
            refusal = self._refusal(exc.sqlstate)
            self.is_refused = refusal is not None
            if refusal is None:
                raise
            raise refusal from exc
        self.is_refused = False
        self._refused_at = math.inf

    def _refusal(self, sqlstate: str) -> NotReplicatedError | None:
        if sqlstate not in _REFUSED:
            return None
        retry_after = None
        if sqlstate == _NOT_REPLICATED and self._refused_at is not None:
            now = self._clock()
            self._refused_at = min(self._refused_at, now)
            if now - self._refused_at < _STANDBY_RETURNS_WITHIN:
                retry_after = _RETRY_AFTER
        return NotReplicatedError(_REFUSED[sqlstate], retry_after)

    async def _commit(self, connection: Any, statement: str) -> None:
        warnings: list[str | None] = []

        def note(_: Any, message: Any) -> None:
            warnings.append(message.server_source_function)

        commit = object()
        self._began[commit] = self._clock()
        connection.add_log_listener(note)
        try:
            # asyncpg calls the listener before this returns: in the order of the messages.
            await connection.execute(statement)
        finally:
            del self._began[commit]
            # A lost connection has no listeners, and refuses every call.
            with contextlib.suppress(asyncpg.InterfaceError):
                connection.remove_log_listener(note)
        if _CANCELLED_IN in warnings:
            self.unconfirmed += 1
            raise UnavailableError(_OUTCOME_UNKNOWN)
