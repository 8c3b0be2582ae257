"""Workload against a real service that is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from sagastore import AsyncClient, Message
from tests.support.server_process import ServerProcess
from tools.chaos.checker import check
from tools.chaos.history import History, Outcome
from tools.chaos.recording_client import RecordingClient, counted_attempts
from tools.chaos.values import Value, moment, shown, word_of
from tools.chaos.workload import Workload

WRITES = {"Save", "Delete", "BulkSave"}


async def _until(condition: Callable[[], bool], task: asyncio.Task[None]) -> None:
    while not condition():
        assert not task.done(), task
        await asyncio.sleep(0.02)


async def _run(
    address: str, history: History, meanwhile: Callable[[asyncio.Task[None]], Awaitable[None]]
) -> None:
    workload, stop = Workload(address, 7, history), asyncio.Event()
    running = asyncio.create_task(workload.run(stop))
    await meanwhile(running)
    stop.set()
    await running
    await workload.settle()


async def test_killed_service_loses_no_acknowledged_write(tmp_path: Path) -> None:
    server, history = ServerProcess(tmp_path / "memory.db"), History()
    server.start()

    async def kill_and_start(running: asyncio.Task[None]) -> None:
        await _until(lambda: _answered(history) > 50, running)
        history.mark("fault begins", name="kill -9")
        server.kill9()
        await asyncio.to_thread(server.start)
        history.mark("fault ends", name="kill -9")
        before = _answered(history)
        await _until(lambda: _answered(history) > before + 40, running)

    try:
        async with AsyncClient(server.address) as client:
            await client.save(Message("openai", "user", "there before", id="before"))
        await _run(server.address, history, kill_and_start)
    finally:
        server.close()
    path = tmp_path / "history.jsonl"
    history.save(path)
    report = check(History.load(path))
    assert report.ok, str(report)
    assert report.acknowledged > 80
    kinds = {operation.kind for operation in history}
    assert kinds >= {"Baseline", *WRITES, "Get", "BatchGet", "List", "Search", "Export"}


def _answered(history: History) -> int:
    return sum(
        operation.kind in WRITES and operation.outcome is Outcome.OK for operation in history
    )


async def test_checker_finds_injected_data_loss(tmp_path: Path) -> None:
    """Replace the file by an older copy under the running service, which no crash can do."""
    server, history = ServerProcess(tmp_path / "memory.db"), History()
    server.start()

    async def lose(running: asyncio.Task[None]) -> None:
        await _until(lambda: _answered(history) > 20, running)
        server.terminate()
        old = (tmp_path / "memory.db").read_bytes()
        await asyncio.to_thread(server.start)
        before = _answered(history)
        await _until(lambda: _answered(history) > before + 25, running)
        server.terminate()
        (tmp_path / "memory.db").write_bytes(old)
        await asyncio.to_thread(server.start)

    try:
        await _run(server.address, history, lose)
    finally:
        server.close()
    kinds = check(history).kinds
    assert kinds["LOST_WRITE"] > 0, kinds


async def test_recording_client_counts_attempts(tmp_path: Path) -> None:
    history = History()
    message = Message("openai", "user", "v0", id="m", timestamp=moment(0))
    with counted_attempts():
        # No server listens at first; one is started later.
        client = RecordingClient("127.0.0.1:1", history, 0, timeout=5, tries=3)
        assert (
            await client.save(message, Value.of(message, ()), if_revision=None, both=False) is None
        )
        await client.close()
        server = ServerProcess(tmp_path / "memory.db").start()
        client = RecordingClient(server.address, history, 0, timeout=30, tries=3)
        assert await client.save(message, Value.of(message, ()), if_revision=None, both=False)
        await client.close()
        server.close()
    assert [one.args["tries"] for one in history] == [3, 1]
    assert [one.outcome for one in history] == [Outcome.REFUSED, Outcome.OK]


def test_read_value_matches_sent_value() -> None:
    def message(number: float) -> Message:
        metadata = {"b": [1, number], "a": "ä"}
        time = moment(1_900_000_000_123_456)
        return Message("openai", "user", "v1 x", id="m", timestamp=time, metadata=metadata)

    value = Value.of(message(2.5), ("word",))
    assert Value.read(value.as_json()) == value
    assert shown(message(2.5))[:3] == (value.id, value.digest, value.label)
    assert value.timestamp == 1_900_000_000_123_456
    assert Value.of(message(2.4), ()).digest != value.digest


def test_search_words_are_unique_and_unstemmed() -> None:
    words = {word_of(f"{seed}.{number}") for seed in range(30) for number in range(30)}
    assert len(words) == 900
    assert all(word.isalpha() and word.islower() for word in words)
