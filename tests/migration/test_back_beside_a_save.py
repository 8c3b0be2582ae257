"""A save that is to be on both stores, beside a change back, which empties the journal."""

from __future__ import annotations

import asyncio

import asyncpg

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.model import Store
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import Entry, MigrationState
from tests.migration.conftest import Place
from tests.support.drafts import draft
from tests.support.migrating_service import walk_to

_TURNS = 50
"""Of the event loop: more than it takes to conclude something from what was read."""


class EmptiedUnderItsReader(SQLiteSource):
    """Lets the journal be read just when a change has emptied it, and is not in force yet."""

    def __init__(self, place: Place) -> None:
        super().__init__(place.path)
        self.holding = asyncio.Event()
        self.is_held = asyncio.Event()
        self.emptied = asyncio.Event()
        self.has_read = asyncio.Event()

    async def journal(self, after: int, limit: int) -> list[Entry]:
        if self.holding.is_set():
            self.is_held.set()
            await self.emptied.wait()
        found = await super().journal(after, limit)
        if self.emptied.is_set():
            self.has_read.set()
        return found

    async def set_state(self, state: MigrationState, rejournal_after: int | None = None) -> int:
        last = await super().set_state(state, rejournal_after)
        if self.holding.is_set() and not state.phase.journals:
            self.emptied.set()
            await self.has_read.wait()
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            # Long enough for a look at the file as well.
            await super().state()
            for _ in range(_TURNS):
                await asyncio.sleep(0)
        return last


async def test_replicator_missing_journal_entries_are_not_counted_as_applied(place: Place) -> None:
    """Found by the campaign (seed 8005): the save returned PostgreSQL in ``durable_on``."""
    source = EmptiedUnderItsReader(place)
    options = PostgreSQLOptions(place.dsn, pool_min=1, pool_max=8)
    service = MigratingService(source, PostgreSQLTarget(options))
    try:
        await service.backend.open()
        await walk_to(service.control, Phase.DUAL_WRITE)
        first = await service.backend.save(draft("first"), None, 5.0)
        assert set(first.durable_on) == {Store.SQLITE, Store.POSTGRESQL}
        source.holding.set()
        saving = asyncio.create_task(service.backend.save(draft("second"), None, 5.0))
        await source.is_held.wait()
        await walk_to(service.control, Phase.SQLITE_ONLY)
        said = (await saving).durable_on
    finally:
        source.emptied.set()
        await service.backend.close()
    connection = await asyncpg.connect(place.dsn)
    try:
        there = await connection.fetchval("SELECT count(*) FROM messages WHERE id = 'second'")
    finally:
        await connection.close()
    assert said == (Store.SQLITE,) or there == 1
