from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.errors import UnavailableError
from sagastore_server.storage.model import OnConflict
from tests.support.drafts import draft


def _connection(store: SQLiteStorage) -> sqlite3.Connection:
    assert store._connection is not None
    return store._connection


async def test_commits_are_synced(store: SQLiteStorage) -> None:
    """WAL with synchronous=FULL on the writing connection."""
    connection = _connection(store)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


async def test_queued_writes_are_committed_together(store: SQLiteStorage) -> None:
    statements: list[str] = []
    _connection(store).set_trace_callback(statements.append)
    results = await asyncio.gather(*(store.save(draft(f"m-{n}")) for n in range(64)))
    _connection(store).set_trace_callback(None)
    assert len({result.revision for result in results}) == 64
    commits = statements.count("COMMIT")
    assert 1 <= commits <= 8
    assert statements.count("BEGIN IMMEDIATE") == commits


async def test_group_size_is_bounded(store: SQLiteStorage) -> None:
    statements: list[str] = []
    _connection(store).set_trace_callback(statements.append)
    batches = [[draft(f"{batch}-{n}") for n in range(1000)] for batch in range(6)]
    await asyncio.gather(*(store.bulk_save(batch, OnConflict.REPLACE) for batch in batches))
    _connection(store).set_trace_callback(None)
    assert statements.count("COMMIT") >= 3


@pytest.mark.parametrize("count", [128, 129, 999, 1000, 1001, 2300])
async def test_group_stores_every_row_with_terms(count: int, store: SQLiteStorage) -> None:
    written = [draft(f"m-{n:04}", f"number{n}") for n in range(count)]
    result = await store.bulk_save(written, OnConflict.REPLACE)
    assert result.saved == count
    connection = _connection(store)
    numbers = dict(connection.execute("SELECT content, number FROM messages ORDER BY id"))
    assert list(numbers) == [one.content for one in written]
    for word in (written[0], written[count // 2], written[-1]):
        found = connection.execute(
            "SELECT rowid FROM messages_fts WHERE messages_fts MATCH ?", (word.content,)
        )
        assert found.fetchall() == [(numbers[word.content],)]
    indexed = connection.execute(
        "SELECT rowid FROM messages_fts WHERE messages_fts MATCH 'number*'"
    )
    assert {number for (number,) in indexed} == set(numbers.values())


async def test_refused_write_shares_transaction(store: SQLiteStorage) -> None:
    await store.save(draft("taken"))
    statements: list[str] = []
    _connection(store).set_trace_callback(statements.append)
    results = await asyncio.gather(
        *(store.save(draft("taken" if n == 7 else f"m-{n}"), 0) for n in range(32)),
        return_exceptions=True,
    )
    _connection(store).set_trace_callback(None)
    assert sum(isinstance(result, Exception) for result in results) == 1
    assert "ROLLBACK" not in statements
    assert statements.count("COMMIT") <= 6


async def test_rejected_row_does_not_affect_group(store: SQLiteStorage) -> None:
    """Validation rejects such a row; if one passed, only that write must fail."""
    good = [store.save(draft(f"m-{n}")) for n in range(20)]
    bad = store.save(draft("bad", timestamp=2**70))
    results = await asyncio.gather(*good[:10], bad, *good[10:], return_exceptions=True)
    assert [at for at, result in enumerate(results) if isinstance(result, BaseException)] == [10]
    assert len(await store.batch_get([f"m-{n}" for n in range(20)])) == 20
    assert await store.batch_get(["bad"]) == {}
    assert (await store.save(draft("after"))).created


async def test_answered_write_is_committed(store: SQLiteStorage, path: Path) -> None:
    """Another connection, without a shared cache, reads the message at once."""
    with closing(sqlite3.connect(path)) as other:
        for number in range(50):
            result = await store.save(draft("m-1", f"text {number}"))
            row = other.execute("SELECT content, revision FROM messages").fetchone()
            assert row == (f"text {number}", result.revision)


async def test_identical_save_writes_nothing(store: SQLiteStorage, path: Path) -> None:
    await store.save(draft("m-1"))
    log = path.with_name(path.name + "-wal")
    before = log.stat().st_size
    for _ in range(20):
        await store.save(draft("m-1"))
    await store.bulk_save([draft("m-1")], OnConflict.SKIP)
    assert log.stat().st_size == before


async def test_reads_do_not_wait_for_a_write(store: SQLiteStorage, path: Path) -> None:
    await store.save(draft("m-1"))
    _connection(store).execute("BEGIN IMMEDIATE")
    try:
        waiting = asyncio.create_task(store.get("m-1"))
        done, _ = await asyncio.wait([waiting], timeout=30)
        assert done
        assert (await store.health()).healthy
    finally:
        _connection(store).execute("ROLLBACK")


async def test_writes_do_not_wait_for_a_read(store: SQLiteStorage, path: Path) -> None:
    await store.bulk_save([draft(f"m-{n}") for n in range(100)], OnConflict.REPLACE)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM messages").fetchone() == (100,)
        for number in range(20):
            await store.save(draft(f"n-{number}"))
        assert reader.execute("SELECT count(*) FROM messages").fetchone() == (100,)
        reader.execute("COMMIT")
        assert reader.execute("SELECT count(*) FROM messages").fetchone() == (120,)


def _names(path: Path) -> list[str]:
    return sorted(one.name for one in path.parent.iterdir())


async def test_close_leaves_only_database_file(path: Path) -> None:
    store = SQLiteStorage(path)
    await store.open()
    await store.save(draft("m-1"))
    assert "messages.db-wal" in _names(path)
    await store.close()
    assert [name for name in _names(path) if not name.endswith(".lock")] == ["messages.db"]
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_write_to_closed_store_is_refused(path: Path) -> None:
    store = SQLiteStorage(path)
    with pytest.raises(UnavailableError):
        await store.save(draft())
    with pytest.raises(UnavailableError):
        await store.get("m-1")
    assert _names(path) == []
