"""Analysis by a newer version after kill -9 of a real server, and in each phase of a migration."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from sagastore import AsyncClient, Message
from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.search.parser import parse_query
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Criteria
from tests.migration.conftest import Place
from tests.postgresql.targets import fetched
from tests.support.backends import opened
from tests.support.drafts import draft, found, save_all
from tests.support.migrating_service import backfilled, live, opened_live, refused, walk_to
from tests.support.reanalysis import (
    FORMER,
    FORMER_TERM,
    Gate,
    analysed,
    set_back_postgresql_analysis,
    set_back_sqlite_analysis,
)
from tests.support.reanalysis_crash import STEP, DyingServer
from tests.support.server_process import ServerProcess
from tests.support.waiting import until

IDS = [f"m-{number:02}" for number in range(len(FORMER))]
COUNT = 5 * STEP
PENDING_IN_SQLITE = """SELECT
    (SELECT value FROM store_state WHERE name = 'reanalysis_upto')
    - (SELECT value FROM store_state WHERE name = 'reanalysis_cursor')"""
PENDING_IN_POSTGRESQL = "SELECT count(*) FROM messages WHERE analysed_3 <> revision"


@pytest.fixture
def gate() -> Iterator[Gate]:
    with pytest.MonkeyPatch.context() as patch:
        yield Gate(patch)


def _storage(place: Place, store: str) -> StorageBackend:
    if store == "sqlite":
        return SQLiteStorage(place.path)
    return PostgreSQLStorage(PostgreSQLOptions(place.dsn, pool_min=1, pool_max=4))


async def _pending(place: Place, store: str) -> int:
    if store == "sqlite":
        with closing(sqlite3.connect(place.path)) as plain:
            count: int = plain.execute(PENDING_IN_SQLITE).fetchone()[0]
            return count
    [(count,)] = await fetched(place.dsn, PENDING_IN_POSTGRESQL)
    return count


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
async def test_reanalysis_continues_after_kill(place: Place, store: str, tmp_path: Path) -> None:
    async with opened(lambda: _storage(place, store)) as backend:
        drafts = [draft(f"m-{n:03}", f"word{n}™", session_id=None) for n in range(COUNT)]
        await save_all(backend, drafts)
    if store == "sqlite":
        set_back_sqlite_analysis(place.path)
    else:
        await set_back_postgresql_analysis(place.dsn)
    dsn = None if store == "sqlite" else place.dsn
    left = COUNT
    for steps in (1, 2):
        dying = DyingServer(place.path, steps, dsn=dsn)
        dying.spawn()
        assert dying.wait() == -signal.SIGKILL
        before, left = left, await _pending(place, store)
        assert 0 < left < before
    server = ServerProcess(place.path, postgres=dsn)
    try:
        server.start()
        async with AsyncClient(server.address) as client:
            changed = Message(id="m-007", provider="p", role="user", content="word7 changed")
            assert not (await client.save(changed)).created
            while await _pending(place, store):
                assert [hit.message.id async for hit in client.search("changed")] == ["m-007"]
            for query, ids in (("word99", ["m-099"]), ("word7", ["m-007"]), (FORMER_TERM, [])):
                assert [hit.message.id async for hit in client.search(query)] == ids
    finally:
        server.close()


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.BACKFILL, Phase.READ_POSTGRES])
async def test_both_stores_are_analysed_in_each_phase(
    place: Place, gate: Gate, phase: Phase
) -> None:
    async with opened_live(place.path, place.dsn) as service:
        drafts = [
            draft(key, content, session_id=None) for key, content in zip(IDS, FORMER, strict=True)
        ]
        await save_all(service.backend, drafts)
        gate.open()
        await walk_to(service.control, phase)
        if phase is not Phase.DUAL_WRITE:
            await backfilled(service.control)
    set_back_sqlite_analysis(place.path)
    await set_back_postgresql_analysis(place.dsn)
    gate.close()
    async with AsyncExitStack() as stack:
        service = live(place.path, place.dsn)
        stack.push_async_callback(service.backend.close)
        await service.backend.open()
        source, target = service._source, service._target
        assert source.reanalysis is not None
        await service.backend.save(draft("m-00", "Changed™", session_id=None))
        await service.backend.save(draft("new", "Fresh™", session_id=None))
        for query, ids in (("changed", ["m-00"]), ("fresh", ["new"]), ("acme", [])):
            assert await found(service.backend, query) == ids
        following = phase.following
        if following in {Phase.READ_POSTGRES, Phase.POSTGRES_ONLY}:
            assert "SEARCH_INDEX_NOT_READY" in await refused(service.control, following)
        gate.open()
        await until(lambda: target.reanalysis is None and source.reanalysis is None)
        for query in ("statement", "mc", "warning", "word2", "changed", FORMER_TERM):
            criteria = Criteria(parse_query(query))
            assert await found(source, criteria) == await found(service.backend, criteria)
        await walk_to(service.control, Phase.POSTGRES_ONLY)
        await analysed(service.backend)
        assert await found(service.backend, "warning") == ["m-04"]
        assert await found(service.backend, FORMER_TERM) == []
