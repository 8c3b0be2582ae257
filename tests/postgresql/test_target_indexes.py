"""Late indexes, which are built after the rows are copied."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from sagastore_server.postgresql.indexes import LATE, IndexProgress
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.replication import BackfillMark, IndexState
from tests.postgresql.targets import claimed, fetched, opened_plain, until_one_waits
from tests.support.migration_values import LEASE, message, saved
from tests.support.postgres import fresh_schema

NAMES = [
    "idx_messages_session",
    "idx_messages_timestamp",
    "idx_messages_tags",
    "idx_messages_metadata",
    "idx_messages_content_fts",
    "idx_messages_sequence",
]


def _ignore(share: float) -> None:
    """Ignore the progress."""


async def _definitions(dsn: str) -> set[str]:
    """Return the definitions of all indexes, without the schema's name."""
    rows = await fetched(
        dsn,
        "SELECT replace(indexdef, schemaname || '.', '') FROM pg_indexes "
        "WHERE schemaname = current_schema()",
    )
    return {row[0] for row in rows}


async def _some_rows(replica: PostgreSQLTarget) -> None:
    mark = BackfillMark(BackfillState.RUNNING)
    rows = [message(f"m-{n:04}", n + 1, f"word{n}") for n in range(1000)]
    await replica.copy(LEASE, rows, mark)


@pytest.mark.parametrize("cache", [100, 0])
async def test_late_indexes_match_schema(dsn: str, cache: int) -> None:
    async with fresh_schema() as other, opened_plain(other):
        expected = await _definitions(other)
    async with claimed(dsn, statement_cache=cache) as replica:
        await _some_rows(replica)
        assert await _definitions(dsn) != expected
        for number, name in enumerate(NAMES):
            shares: list[float] = []
            await replica.build_index(name, shares.append)
            assert shares == sorted(shares)
            assert shares[-1] == 1.0
            valid = [one.valid for one in await replica.indexes()]
            assert valid == [True] * (number + 1) + [False] * (5 - number)
        await replica.refresh_statistics()
        assert await _definitions(dsn) == expected
        assert [one.name for one in await replica.indexes()] == NAMES == list(LATE)
        analysed = "SELECT reltuples::int FROM pg_class WHERE oid = 'messages'::regclass"
        assert await fetched(dsn, analysed) == [(1000,)]


async def test_existing_index_is_not_rebuilt(dsn: str) -> None:
    async with claimed(dsn) as replica:
        await replica.build_index(NAMES[0], _ignore)
        before = await fetched(dsn, "SELECT 'idx_messages_session'::regclass::oid")
        await replica.build_index(NAMES[0], _ignore)
        assert await fetched(dsn, "SELECT 'idx_messages_session'::regclass::oid") == before


async def test_index_of_cancelled_build_is_rebuilt(dsn: str) -> None:
    """The build waits for an open write transaction; other writes continue."""
    async with claimed(dsn) as replica:
        await _some_rows(replica)
        writer = await _open_transaction(dsn)
        try:
            build = asyncio.create_task(replica.build_index(NAMES[4], _ignore))
            await until_one_waits(dsn)
            await replica.apply(LEASE, [saved(message("m-new", 5000))])
            build.cancel()
            await asyncio.wait([build])
            assert build.cancelled()
        finally:
            await writer.close()
        left = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)"
        assert await fetched(dsn, left, NAMES[4]) == [(False,)]
        assert IndexState(NAMES[4], False) in await replica.indexes()
        await replica.build_index(NAMES[4], _ignore)
        assert IndexState(NAMES[4], True) in await replica.indexes()


async def test_build_of_dead_server_is_awaited(dsn: str) -> None:
    async with claimed(dsn) as replica:
        await _some_rows(replica)
        writer = await _open_transaction(dsn)
        former = await asyncpg.connect(dsn)
        try:
            sql = f"CREATE INDEX CONCURRENTLY {NAMES[1]} {LATE[NAMES[1]]}"
            left = asyncio.create_task(former.execute(sql))
            await until_one_waits(dsn)
            ((number,),) = await fetched(dsn, f"SELECT '{NAMES[1]}'::regclass::oid")
            shares: list[float] = []
            heard = asyncio.Event()

            def hear(share: float) -> None:
                shares.append(share)
                heard.set()

            build = asyncio.create_task(replica.build_index(NAMES[1], hear))
            await heard.wait()
            assert not build.done()
        finally:
            await writer.close()
        await asyncio.gather(left, build)
        await former.close()
        assert await fetched(dsn, f"SELECT '{NAMES[1]}'::regclass::oid") == [(number,)]
        assert IndexState(NAMES[1], True) in await replica.indexes()


async def _open_transaction(dsn: str) -> Any:
    """Open a transaction that a concurrent build waits for."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"BEGIN; SET LOCAL sagastore.session = '{LEASE.session}'")
    await connection.execute("DELETE FROM messages WHERE id = 'nobody'")
    return connection


@pytest.mark.parametrize(
    ("progress", "share"),
    [
        (IndexProgress("initializing", 0, 0, 0, 0), 0.0),
        (IndexProgress("waiting for writers before build", 0, 0, 0, 0), 0.0),
        (IndexProgress("building index", 5, 10, 0, 0), 0.35),
        (IndexProgress("building index: scanning table", 5, 10, 0, 0), 0.2),
        (IndexProgress("building index: loading tuples in tree", 0, 0, 5, 10), 0.55),
        (IndexProgress("index validation: scanning table", 20, 10, 0, 0), 1.0),
        (IndexProgress("waiting for old snapshots", 0, 0, 0, 0), 1.0),
        (IndexProgress(None, None, None, None, None), 0.0),
    ],
)
def test_build_progress_is_a_share(progress: IndexProgress, share: float) -> None:
    assert progress.share == pytest.approx(share)
