"""Counts the work for a thousand messages, which determines the speed on any machine.

The bounds are about twice what was counted when they were written; the counts themselves do
not depend on how quiet a machine is, except for how many writes meet in a group.
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.search.parser import parse_query
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.model import NewMessage, OnConflict
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Criteria, Scan
from tests.benchmarks.counting import Work, count_postgres, count_sqlite
from tests.support.backends import opened
from tests.support.drafts import draft
from tests.support.migrating_service import opened_live, walk_to
from tests.support.postgres import fresh_schema
from tests.support.waiting import until

COUNT = 1000
IN_FLIGHT = 64
TURNS = -(-COUNT // IN_FLIGHT)
"""Rounds in which all permitted calls are sent and then awaited."""

GROUPS = 8 * TURNS
"""Maximum number of groups for a thousand saves: at least eight saves of 64 share a commit.
Measured: two or three groups per round.
"""

PEAK_OF_A_SAVE = 8 * 1024
"""Bytes of Python memory per save in flight; measured: 3,500, mostly terms."""

LEFT_OF_A_SAVE = 200
"""Bytes that remain per save; measured: 60, in bounded caches."""


def drafts(name: str = "m", count: int = COUNT) -> list[NewMessage]:
    return [
        draft(
            f"{name}-{number:05}",
            f"Could you book a table for {number} people near the station, please?",
            tags=("restaurants", f"t{number % 50}"),
            metadata=f'{{"turn": {number}}}',
            session_id=f"s-{number // 20}",
            timestamp=1_700_000_000_000_000 + number,
        )
        for number in range(count)
    ]


async def in_flight(call: Callable[[Any], Awaitable[object]], arguments: Iterable[Any]) -> None:
    """Make calls with bounded concurrency."""
    waiting = list(arguments)
    for start in range(0, len(waiting), IN_FLIGHT):
        await asyncio.gather(*map(call, waiting[start : start + IN_FLIGHT]))


@pytest.fixture
def sqlite_work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return count_sqlite(monkeypatch)


@pytest.fixture
def postgres_work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return count_postgres(monkeypatch)


@pytest.fixture
async def sqlite(sqlite_work: Work, tmp_path: Path) -> AsyncIterator[StorageBackend]:
    store = SQLiteStorage(tmp_path / "messages.db")
    await store.open()
    # FTS5 reads its configuration before the first write of a connection.
    await store.save(draft("first"))
    sqlite_work.reset()
    yield store
    await store.close()


@pytest.fixture
async def postgres(postgres_work: Work) -> AsyncIterator[StorageBackend]:
    async with fresh_schema() as dsn:
        store = PostgreSQLStorage(PostgreSQLOptions(dsn, pool_min=4, pool_max=8))
        await store.open()
        # The background task that analyses stale rows ends after one question.
        await until(lambda: any("interval '1 day'" in one for one in postgres_work.statements))
        postgres_work.reset()
        yield store
        await store.close()


# ------------------------------------------------------------------ SQLite


async def test_saves_on_sqlite_share_commits(sqlite: StorageBackend, sqlite_work: Work) -> None:
    await in_flight(sqlite.save, drafts())
    kinds = sqlite_work.kinds
    assert kinds["COMMIT"] <= GROUPS
    # A group reads stored rows and sessions, writes its rows, their terms and their sessions, and
    # records its counters.
    assert kinds["SELECT"] <= 2 * kinds["COMMIT"]
    assert kinds["INSERT"] <= 4 * kinds["COMMIT"]
    assert sqlite_work.total <= 8 * kinds["COMMIT"]


async def test_commit_on_sqlite_is_synced(sqlite: StorageBackend) -> None:
    writer = sqlite._connection  # type: ignore[attr-defined]
    (synchronous,) = writer.execute("PRAGMA synchronous").fetchone()
    (mode,) = writer.execute("PRAGMA journal_mode").fetchone()
    assert (synchronous, mode) == (2, "wal")


async def test_batch_on_sqlite_is_one_commit(sqlite: StorageBackend, sqlite_work: Work) -> None:
    await sqlite.bulk_save(drafts(), OnConflict.REPLACE)
    # Rows, terms, sessions, and the counters.
    assert sqlite_work.kinds == {"BEGIN": 1, "SELECT": 2, "INSERT": 4, "COMMIT": 1}
    sqlite_work.reset()
    await sqlite.bulk_save(drafts(), OnConflict.REPLACE)
    assert sqlite_work.kinds["INSERT"] == 0


async def test_reads_on_sqlite_take_one_statement(
    sqlite: StorageBackend, sqlite_work: Work
) -> None:
    wanted = drafts()
    await sqlite.bulk_save(wanted, OnConflict.REPLACE)
    await _expect_few(sqlite, sqlite_work, wanted, of_a_get=1, of_a_page=1, of_a_search=4)


# ------------------------------------------------------------------ PostgreSQL


async def test_saves_on_postgres_share_commits(
    postgres: StorageBackend, postgres_work: Work
) -> None:
    await in_flight(postgres.save, drafts())
    commits = postgres_work.kinds["COMMIT"]
    assert commits <= GROUPS
    # Begin, lock and read, insert, verify, sessions, commit, position; and two once, about the
    # types.
    assert postgres_work.total <= 7 * commits + 2


async def test_commit_on_postgres_is_synced(postgres: StorageBackend, postgres_work: Work) -> None:
    await postgres.save(drafts()[0])
    (begin,) = [one for one in postgres_work.statements if one.startswith("BEGIN")]
    assert "set_config('synchronous_commit', 'on', true)" in begin


async def test_batch_on_postgres_is_one_commit_and_one_copy(
    postgres: StorageBackend, postgres_work: Work
) -> None:
    await postgres.bulk_save(drafts(), OnConflict.REPLACE)
    assert postgres_work.kinds["COMMIT"] == 1
    assert postgres_work.kinds["COPY"] == 1
    # Take a block of sequences; begin, lock and read, copy, verify, sessions, commit, position; and
    # two once, about the types.
    assert postgres_work.total <= 8 + 2


async def test_reads_on_postgres_take_one_statement(
    postgres: StorageBackend, postgres_work: Work
) -> None:
    wanted = drafts()
    await postgres.bulk_save(wanted, OnConflict.REPLACE)
    await _expect_few(postgres, postgres_work, wanted, of_a_get=1, of_a_page=1, of_a_search=1)


async def _expect_few(
    store: StorageBackend,
    work: Work,
    wanted: list[NewMessage],
    *,
    of_a_get: int,
    of_a_page: int,
    of_a_search: int,
) -> None:
    work.reset()
    await in_flight(store.get, [one.id for one in wanted])
    assert work.total <= of_a_get * COUNT
    work.reset()
    await store.batch_get([one.id for one in wanted])
    assert work.total <= 1
    work.reset()
    page = await store.list_session("s-7", Scan(newest_first=False, limit=50))
    assert len(page.messages) == 20
    assert work.total <= of_a_page
    work.reset()
    found = await store.search(Criteria(parse_query("table station")), Scan(True, 50))
    assert len(found.messages) == 50
    assert work.total <= of_a_search


# ------------------------------------------------------------------ both


async def test_journal_is_applied_in_batches(
    sqlite_work: Work, postgres_work: Work, tmp_path: Path
) -> None:
    async with fresh_schema() as dsn, opened_live(tmp_path / "messages.db", dsn) as service:
        await walk_to(service.control, Phase.DUAL_WRITE)
        postgres_work.reset()
        sqlite_work.reset()
        await service.backend.bulk_save(drafts(), OnConflict.REPLACE)
        async for status in service.control.watch():
            if not status.journal_rows:
                break
        # A row, its terms and its entry; one statement removes the entries.
        assert sqlite_work.kinds["INSERT"] <= 3 * COUNT + 10
        assert sqlite_work.kinds["DELETE"] <= 3
        assert sqlite_work.kinds["COMMIT"] <= 6
        # Batches of a thousand; the other statements check the lease and stored rows.
        changes = [one for one in postgres_work.statements if "INSERT INTO messages" in one]
        assert 1 <= len(changes) <= 3
        assert postgres_work.kinds["COMMIT"] <= 4
        assert postgres_work.total <= 30


async def test_save_memory_is_bounded_and_released(tmp_path: Path) -> None:
    # Without counting statements, because the counter keeps them.
    async with opened(lambda: SQLiteStorage(tmp_path / "messages.db")) as store:
        await in_flight(store.save, drafts("warm"))
        wanted = drafts()
        gc.collect()
        tracemalloc.start()
        try:
            await in_flight(store.save, wanted)
            _, peak = tracemalloc.get_traced_memory()
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak / IN_FLIGHT < PEAK_OF_A_SAVE, f"{peak / IN_FLIGHT:,.0f} bytes at the peak"
    assert after / COUNT < LEFT_OF_A_SAVE, f"{after / COUNT:,.0f} bytes stay"
