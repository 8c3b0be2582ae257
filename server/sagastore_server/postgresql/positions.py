"""Positions: where in the write-ahead log (WAL) of PostgreSQL a commit or a read is.

A position names the cluster (system identifier), its timeline and a byte in the log (LSN). It is
the flushed LSN of the primary, which is known to include:

* after COMMIT, the transaction: COMMIT returns once its record is flushed, because
  ``synchronous_commit`` is never off (``begin`` in queries.sql);
* within a statement, everything that its snapshot sees, for the same reason: the snapshot is taken
  before the functions of the statement run.

The inserted LSN would include it too, but also what a crash of PostgreSQL loses: callers would then
hold positions that the primary does not reach for a while. Timeline and LSN come from one
statement, because a pooler may change the server behind a connection.

A server without these functions (Amazon Aurora), or a role that may not run them, tells no
positions.
"""

from __future__ import annotations

import logging
from typing import Any

import asyncpg

from sagastore_server.interfaces.consistency import WalPosition
from sagastore_server.postgresql.connecting import Connection
from sagastore_server.postgresql.errors import DRIVER_ERRORS

_TIMELINE_DIGITS = 8
_PLACE = (
    "SELECT left(pg_walfile_name(lsn), 8) || lsn::text AS place "
    "FROM pg_current_wal_flush_lsn() AS lsn"
)
"""Timeline, which begins the name of a WAL file, in eight hexadecimal digits, then the LSN. One
column of text is the cheapest form: it is repeated in each row of an answer."""

_SYSTEM = "SELECT system_identifier FROM pg_control_system()"
_UINT64 = (1 << 64) - 1

_log = logging.getLogger(__name__)


class Commit:
    """A committed transaction."""

    position: WalPosition | None = None
    """A position that includes it; None: not committed yet, or not told."""


async def examine(connection: Connection) -> None:
    """Find out which cluster a connection leads to, and whether its server tells positions.

    The connection is in a transaction.

    Raises:
        asyncpg.PostgresError, OSError, ...: See ``errors.DRIVER_ERRORS``.

    """
    system = await _told(connection, _SYSTEM)
    if system is not None:
        # PostgreSQL shows the unsigned number as a signed one.
        connection.system = system & _UINT64
        connection.tells_positions = await _told(connection, _PLACE) is not None


async def _told(connection: Connection, statement: str) -> Any:
    """Return the value of a statement, or None if the server or the role does not allow it."""
    await connection.execute("SAVEPOINT told")
    try:
        return await connection.fetchval(statement)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.FeatureNotSupportedError):
        await connection.execute("ROLLBACK TO SAVEPOINT told")
        return None


def telling_system(connection: Connection) -> int:
    """Return the cluster of a connection whose server tells positions; 0: it tells none.

    It is also 0 if the connection has ended, which the next statement reports.
    """
    return connection.system if getattr(connection, "tells_positions", False) else 0


def located(sql: str) -> str:
    """Return a read-only statement with the position of its answer as an additional last column.

    Without rows, it yields one row, whose other columns are NULL. The first column of ``sql`` must
    not be NULL otherwise. The order of its rows is kept: an outer join without a condition can
    only be a nested loop. ``OFFSET 0`` makes PostgreSQL read the position once, not for each row.
    """
    # Safe to join: the statements are constants of this package.
    return (
        f"SELECT answer.*, here.place FROM ({_PLACE} OFFSET 0) AS here "  # noqa: S608
        f"LEFT JOIN (\n{sql}\n) AS answer ON true"
    )


def position_of(system: int, place: str) -> WalPosition:
    """Return the position for the additional column of ``located``."""
    high, _, low = place[_TIMELINE_DIGITS:].partition("/")
    lsn = int(high, 16) << 32 | int(low, 16)
    return WalPosition(system, int(place[:_TIMELINE_DIGITS], 16), lsn)


async def committed_at(connection: Connection) -> WalPosition | None:
    """Return a position that includes the last commit of a connection; None if it is not told.

    Never raises an error of the driver: the commit must be acknowledged, although its position is
    then unknown.
    """
    system = telling_system(connection)
    if not system:
        return None
    try:
        place: str = await connection.fetchval(_PLACE)
    except DRIVER_ERRORS as exc:
        _log.debug("the position of a commit is unknown: %s", type(exc).__name__)
        return None
    return position_of(system, place)
