"""Worker processes: their results, environment, start and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from sagastore_server.postgresql import rows
from sagastore_server.rpc.bulk_validation import check
from sagastore_server.runtime.worker_pool import MANY, WorkerPool
from sagastore_server.search.analysis import analyze
from sagastore_server.sqlite import index_terms
from sagastore_server.sqlite.index_terms import fts_columns
from sagastore_server.storage.base import Indexer
from tests.support.messages import at, message

TEXTS = [(f"Running café {number}, 東京 and wolves",) for number in range(200)]


@pytest.fixture
async def worker_pool() -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(1)
    yield pool
    await pool.close()


async def worker_pid(worker_pool: WorkerPool) -> int:
    """Wait until a worker process answers; return its process id."""
    await worker_pool.map(len, [("",)] * MANY)
    while (found := (await worker_pool.map(os.getpid, [()]))[0]) == os.getpid():
        pass
    return found


async def test_worker_returns_the_same_result(worker_pool: WorkerPool) -> None:
    expected = [analyze(text) for (text,) in TEXTS]
    assert await worker_pool.map(analyze, TEXTS) == expected  # Too few for a process.
    await worker_pid(worker_pool)
    assert await worker_pool.map(analyze, TEXTS) == expected


@pytest.mark.parametrize("indexer", [index_terms.indexed_columns, rows.search_columns_of, None])
async def test_worker_finds_the_same_in_a_check(
    worker_pool: WorkerPool, indexer: Indexer | None
) -> None:
    messages = [
        message(
            content="hello", tags=["a", "é"], timestamp=at(1, 5000), metadata_json='{"b": 1.50}'
        ),
        message(provider="", content="\x00", tags=[""], timestamp=at(1, -1), metadata_json="["),
        message(id="m" * 129, role="r" * 33, content="a\x00b", session_id="s" * 257),
    ]
    sent = [(True, one.SerializeToString(), indexer) for one in messages]
    expected = [check(*one) for one in sent]
    await worker_pid(worker_pool)
    assert await worker_pool.map(check, sent) == expected
    assert [len(found) for found, _, _ in expected] == [0, 5, 4]
    assert [terms is None for _, _, terms in expected] == [indexer is None, True, True]


async def test_exception_of_a_task_is_raised(worker_pool: WorkerPool) -> None:
    await worker_pid(worker_pool)
    with pytest.raises(ValueError, match="not valid JSON"):
        await worker_pool.map(fts_columns, [("x", (), "{")])
    assert await worker_pool.map(len, [("abc",)]) == [3]


async def test_dead_worker_does_not_fail_a_task(worker_pool: WorkerPool) -> None:
    os.kill(await worker_pid(worker_pool), signal.SIGKILL)
    assert await worker_pool.map(len, [("abc",)]) == [3]
    assert await worker_pool.map(os.getpid, [()]) == [os.getpid()]


async def test_hung_worker_is_killed(
    worker_pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = psutil.Process(await worker_pid(worker_pool))
    monkeypatch.setattr("sagastore_server.runtime.worker_pool._TIMEOUT", 0.5)
    process.suspend()
    # More than the pipe takes without a reader.
    assert await worker_pool.map(len, [("x" * 1_000_000,)]) == [1_000_000]
    assert not process.is_running()


async def test_closed_pool_starts_again(worker_pool: WorkerPool) -> None:
    process = psutil.Process(await worker_pid(worker_pool))
    await worker_pool.close()
    assert not process.is_running()
    assert psutil.pid_exists(await worker_pid(worker_pool))


async def test_worker_has_no_settings(
    worker_pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGASTORE_POSTGRES", "postgresql://secret")
    pid = await worker_pid(worker_pool)
    assert await worker_pool.map(os.getenv, [("SAGASTORE_POSTGRES",), ("PATH",)]) == [
        None,
        os.environ["PATH"],
    ]
    # Nor did it start with them: /proc shows the environment as it was at the start.
    assert "PATH" in psutil.Process(pid).environ()
    assert "SAGASTORE_POSTGRES" not in psutil.Process(pid).environ()


async def test_worker_has_listed_variables_only(
    worker_pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGPASSWORD", "CREDENTIALS_DIRECTORY", "PYTHONPATH", "LD_PRELOAD_SECRET"):
        monkeypatch.setenv(name, "planted")
    environment = psutil.Process(await worker_pid(worker_pool)).environ()
    assert "planted" not in environment.values()
    assert set(environment) <= {"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH"}


async def test_worker_runs_the_package_of_its_parent(
    worker_pool: WorkerPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another version of the package, and modules of Python, come first on the parent's path."""
    for planted in ("sagastore_server.py", "pickle.py", "signal.py"):
        (tmp_path / planted).write_text("raise SystemExit", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "relative", str(tmp_path), *sys.path])
    await worker_pid(worker_pool)
    assert await worker_pool.map(os.getcwd, [()]) == ["/"]


async def test_dead_worker_is_replaced(
    worker_pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagastore_server.runtime.worker_pool._RETRY_SECONDS", 0.0)
    first = await worker_pid(worker_pool)
    os.kill(first, signal.SIGKILL)
    assert await worker_pool.map(len, [("abc",)]) == [3]
    assert await worker_pid(worker_pool) not in {first, os.getpid()}


async def test_signals_leave_the_worker_running(worker_pool: WorkerPool) -> None:
    found = await worker_pid(worker_pool)
    os.kill(found, signal.SIGINT)
    os.kill(found, signal.SIGTERM)
    assert await worker_pool.map(os.getpid, [()]) == [found]


_PARENT = """
import asyncio, os, sys
from sagastore_server.runtime.worker_pool import MANY, WorkerPool
async def main():
    pool = WorkerPool(1)
    await pool.map(len, [("",)] * MANY)
    while (found := (await pool.map(os.getpid, [()]))[0]) == os.getpid():
        pass
    print(found, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_worker_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        process = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
    process.wait(30)
