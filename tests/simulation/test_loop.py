"""Event loop of the simulation: virtual time, order, crashes, freezes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.simulation.loop import SimulationLoop, StuckError
from tests.simulation.models.process import Process


def run(main: Callable[[SimulationLoop], object], *, shuffle: bool = False) -> SimulationLoop:
    """Run ``main(loop)``, a coroutine, on a new loop."""
    loop = SimulationLoop("seed", shuffle=shuffle)
    try:
        loop.run_until_complete(main(loop))  # type: ignore[arg-type]
    finally:
        loop.end_all()
    return loop


def test_time_jumps_to_the_next_timer() -> None:
    times: list[float] = []

    async def main(loop: SimulationLoop) -> None:
        for seconds in (3600.0, 0.5):
            await asyncio.sleep(seconds)
            times.append(loop.time())

    run(main)
    assert times == [3600.0, 3600.5]


def test_fifo_runs_callbacks_in_schedule_order() -> None:
    ran: list[int] = []

    async def main(loop: SimulationLoop) -> None:
        for number in range(20):
            loop.call_soon(ran.append, number)
        await asyncio.sleep(1)

    run(main)
    assert ran == list(range(20))


def test_shuffle_is_reproducible() -> None:
    def order() -> list[int]:
        ran: list[int] = []

        async def main(loop: SimulationLoop) -> None:
            for number in range(20):
                loop.call_soon(ran.append, number)
            await asyncio.sleep(1)

        run(main, shuffle=True)
        return ran

    assert order() == order() != list(range(20))
    assert sorted(order()) == list(range(20))


def test_crash_runs_no_finally_of_the_process() -> None:
    cleaned: list[str] = []
    process = Process("crashing")

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            if not process.dead:
                cleaned.append("finally")

    async def main(loop: SimulationLoop) -> None:
        task = loop.create_task(work(), context=process.context)
        await asyncio.sleep(1)
        process.dead = True
        await asyncio.sleep(100)
        assert not task.done()

    run(main)
    assert cleaned == []


def test_frozen_process_resumes_while_others_run() -> None:
    ran: list[tuple[str, float]] = []
    process = Process("frozen")

    async def work(loop: SimulationLoop, name: str) -> None:
        await asyncio.sleep(1)
        ran.append((name, loop.time()))

    async def main(loop: SimulationLoop) -> None:
        frozen = loop.create_task(work(loop, "frozen"), context=process.context)
        process.frozen_until = 5.0
        await work(loop, "other")
        await frozen

    run(main)
    assert ran == [("other", 1.0), ("frozen", 6.0)]


def test_fault_runs_before_planned_callback() -> None:
    ran: list[object] = []

    async def main(loop: SimulationLoop) -> None:
        loop.after_steps(3, lambda: ran.append("fault"))
        for number in range(5):
            loop.call_soon(ran.append, number)
        await asyncio.sleep(1)

    run(main)
    assert ran == [0, 1, "fault", 2, 3, 4]


def test_deadlocked_round_is_reported() -> None:
    async def main(loop: SimulationLoop) -> None:
        await loop.create_future()

    with pytest.raises(StuckError, match="no callback is left to run"):
        run(main)


def test_threads_are_refused() -> None:
    async def main(loop: SimulationLoop) -> None:
        await asyncio.to_thread(print)

    with pytest.raises(AssertionError, match="starts a thread"):
        run(main)


def test_unretrieved_exception_is_reported() -> None:
    def fail() -> None:
        raise ValueError("a defect")

    async def main(loop: SimulationLoop) -> None:
        loop.call_soon(fail)
        await asyncio.sleep(1)

    assert "a defect" in run(main).errors[0]
