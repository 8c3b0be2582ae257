"""Files are reloaded by supervised tasks, one for each component."""

from __future__ import annotations

import asyncio

import pytest

from sagastore_server.runtime.supervisor import Supervisor
from sagastore_server.security import watched_files
from sagastore_server.security.watched_files import watching
from tests.support.waiting import until


class Component:
    """Counts its polls; ``error`` is raised by `apply`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.polls = self.applied = 0

    def poll(self) -> bool:
        self.polls += 1
        return False

    def apply(self) -> None:
        if self.error is not None:
            raise self.error
        self.applied += 1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_files, "_POLL_SECONDS", 0.001)


async def test_failing_component_is_restarted_and_leaves_the_others() -> None:
    supervisor = Supervisor(first_pause=0.001, longest_pause=0.001)
    tls, access = Component(ValueError("year 10000 is out of range")), Component()
    async with watching({"tls": tls, "access": access}, supervisor):
        await until(lambda: tls.polls > 2 and access.applied > 2)
        (failure,) = supervisor.failing
        assert failure.task == "tls-watcher"
        assert failure.error == "ValueError"
        tls.error = None
        await until(lambda: tls.applied > 0)
    assert {"tls-watcher", "access-watcher"}.isdisjoint(
        task.get_name() for task in asyncio.all_tasks()
    )


async def test_tasks_end_with_the_context() -> None:
    component = Component()
    async with watching({"access": component}):
        await until(lambda: component.applied > 0)
    polls = component.polls
    await asyncio.sleep(0.01)
    assert component.polls == polls
