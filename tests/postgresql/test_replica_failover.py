"""Read replicas while the roles of the servers change: promotion, and a new timeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sagastore_server.interfaces.consistency import WalPosition
from sagastore_server.storage.errors import UnavailableError
from tests.postgresql.replicated import (
    ANY,
    ReplicatedStore,
    another_server,
    at_least,
    replicated_store,
)
from tests.support.standby import ReplicatedPostgres, replicated_postgres
from tests.support.waiting import WITHIN, until_async


@pytest.fixture
async def postgres() -> AsyncIterator[ReplicatedPostgres]:
    with replicated_postgres() as both:
        await both.start()
        yield both


async def saved(store: ReplicatedStore, id: str, content: str) -> WalPosition:
    """Save as a client does, which repeats a call that failed because a store was unavailable."""
    while True:
        try:
            return await store.save(id, content)
        except UnavailableError:
            await asyncio.sleep(0.05)


async def read(store: ReplicatedStore, id: str, position: WalPosition) -> str:
    while True:
        try:
            content, seen = await store.content(id, at_least(position))
        except UnavailableError:
            await asyncio.sleep(0.05)
            continue
        assert seen is not None
        assert seen >= position
        return content


async def test_positions_of_the_former_timeline(postgres: ReplicatedPostgres) -> None:
    """The setting names all servers, whose roles change."""
    with another_server() as third:
        nodes = (postgres.primary.dsn, postgres.standby.dsn, third.dsn)
        async with (
            asyncio.timeout(WITHIN),
            replicated_store(postgres, dsn=postgres.dsn, replicas=nodes) as store,
        ):
            await store.until("PRIMARY", "", "UNREACHABLE")
            first = await store.save("failover", "first")
            assert await read(store, "failover", first) == "first"

            postgres.primary.kill9()
            await asyncio.to_thread(postgres.standby.promote)
            assert await read(store, "failover", first) == "first"
            second = await saved(store, "failover", "second")
            assert second.timeline == first.timeline + 1
            # The connections to it were opened while it was a standby.
            assert await read(store, "failover", first) == "second"
            await store.until("UNREACHABLE", "PRIMARY", "UNREACHABLE")

            await asyncio.to_thread(third.follow, postgres.standby, "third", WITHIN)
            await asyncio.to_thread(third.start)
            await store.until("UNREACHABLE", "PRIMARY", "")
            await until_async(lambda: store.has_replayed(second, 3))
            store.counted.reads.clear()
            # Of the first timeline, and beyond the end that the failover has left of it.
            lost = first._replace(lsn=first.lsn + 2**30)
            for position in (first, lost, second):
                content, seen = await store.content("failover", at_least(position))
                assert content == "second"
                assert seen is not None
                assert seen.timeline == second.timeline
            assert store.counted.reads == {"3/at_least": 3}


async def test_replica_that_was_promoted_by_mistake(postgres: ReplicatedPostgres) -> None:
    """Both accept writes; only one is the primary."""
    await postgres.configure(synchronous_standby_names="")
    async with asyncio.timeout(WITHIN), replicated_store(postgres) as store:
        await store.until("")
        position = await store.save("split", "first")
        await until_async(lambda: store.has_replayed(position))
        assert (await store.content("split", ANY))[0] == "first"
        await asyncio.to_thread(postgres.standby.promote)
        position = await store.save("split", "second")
        for need in (at_least(position), ANY):
            assert (await store.content("split", need))[0] == "second"
        await store.until("NO_STANDBY")
        assert "stop it" in store.replicas[0].detail
