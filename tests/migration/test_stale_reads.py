"""Reads of READ_POSTGRES that SQLite answers never show what the next read would miss."""

from __future__ import annotations

import asyncio

import pytest

from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.storage.errors import UnavailableError
from sagastore_server.storage.model import Store
from sagastore_server.storage.phase import Phase
from tests.migration.conftest import Place
from tests.migration.held import Held, held
from tests.support.backends import opened
from tests.support.drafts import draft
from tests.support.migrating_service import change, eventually_current, unblocked, walk_to
from tests.support.waiting import until

BOTH = (Store.SQLITE, Store.POSTGRESQL)


async def _in_sqlite_only(one: Held, text: str) -> asyncio.Task[object]:
    """Begin a save that SQLite has, and PostgreSQL gets only later."""
    before = one.source.committed
    one.target.applying.close()
    save = asyncio.create_task(one.backend.save(draft("m", text)))
    await until(lambda: one.source.committed > before)
    return save


async def test_read_routed_to_sqlite_before_the_switch_waits_for_postgresql(place: Place) -> None:
    async with held(place) as one:
        await one.backend.save(draft("m", "one"))
        await walk_to(one.control, Phase.BACKFILL)
        await unblocked(one.control)
        one.source.reads.close()
        early = asyncio.create_task(one.text())
        await one.source.reads.reached.wait()
        await change(one.control, Phase.READ_POSTGRES)
        save = await _in_sqlite_only(one, "two")
        # Its snapshot is taken only now, and shows a write that was not acknowledged.
        one.source.reads.open()
        assert await one.source.batch_get(["m"]) != await one.target.batch_get(["m"])
        for _ in range(3):
            assert await one.text() == "one"
            assert not early.done()
        one.target.applying.open()
        assert await early == "two"
        assert (await save).durable_on == BOTH  # type: ignore[attr-defined]
        assert await one.text() == "two"


async def test_read_that_postgresql_failed_waits_for_postgresql(place: Place) -> None:
    async with held(place) as one:
        await one.backend.save(draft("m", "one"))
        await walk_to(one.control, Phase.READ_POSTGRES)
        await eventually_current(one.control)
        save = await _in_sqlite_only(one, "two")
        one.target.reads_fail = True
        one.source.reads.close()
        failed = asyncio.create_task(one.text())
        await one.source.reads.reached.wait()
        one.target.reads_fail = False
        one.source.reads.open()
        for _ in range(3):
            assert await one.text() == "one"
            assert not failed.done()
        assert one.service._replicator.fallback.current
        one.target.applying.open()
        assert await failed == "two"
        assert (await save).durable_on == BOTH  # type: ignore[attr-defined]


async def test_missing_message_is_reported_only_once_postgresql_misses_it(place: Place) -> None:
    async with held(place) as one:
        await one.backend.save(draft("m", "one"))
        await walk_to(one.control, Phase.READ_POSTGRES)
        await eventually_current(one.control)
        one.target.applying.close()
        before = one.source.committed
        deletion = asyncio.create_task(one.backend.delete("m"))
        await until(lambda: one.source.committed > before)
        one.target.reads_fail = True
        one.source.reads.close()
        failed = asyncio.create_task(one.text())
        await one.source.reads.reached.wait()
        one.target.reads_fail = False
        one.source.reads.open()
        for _ in range(3):
            assert await one.text() == "one"
            assert not failed.done()
        one.target.applying.open()
        assert not await failed
        await deletion


async def test_fallback_releases_waiting_read(place: Place) -> None:
    """From then on every read is answered by SQLite, so none is older."""
    async with held(place) as one:
        await one.backend.save(draft("m", "one"))
        await walk_to(one.control, Phase.READ_POSTGRES)
        await eventually_current(one.control)
        save = await _in_sqlite_only(one, "two")
        one.target.reads_fail = True
        failed = asyncio.create_task(one.text())
        await one.target.applying.reached.wait()
        one.service._replicator.fallback.fall_back("the test says so")
        assert await failed == await one.text() == "two"
        assert (await save).durable_on == (Store.SQLITE,)  # type: ignore[attr-defined]


async def test_sqlite_answers_no_read_once_another_server_may_write(place: Place) -> None:
    """PostgreSQL is the only store, this server does not know it yet, and a forwarder does."""
    async with held(place) as one:
        await one.backend.save(draft("m", "one"))
        await walk_to(one.control, Phase.READ_POSTGRES)
        await eventually_current(one.control)
        await unblocked(one.control)
        one.target.finished.close()
        changing = asyncio.create_task(change(one.control, Phase.POSTGRES_ONLY))
        await one.target.finished.reached.wait()
        options = PostgreSQLOptions(place.dsn, pool_min=1, pool_max=2)
        async with opened(lambda: PostgreSQLStorage(options)) as other:
            await other.save(draft("m", "two"))
        assert await one.text() == "two"
        one.target.reads_fail = True
        with pytest.raises(UnavailableError, match="has not confirmed yet"):
            await one.text()
        one.target.reads_fail = False
        one.target.finished.open()
        await changing
        assert await one.text() == "two"
