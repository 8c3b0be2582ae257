"""Read replicas: real standbys of PostgreSQL answer reads, and never an older state than promised."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.postgresql.replicated import ANY, at_least, replicated_store
from tests.support.standby import ReplicatedPostgres, replicated_postgres


@pytest.fixture(scope="module")
def postgres() -> Iterator[ReplicatedPostgres]:
    with replicated_postgres() as both:
        asyncio.run(both.start())
        yield both


@pytest.mark.parametrize("cache", [100, 0], ids=["session", "pgbouncer"])
async def test_replica_answers(postgres: ReplicatedPostgres, cache: int) -> None:
    async with replicated_store(postgres, statement_cache=cache, replica_wait=30) as store:
        await store.until("")
        position = await store.save(f"one-{cache}", "first")
        content, seen = await store.content(f"one-{cache}", at_least(position))
        assert content == "first"
        assert seen is not None and seen >= position
        assert store.counted.reads == {"1/at_least": 1}
        assert not store.counted.fallbacks
        await store.content(f"one-{cache}", ANY)
        await store.content(f"one-{cache}")
        assert store.counted.reads == {"1/at_least": 1, "1/any_replica": 1, "primary/latest": 1}
