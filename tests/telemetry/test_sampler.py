"""Sampler: its tasks fail and restart independently of each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from sagastore_server.runtime.supervisor import Supervisor
from sagastore_server.storage.errors import UnavailableError
from sagastore_server.storage.load import Load
from sagastore_server.storage.migration import (
    BackfillState,
    BackfillStatus,
    Backlog,
    Inventory,
    StatusSnapshot,
)
from sagastore_server.storage.phase import Phase
from sagastore_server.telemetry import readiness as readinesses
from sagastore_server.telemetry import sampler as samplers
from sagastore_server.telemetry.readiness import Readiness
from sagastore_server.telemetry.sampler import Sampler
from tests.support.waiting import until

T = TypeVar("T")
SNAPSHOT = StatusSnapshot(Phase.SQLITE_ONLY, 1, BackfillStatus(BackfillState.PENDING))


def answer(given: T | Exception) -> T:
    if isinstance(given, Exception):
        raise given
    return given


class Control:
    """A migration control of which each answer may be an exception."""

    def __init__(self) -> None:
        self.snapshots: StatusSnapshot | Exception = SNAPSHOT
        self.backlogs: Backlog | Exception = Backlog()
        self.asked = 0

    def snapshot(self) -> StatusSnapshot:
        return answer(self.snapshots)

    async def backlog(self) -> Backlog:
        self.asked += 1
        return answer(self.backlogs)

    async def inventory(self) -> Inventory:
        return Inventory((), 7)


@asynccontextmanager
async def running(control: Any, readiness: Readiness) -> AsyncIterator[tuple[Sampler, Supervisor]]:
    supervisor = Supervisor(first_pause=0.001, longest_pause=0.01)
    readiness.watch_tasks(lambda: supervisor.failing)
    loads: list[Load] = []
    sampler = Sampler(lambda: loads, control, readiness, lambda _: None, supervisor)
    sampler.start()
    sampler.opened()
    try:
        yield sampler, supervisor
    finally:
        await sampler.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "BEAT_EVERY", 0.01)
    monkeypatch.setattr(samplers, "_SHORTEST", 0.01)
    monkeypatch.setattr(readinesses, "LIVE_WITHIN", 5.0)


async def test_failing_sample_leaves_the_heartbeat_and_the_other_samples() -> None:
    control, readiness = Control(), Readiness()
    control.snapshots = RuntimeError("a defect")
    async with running(control, readiness) as (sampler, supervisor):
        await until(lambda: bool(supervisor.failing) and supervisor.failing[0].failures > 2)
        (failure,) = supervisor.failing
        assert (failure.task, failure.error) == ("memory-sampler", "RuntimeError")
        assert [warning.reason for warning in readiness.warnings()] == ["TASK_FAILING"]
        beat = readiness.silence
        await until(lambda: readiness.silence < beat)  # A newer heartbeat has come.
        assert readiness.live
        assert sampler.inventory is not None
        # The restarted task samples again once the cause is gone.
        control.snapshots = SNAPSHOT
        await until(lambda: sampler.snapshot is SNAPSHOT)


async def test_failing_delay_measurement_leaves_the_heartbeat() -> None:
    def fail(seconds: float) -> None:
        raise RuntimeError("a defect")

    readiness = Readiness()
    supervisor = Supervisor(first_pause=3600.0)
    sampler = Sampler(list, Control(), readiness, fail, supervisor)  # type: ignore[arg-type]
    sampler.start()
    await until(lambda: bool(supervisor.failing))
    assert [failure.task for failure in supervisor.failing] == ["event-loop-delay"]
    beat = readiness.silence
    await until(lambda: readiness.silence < beat)
    await sampler.stop()


async def test_unavailable_store_is_no_task_failure() -> None:
    control, readiness = Control(), Readiness()
    control.backlogs = UnavailableError("PostgreSQL is unavailable")
    async with running(control, readiness) as (sampler, supervisor):
        await until(lambda: control.asked > 2)
        assert supervisor.failing == ()
        control.backlogs = Backlog(rows=3)
        await until(lambda: sampler.backlog.rows == 3)


async def test_stop_ends_every_task() -> None:
    readiness = Readiness()
    async with running(Control(), readiness) as (sampler, _):
        before = {task.get_name() for task in asyncio.all_tasks()}
        assert {"heartbeat", "memory-sampler", "journal-sampler", "store-sampler"} <= before
        await sampler.stop()
        left = {task.get_name() for task in asyncio.all_tasks()}
        assert not {name for name in left if name.endswith("-sampler") or name == "heartbeat"}
