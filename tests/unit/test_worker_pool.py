"""Processes that analyse: what they answer, and how they begin and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

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
    many = WorkerPool(1)
    yield many
    await many.close()


async def elsewhere(worker_pool: WorkerPool) -> int:
    """Wait until a process answers; return which."""
    await worker_pool.map(len, [("",)] * MANY)
    while (found := (await worker_pool.map(os.getpid, [()]))[0]) == os.getpid():
        pass
    return found


async def test_the_answer_is_the_same_wherever_it_is_worked_out(worker_pool: WorkerPool) -> None:
    expected = [analyze(text) for (text,) in TEXTS]
    assert await worker_pool.map(analyze, TEXTS) == expected  # Not worth a process yet.
    await elsewhere(worker_pool)
    assert await worker_pool.map(analyze, TEXTS) == expected


@pytest.mark.parametrize("indexer", [index_terms.indexed_columns, rows.search_columns_of, None])
async def test_a_check_finds_the_same_elsewhere(
    worker_pool: WorkerPool, indexer: Indexer | None
) -> None:
    messages = [
        message(
            content="hello", tags=["a", "é"], timestamp=at(1, 5000), metadata_json='{"b": 1.50}'
        ),
        message(provider="", content=" ", tags=[""], timestamp=at(1, 1), metadata_json="["),
        message(id="m" * 129, role="r" * 33, content="a\x00b", session_id="s" * 257),
    ]
    sent = [(one.SerializeToString(), indexer) for one in messages]
    expected = [check(*one) for one in sent]
    await elsewhere(worker_pool)
    assert await worker_pool.map(check, sent) == expected
    assert [len(found) for found, _, _ in expected] == [0, 5, 4]
    assert [terms is None for _, _, terms in expected] == [indexer is None, True, True]


async def test_what_is_wrong_is_raised(worker_pool: WorkerPool) -> None:
    await elsewhere(worker_pool)
    with pytest.raises(ValueError, match="not valid JSON"):
        await worker_pool.map(fts_columns, [("x", (), "{")])
    assert await worker_pool.map(len, [("abc",)]) == [3]


async def test_a_process_that_dies_is_done_without(worker_pool: WorkerPool) -> None:
    os.kill(await elsewhere(worker_pool), signal.SIGKILL)
    assert await worker_pool.map(len, [("abc",)]) == [3]
    assert await worker_pool.map(os.getpid, [()]) == [os.getpid()]


async def test_a_process_that_hangs_is_given_up(
    worker_pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = psutil.Process(await elsewhere(worker_pool))
    monkeypatch.setattr("sagastore_server.runtime.worker_pool._PATIENCE", 0.5)
    process.suspend()
    # More than the line takes without anybody who reads it.
    assert await worker_pool.map(len, [("x" * 1_000_000,)]) == [1_000_000]
    assert not process.is_running()


async def test_it_ends_and_can_begin_again(worker_pool: WorkerPool) -> None:
    process = psutil.Process(await elsewhere(worker_pool))
    await worker_pool.close()
    assert not process.is_running()
    assert psutil.pid_exists(await elsewhere(worker_pool))


async def test_it_knows_no_settings(
    worker_pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGASTORE_POSTGRES", "postgresql://secret")
    await elsewhere(worker_pool)
    assert await worker_pool.map(os.getenv, [("SAGASTORE_POSTGRES",), ("PATH",)]) == [
        None,
        os.environ["PATH"],
    ]


async def test_signals_to_the_group_leave_it_at_work(worker_pool: WorkerPool) -> None:
    found = await elsewhere(worker_pool)
    os.kill(found, signal.SIGINT)
    os.kill(found, signal.SIGTERM)
    assert await worker_pool.map(os.getpid, [()]) == [found]


_PARENT = """
import asyncio, os, sys
from sagastore_server.runtime.worker_pool import MANY, WorkerPool
async def main():
    analysts = WorkerPool(1)
    await analysts.map(len, [("",)] * MANY)
    while (found := (await analysts.map(os.getpid, [()]))[0]) == os.getpid():
        pass
    print(found, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_it_ends_with_who_began_it_however_that_ends() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        process = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
    process.wait(30)
