"""Write-ahead log: truncated despite readers, which survive the truncation."""

from __future__ import annotations

import asyncio
import logging
import resource
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from sagastore_server.runtime.supervisor import Supervisor
from sagastore_server.search.parser import parse_query
from sagastore_server.sqlite import checkpoint, connection
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.wal_file import NO_LOG, read_log
from sagastore_server.storage.model import OnConflict
from sagastore_server.storage.query import Criteria, Scan
from tests.support.drafts import draft, found
from tests.support.waiting import until

MIB = 1 << 20


@pytest.fixture
async def small(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SQLiteStorage]:
    """Open a store with a low threshold for a large log."""
    monkeypatch.setattr(checkpoint, "PASSIVE_BYTES", 256 * 1024)
    monkeypatch.setattr(checkpoint, "LARGE_BYTES", 2 * MIB)
    monkeypatch.setattr(connection, "LOG_BYTES", 2 * MIB)
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.01)
    monkeypatch.setattr(checkpoint, "PATIENCE", 0.5)
    monkeypatch.setattr(checkpoint, "PAUSE", 0.1)
    store = SQLiteStorage(path)
    await store.open()
    yield store
    await store.close()


def _size(path: Path) -> int:
    return path.stat().st_size


def _log_size(path: Path) -> int:
    return _size(path.with_name(path.name + "-wal"))


def _in_use(store: SQLiteStorage) -> int:
    (load,) = store.loads()
    return load.log_bytes


async def _write(store: SQLiteStorage, number: int) -> None:
    """Write about 0.5 MiB."""
    text = "words and more words " * 250
    drafts = [draft(f"{number}-{n}", f"{text}{number}") for n in range(50)]
    await store.bulk_save(drafts, OnConflict.REPLACE)


@asynccontextmanager
async def _constant_reading(store: SQLiteStorage) -> AsyncIterator[None]:
    """Keep every reader busy at all times."""
    stop = False

    async def read() -> None:
        while not stop:
            await store.search(Criteria(parse_query("words")), Scan(True, 20))

    readers = [asyncio.create_task(read()) for _ in range(8)]
    try:
        yield
    finally:
        stop = True
        await asyncio.gather(*readers)


async def test_log_is_truncated_under_constant_reads(small: SQLiteStorage, path: Path) -> None:
    """Fails by its time limit if readers can block a checkpoint."""
    async with _constant_reading(small):
        for number in range(20):
            await _write(small, number)
        written = _size(path) + _log_size(path)
        while _in_use(small) >= 2 * MIB:
            await small.get("0-0")
    assert written > 4 * MIB
    assert (await small.health()).messages == 20 * 50


async def test_log_is_bounded_under_constant_load(small: SQLiteStorage, path: Path) -> None:
    """Continuous writes, many more than the log may hold."""
    largest = 0
    async with _constant_reading(small):
        for number in range(0, 120, 3):
            await asyncio.gather(*(_write(small, number + step) for step in range(3)))
            largest = max(largest, _log_size(path))
    assert _size(path) > 24 * MIB
    # What is written between two looks comes on top of what counts as large.
    assert largest < 16 * MIB


async def test_log_shrinks_after_foreign_reader_ends(small: SQLiteStorage, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as foreign:
        foreign.execute("BEGIN")
        foreign.execute("SELECT count(*) FROM messages").fetchone()
        for number in range(8):
            await _write(small, number)
            await small.get(f"{number}-0")
        assert _in_use(small) > 2 * MIB
        assert _log_size(path) > 2 * MIB
        foreign.execute("COMMIT")
    for number in range(8, 500):
        await _write(small, number)
        if _in_use(small) < MIB and _log_size(path) <= 2 * MIB:
            return
    pytest.fail("the log was not emptied")


async def test_log_restarts_without_truncating_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overwriting is cheaper than appending, so the file must not be truncated."""
    monkeypatch.setattr(checkpoint, "INTERVAL", 3600.0)
    log = path.with_name(path.name + "-wal")
    assert read_log(log) == NO_LOG
    store = SQLiteStorage(path)
    await store.open()
    await _write(store, 0)
    before, length = read_log(log), _log_size(path)
    # A header of 32 bytes, then the frames, and nothing behind the last one.
    assert length == 32 + before.size == 32 + before.frames * (24 + 4096)
    assert _in_use(store) == before.size
    async with store._readers.none_reading(1.0):
        assert await store._checkpointer._restart()
    assert (_in_use(store), read_log(log)) == (0, before)
    await store.save(draft("m-1"))
    after = read_log(log)
    assert after.salts != before.salts
    assert 0 < after.frames < before.frames
    assert (_log_size(path), _in_use(store)) == (length, after.size)
    await store.close()
    assert read_log(log) == NO_LOG


async def test_checkpointed_log_is_not_copied_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "INTERVAL", 3600.0)
    monkeypatch.setattr(checkpoint, "PASSIVE_BYTES", 256 * 1024)
    store = SQLiteStorage(path)
    await store.open()
    assert store._checkpointer._connection is not None
    statements: list[str] = []
    await store._checkpointer._connection.set_trace_callback(statements.append)
    for number in range(3):
        await _write(store, number)
        assert _in_use(store) > 0
        await store.checkpoint()
        await store.checkpoint()
        assert _in_use(store) == 0
        assert len(statements) == number + 1
    await store.close()


async def test_foreign_reader_blocks_neither_reads_nor_writes(
    small: SQLiteStorage, path: Path
) -> None:
    """A log that cannot be truncated must not block other calls."""
    with closing(sqlite3.connect(path, isolation_level=None)) as foreign:
        foreign.execute("BEGIN")
        foreign.execute("SELECT count(*) FROM messages").fetchone()
        for number in range(8):
            await _write(small, number)
        small_calls = 0

        async def calls() -> int:
            for number in range(30):
                await small.save(draft(f"m-{number}"))
                await small.get(f"m-{number}")
                await asyncio.sleep(checkpoint.INTERVAL)
            return number

        # Waiting for the foreign reader would take SQLite's busy timeout each time.
        small_calls = await asyncio.wait_for(calls(), 60)
        assert small_calls == 29
        foreign.execute("COMMIT")


async def test_interrupted_read_is_retried(
    small: SQLiteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint interrupts readers after its time-out; clients do not notice."""
    await _write(small, 1)
    begun = threading.Event()
    go_on = threading.Event()
    calls = 0

    def slow(metadata: str, part: str) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            begun.set()
            go_on.wait(30)
        return True

    for reader in small._readers._all:
        await reader.connection.create_function("metadata_contains", 2, slow)
    reading = asyncio.create_task(small.search(Criteria(metadata='{"a": []}'), Scan(True, 100)))
    await asyncio.to_thread(begun.wait, 30)

    async def checkpoint_now() -> None:
        async with small._readers.none_reading(0.0):
            pass

    holding = asyncio.create_task(checkpoint_now())
    await asyncio.sleep(0.05)  # past its patience of nothing; the read cannot end before
    go_on.set()
    await holding
    page = await reading
    assert len(page.messages) == 50
    assert calls > 50


async def test_cancelled_read_releases_log(small: SQLiteStorage, path: Path) -> None:
    for number in range(4):
        await _write(small, number)
    for turn in range(40):
        tasks = [
            asyncio.create_task(small.search(Criteria(parse_query("words")), Scan(True, 100)))
            for _ in range(4)
        ]
        for _ in range(turn % 6):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    async with small._readers.none_reading(1.0):
        assert await small._checkpointer._restart()
    assert _in_use(small) == 0
    assert len(await found(small, "words")) == 200


async def test_readers_are_served_fairly(small: SQLiteStorage) -> None:
    """Fails by its time limit if a reader gets back the connection that it has just released."""
    await _write(small, 1)
    async with _constant_reading(small):
        for _ in range(20):
            await asyncio.gather(*(small.get(f"1-{n}") for n in range(10)))


@contextmanager
def _file_size_limit(size: int) -> Iterator[None]:
    """Let every write of this process beyond ``size`` bytes of a file fail with EFBIG."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


@pytest.mark.parametrize("passive", [True, False], ids=["passive", "restart"])
async def test_checkpointer_reports_an_io_error_and_recovers(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    passive: bool,
) -> None:
    """The database file cannot grow, so copying the log into it fails, in either step."""
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.01)
    monkeypatch.setattr(checkpoint, "PASSIVE_BYTES", 3600 * MIB)
    monkeypatch.setattr(checkpoint, "LARGE_BYTES", 3600 * MIB)
    supervisor = Supervisor(first_pause=0.01, longest_pause=0.05)
    store = SQLiteStorage(path, supervisor=supervisor)
    await store.open()
    await _write(store, 0)
    if not passive:
        monkeypatch.setattr(store._checkpointer, "_passive", _nothing)
    assert _in_use(store) > 64 * 1024
    with caplog.at_level(logging.ERROR), _file_size_limit(64 * 1024):
        monkeypatch.setattr(checkpoint, "PASSIVE_BYTES" if passive else "LARGE_BYTES", 4096)
        await until(lambda: supervisor.failing != () and supervisor.failing[0].failures >= 3)
        (failure,) = supervisor.failing
        assert (await store.get("0-0")).id == "0-0"
    assert failure.task == "sqlite-checkpointer"
    assert "disk" in failure.error
    logged = [one for one in caplog.records if "sqlite-checkpointer" in one.getMessage()]
    assert len(logged) >= 3
    # A full disk is no defect, so no traceback is logged.
    assert not any(one.exc_info for one in logged)
    await until(lambda: _in_use(store) == 0)
    assert _size(path) > 64 * 1024
    await store.close()
    assert supervisor.failing == ()


async def test_checkpointer_reports_an_unreadable_log_and_recovers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log's name leads to itself: opening it fails with ELOOP, for root as well."""
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.01)
    monkeypatch.setattr(checkpoint, "PASSIVE_BYTES", 3600 * MIB)
    supervisor = Supervisor(first_pause=0.01, longest_pause=0.05)
    store = SQLiteStorage(path, supervisor=supervisor)
    await store.open()
    await _write(store, 0)
    before = _in_use(store)
    log = path.with_name(path.name + "-wal")
    kept = log.with_name("kept")
    log.rename(kept)
    log.symlink_to(log.name)
    await until(lambda: supervisor.failing != ())
    assert "write-ahead log" in supervisor.failing[0].error
    assert _in_use(store) == before
    kept.replace(log)
    monkeypatch.setattr(checkpoint, "PASSIVE_BYTES", 4096)
    await until(lambda: _in_use(store) == 0)
    await store.close()


async def test_closing_a_store_is_no_failure_of_the_checkpointer(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    monkeypatch.setattr(checkpoint, "LARGE_BYTES", 4096)
    supervisor = Supervisor()
    for number in range(10):
        store = SQLiteStorage(path, supervisor=supervisor)
        await store.open()
        await asyncio.gather(*(store.save(draft(f"{number}-{n}")) for n in range(20)))
        await store.close()
    assert supervisor.failing == ()
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


async def _nothing() -> None:
    """Stand in for a passive checkpoint."""
