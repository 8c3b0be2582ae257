"""The supervisor restarts tasks, ends the server for fatal ones, and reports both."""

from __future__ import annotations

import asyncio
import logging

import pytest

from sagastore_server.interfaces.instruments import Instruments
from sagastore_server.runtime import supervisor as supervisors
from sagastore_server.runtime.supervisor import Policy, Supervisor, awaited
from sagastore_server.storage.errors import StorageFullError
from tests.support.waiting import until


class Recorder(Instruments):
    def __init__(self) -> None:
        self.failed: list[str] = []

    def task_failed(self, task: str) -> None:
        self.failed.append(task)


class Failing:
    """Fails ``times`` times, then waits; ``runs`` counts the starts."""

    def __init__(self, times: int, error: str = "disk full") -> None:
        self.times, self.error = times, error
        self.runs = 0
        self.steady = asyncio.Event()

    async def __call__(self) -> None:
        self.runs += 1
        if self.runs <= self.times:
            raise OSError(self.error)
        self.steady.set()
        await asyncio.Event().wait()


async def test_failed_task_is_restarted_and_counted() -> None:
    recorder, main = Recorder(), Failing(3)
    supervisor = Supervisor(recorder, first_pause=0.001)
    task = supervisor.start("sampler", main)
    await main.steady.wait()
    assert main.runs == 4
    assert recorder.failed == ["sampler"] * 3
    (failure,) = supervisor.failing
    assert (failure.task, failure.failures, failure.error) == ("sampler", 3, "OSError: disk full")
    await task.stop()
    assert task.done
    assert supervisor.failing == ()


async def test_failure_does_not_show_the_text_of_an_unknown_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        raise ValueError("invalid input for query argument $1: 'content'")

    supervisor = Supervisor(first_pause=60)
    supervisor.start("sampler", main, Policy.FATAL)
    failure = await supervisor.fatal()
    assert failure.error == "ValueError"
    assert "ValueError: invalid input" in caplog.text


async def test_known_condition_is_logged_without_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def full() -> None:
        raise StorageFullError("the disk is full")

    supervisor = Supervisor(first_pause=0.001)
    task = supervisor.start("task", full)
    while not caplog.records:  # noqa: ASYNC110 - a log record sends no event
        await asyncio.sleep(0)
    await task.stop()
    assert caplog.records[0].exc_info is None
    assert "StorageFullError: the disk is full" in caplog.text


async def test_failure_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    main = Failing(3)
    with caplog.at_level(logging.ERROR):
        supervisor = Supervisor(first_pause=0.001)
        supervisor.start("sampler", main)
        await main.steady.wait()
        await supervisor.close()
    assert [record.exc_info is not None for record in caplog.records] == [True, False, False]
    assert all("sampler" in record.getMessage() for record in caplog.records)


async def test_recovered_task_is_no_longer_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisors, "HEALTHY_AFTER", 0.01)
    main = Failing(1)
    supervisor = Supervisor(first_pause=0.001)
    supervisor.start("sampler", main)
    await main.steady.wait()
    await until(lambda: not supervisor.failing)
    await supervisor.close()


async def test_pause_doubles_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def recorded(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", recorded)
    main = Failing(6)
    supervisor = Supervisor(first_pause=1.0, longest_pause=10.0)
    supervisor.start("sampler", main)
    await main.steady.wait()
    await supervisor.close()
    assert pauses == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


async def test_fatal_task_is_reported_and_not_restarted() -> None:
    main = Failing(9)
    supervisor = Supervisor(first_pause=0.001)
    task = supervisor.start("sqlite-writer", main, Policy.FATAL)
    failure = await supervisor.fatal()
    assert (failure.task, failure.policy) == ("sqlite-writer", Policy.FATAL)
    await task.stop()
    assert main.runs == 1
    assert supervisor.failing == (failure,)


async def test_cancelled_future_counts_as_a_failure() -> None:
    """Otherwise the task would end without a trace, because its own cancellation looks the same."""
    runs: list[asyncio.Future[None]] = []

    async def wait() -> None:
        runs.append(asyncio.get_running_loop().create_future())
        await runs[-1]

    supervisor = Supervisor(first_pause=0.001)
    task = supervisor.start("replicator", wait)
    await until(lambda: len(runs) == 1)
    runs[0].cancel()
    await until(lambda: len(runs) == 2)
    assert [failure.error for failure in supervisor.failing] == ["CancelledError"]
    await task.stop()
    assert len(runs) == 2


async def test_failing_tasks_may_share_a_name() -> None:
    supervisor = Supervisor(first_pause=3600)
    supervisor.start("writer", Failing(9), Policy.FATAL)
    supervisor.start("writer", Failing(9), Policy.RESTART)
    await until(lambda: len(supervisor.failing) == 2)
    await supervisor.close()


async def test_task_that_returns_is_done() -> None:
    async def once() -> None:
        """Return at once."""

    supervisor = Supervisor()
    task = supervisor.start("once", once)
    await until(lambda: task.done)
    assert supervisor.failing == ()
    await task.stop()


async def test_close_cancels_a_task_that_waits_for_its_restart() -> None:
    main = Failing(9)
    supervisor = Supervisor(first_pause=3600)
    supervisor.start("sampler", main)
    await until(lambda: bool(supervisor.failing))
    async with asyncio.timeout(10):
        await supervisor.close()
    assert main.runs == 1


async def test_awaited_task_raises_where_it_is_awaited() -> None:
    async def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await awaited(fail(), name="read ahead")
