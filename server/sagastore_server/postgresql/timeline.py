"""Timeline: keeps revisions unique when a standby becomes the primary.

A sequence is not replicated number by number, and a standby without synchronous replication may
lack the last transactions. So after a promotion the sequence would give out revisions that callers
have seen before, for other writes. Before the first write on a new timeline, a server therefore
skips more blocks of revisions than can be missing.
"""

from __future__ import annotations

import logging

from sagastore_server.postgresql.connecting import Connection
from sagastore_server.postgresql.pool import Pool
from sagastore_server.postgresql.queries import QUERIES
from sagastore_server.postgresql.session import BEGIN_WRITE

SKIPPED_BLOCKS = 65_536
"""Blocks of 1,024 revisions. A transaction takes one block, or a few if it is large; a standby that
lacks as many transactions is minutes behind. 2^26 revisions of 2^63 are skipped per promotion."""

_NAME = "timeline"
"""Entry of ``store_state``: timeline and system identifier of the server that was last used."""

_IS_PREPARED = "SELECT to_regclass('store_state') IS NOT NULL"

_log = logging.getLogger(__name__)


async def enter(pool: Pool, connection: Connection, timeline: int) -> None:
    """Make sure that no revision of an earlier timeline is given out again.

    Any number of servers may call it at the same time; the first one skips the revisions.

    Args:
        pool: Runs the transaction.
        connection: A connection to the primary.
        timeline: Its timeline; 0, unknown: nothing is done.

    Raises:
        asyncpg.PostgresError, OSError, ...: See ``errors.DRIVER_ERRORS``.

    """
    if not timeline or not await connection.fetchval(_IS_PREPARED):
        return
    # In another cluster, the database has been restored from a dump.
    place = f"{timeline} {connection.system or ''}".rstrip()
    if await connection.fetchval(QUERIES["get_state"], _NAME) == place:
        return
    async with pool.transaction(connection, BEGIN_WRITE):
        if await connection.execute(QUERIES["add_state"], _NAME, place) == "INSERT 0 1":
            return
        before = await connection.fetchval(QUERIES["lock_state"], _NAME)
        if before == place or _is_later(before, place):
            return
        last = await connection.fetchval(QUERIES["skip_blocks"], SKIPPED_BLOCKS)
        await connection.execute(QUERIES["set_state"], _NAME, place)
    _log.warning("PostgreSQL is on timeline %d: revisions continue after %d", timeline, last)


def _is_later(before: str, place: str) -> bool:
    """Whether another server has entered a later timeline of the same cluster meanwhile."""
    number, _, system = before.partition(" ")
    wanted, _, same_system = place.partition(" ")
    return system == same_system and int(number) > int(wanted)
