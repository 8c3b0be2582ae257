"""Commits that a standby shows before the primary does, which waits for a confirmation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sagastore_server.storage.errors import NotFoundError, UnavailableError
from tests.postgresql.replicated import ANY, ReplicatedStore, at_least, replicated_store
from tests.support.drafts import lone
from tests.support.standby import ReplicatedPostgres, replicated_postgres
from tests.support.waiting import until_async

_WAITS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@asynccontextmanager
async def unconfirmed(
    postgres: ReplicatedPostgres, store: ReplicatedStore, id: str
) -> AsyncIterator[asyncio.Task[object]]:
    """A save whose commit is on the standby, but waits for the confirmation of another one."""
    await postgres.configure(synchronous_standby_names="absent")
    saving: asyncio.Task[object] = asyncio.create_task(store.backend.save(lone(id)))
    try:
        await until_async(lambda: _is(postgres, 1))
        yield saving
    finally:
        await postgres.configure(synchronous_standby_names="")
        await saving


async def _is(postgres: ReplicatedPostgres, count: int) -> bool:
    return bool(await postgres.value(_WAITS) == count)


async def _shows(store: ReplicatedStore, id: str) -> bool:
    try:
        await store.content(id, ANY)
    except NotFoundError:
        return False
    return True


async def test_primary_does_not_lack_what_a_replica_has_shown() -> None:
    with replicated_postgres() as postgres:
        await postgres.start()
        await postgres.configure(synchronous_standby_names="")
        async with replicated_store(postgres) as store:
            await store.until("")
            async with unconfirmed(postgres, store, "one"):
                await until_async(lambda: _shows(store, "one"))
                _, position = await store.content("one", ANY)
                before = store.counted.reads["primary/at_least"]
                with postgres.standby.frozen():
                    with pytest.raises(UnavailableError, match="waits for the confirmation"):
                        await store.content("one", at_least(position))
                    # The latest state is what was acknowledged.
                    with pytest.raises(NotFoundError):
                        await store.content("one")
            with postgres.standby.frozen():
                assert (await store.content("one", at_least(position)))[0] == lone("one").content
            assert store.counted.reads["primary/at_least"] == before + 1
