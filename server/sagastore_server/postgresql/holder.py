"""Address of the holder of a migration: where its other servers forward their calls.

An entry of ``store_state`` instead of a column, so that servers of older versions can use the
database. They do not know the entry and leave it behind when they take the lease. Therefore it
names the session of the lease that it belongs to.
"""

from __future__ import annotations

import asyncio

from sagastore_server.interfaces.forwarding import HolderRecord
from sagastore_server.postgresql.errors import DRIVER_ERRORS, translated, translating
from sagastore_server.postgresql.options import PostgreSQLOptions, display_address
from sagastore_server.postgresql.pool import Connection, Pool
from sagastore_server.postgresql.queries import MIGRATION, QUERIES
from sagastore_server.postgresql.schema import MIGRATES_FROM, version_of
from sagastore_server.postgresql.session import BEGIN_READ
from sagastore_server.storage.errors import UnavailableError
from sagastore_server.storage.phase import Phase

_NAME = "holder_address"
"""Name of the entry; its value is the session and the address, ``HOST:PORT``, with a space."""

_READ_TIMEOUT = 5.0
"""Seconds for one read, in which a lost connection is established again."""


async def announce(connection: Connection, session: str, address: str) -> None:
    """Store the ``address`` of the holder with the lease ``session``, in an open transaction."""
    await connection.execute(QUERIES["set_state"], _NAME, f"{session} {address}")


class HolderReader:
    """Implements `HolderRecords`, over one separate connection."""

    def __init__(self, options: PostgreSQLOptions) -> None:
        """Create a reader; only ``read`` connects."""
        self._pool = Pool(options._replace(pool_min=1, pool_max=1))
        self._is_open = False
        self.place = f"PostgreSQL at {display_address(options.dsn)}"
        """Host and database, without user and password."""

    async def read(self) -> HolderRecord | None:
        """See the contract."""
        try:
            async with asyncio.timeout(_READ_TIMEOUT):
                return await self._read()
        except TimeoutError:
            raise UnavailableError("PostgreSQL does not answer; try again") from None

    async def _read(self) -> HolderRecord | None:
        if not self._is_open:
            try:
                await self._pool.open(logged=False)
            except DRIVER_ERRORS as exc:
                raise translated(exc) from exc
            self._is_open = True
        with translating():
            async with (
                self._pool.connection() as connection,
                self._pool.transaction(connection, BEGIN_READ),
            ):
                return await _record(connection)

    async def close(self) -> None:
        """See the contract."""
        self._is_open = False
        await self._pool.close()


async def _record(connection: Connection) -> HolderRecord | None:
    if await version_of(connection) < MIGRATES_FROM:
        return None
    row = await connection.fetchrow(MIGRATION["holder"], _NAME)
    if row is None:
        return None
    phase, source, session, announced = row
    announcer, _, address = (announced or "").partition(" ")
    # A released lease has no session; its last holder may still be running.
    is_current = session in {"", announcer}
    return HolderRecord(Phase(phase), source, address if is_current else "")
