"""Positions across a promotion, and on the standby that they are meant for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from sagastore_server.interfaces.consistency import WalPosition
from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.storage.errors import NotFoundError, UnavailableError
from tests.support.backends import opened
from tests.support.calls import as_call, at_least
from tests.support.drafts import lone
from tests.support.standby import NAME, ReplicatedPostgres, replicated_postgres
from tests.support.waiting import until_async


@pytest.fixture
async def postgres() -> AsyncIterator[ReplicatedPostgres]:
    with replicated_postgres() as both:
        await both.start()
        # Nothing that a position promises may depend on the confirmation of the standby.
        await both.configure(synchronous_standby_names="")
        yield both


def store(dsn: str) -> PostgreSQLStorage:
    return PostgreSQLStorage(PostgreSQLOptions(dsn, pool_min=1, pool_max=4))


async def saved(backend: PostgreSQLStorage, id: str) -> WalPosition:
    """Save a message, and return the position of the write."""
    position = (await as_call(partial(backend.save, lone(id)))).position
    assert position is not None
    return position


async def test_standby_that_has_replayed_a_position_has_the_write(
    postgres: ReplicatedPostgres,
) -> None:
    async with opened(partial(store, postgres.dsn)) as backend:
        assert isinstance(backend, PostgreSQLStorage)
        ids = [f"m-{number}" for number in range(16)]

        async def seen_on_standby(id: str) -> None:
            position = await saved(backend, id)
            replayed = f"pg_last_wal_replay_lsn() - '0/0' >= {position.lsn}"
            await until_async(lambda: postgres.value(f"SELECT {replayed}", standby=True))
            row = f"SELECT count(*) FROM messages WHERE id = '{id}'"
            assert await postgres.value(row, standby=True) == 1

        for start in range(0, len(ids), 8):
            await asyncio.gather(*map(seen_on_standby, ids[start : start + 8]))


async def test_position_of_a_write_is_read_after_its_commit(postgres: ReplicatedPostgres) -> None:
    """COMMIT waits for the standby when its record is flushed already."""
    await postgres.configure(synchronous_standby_names=NAME)
    await postgres.until_synchronous()
    waits = "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    async with opened(partial(store, postgres.primary.dsn)) as backend:
        assert isinstance(backend, PostgreSQLStorage)
        async with postgres.frozen_standby():
            saving = asyncio.create_task(saved(backend, "m-1"))
            await until_async(lambda: postgres.value(waits))
            flushed = await postgres.value("SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint")
        assert (await saving).lsn >= flushed


async def test_positions_across_a_promotion(postgres: ReplicatedPostgres) -> None:
    """The old primary runs on, and does not know that it is not the primary any more."""
    async with (
        opened(partial(store, postgres.primary.dsn)) as former,
        opened(partial(store, postgres.dsn)) as both,
    ):
        assert isinstance(former, PostgreSQLStorage)
        assert isinstance(both, PostgreSQLStorage)
        before = await saved(former, "before")
        for replayed in ("to_regclass('messages') IS NOT NULL", "count(*) = 1 FROM messages"):
            await until_async(partial(postgres.value, f"SELECT {replayed}", standby=True))
        # Without it, only the position shows that there is a later timeline.
        assert both._watcher is not None
        await both._watcher.close()
        await asyncio.to_thread(postgres.standby.promote)
        async with opened(partial(store, postgres.standby.dsn)) as promoted:
            assert isinstance(promoted, PostgreSQLStorage)
            after = await saved(promoted, "after")
            assert after.system == before.system
            assert after.timeline > before.timeline
            # What the promotion has lost cannot be required: the new primary is the latest state.
            for position in (before, before._replace(lsn=after.lsn + (1 << 40))):
                await as_call(partial(promoted.get, "before"), at_least(position))
        found = await as_call(partial(both.get, "after"), at_least(after))
        assert found.position is not None
        assert found.position.timeline == after.timeline
        # It has only the old primary, whose answer would be that there is no such message.
        with pytest.raises(NotFoundError):
            await as_call(partial(former.get, "after"))
        with pytest.raises(UnavailableError, match=f"of timeline {after.timeline} of PostgreSQL"):
            await as_call(partial(former.get, "after"), at_least(after))
