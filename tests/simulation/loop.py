"""SimulationLoop: a seeded asyncio event loop with a virtual clock, without threads and I/O.

Virtual time stands still while callbacks are ready and jumps to the next timer when none is. Ready
callbacks run in one of two orders:

- FIFO, which asyncio guarantees;
- a seeded shuffle, which is weaker than the guarantee of real event loops. It stands for variation
  that the models lack: the answer order of threads, network packets, garbage collection.

Each callback belongs to the process in its context (`models.process.PROCESS`). Callbacks of a dead
process are dropped, so its `finally` blocks do not run; those of a frozen process are postponed.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import random
import warnings
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation.models.process import PROCESS

MOST_STEPS = 2_000_000
"""Callbacks after which a round counts as a livelock; typical rounds have 5,000 to 100,000."""

_HASH = 0xFFFFFFFFFFFFFFFF


class StuckError(Exception):
    """No callback is left to run before the end of the round, or the round never ends."""


class SimulationLoop(asyncio.BaseEventLoop):
    """Event loop of one round."""

    def __init__(self, seed: str, *, shuffle: bool) -> None:
        """Create a loop at time 0; ``shuffle`` runs ready callbacks in a seeded order."""
        super().__init__()
        self._now = 0.0
        self._draw = random.Random(f"{seed}/schedule")
        self._shuffle = shuffle
        self._queue: deque[tuple[int, asyncio.Handle]] = deque()
        self._timers: list[tuple[float, int, asyncio.Handle]] = []
        self._trips: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self.steps = 0
        """Number of callbacks that have run."""
        self.digest = 0
        """Hash over the order and times of the callbacks; equal for equal runs."""
        self.after_step: Callable[[], None] = _nothing
        """Called after every callback."""
        self.errors: list[str] = []
        """Errors that asyncio reported as unhandled."""
        self.set_exception_handler(self._note_error)

    # ------------------------------------------------------------------ as asyncio calls it

    def time(self) -> float:
        """Return virtual seconds since the start of the round."""
        return self._now

    def create_task(  # type: ignore[override]  # of coroutines only, with names as text
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        """Create a task; a reference to it is kept until the end of the round."""
        # Names from asyncio's counter would differ between rounds.
        task = asyncio.Task(coro, loop=self, name=name or "task", context=context)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._tasks.append(task)
        return task

    def call_soon(  # type: ignore[override]  # typed without TypeVarTuple
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Run a callback after the ready ones."""
        handle = asyncio.Handle(callback, args, self, context)
        self._number += 1
        self._queue.append((self._number, handle))
        return handle

    def call_soon_threadsafe(  # type: ignore[override]  # typed without TypeVarTuple
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """See ``call_soon``: there are no threads."""
        return self.call_soon(callback, *args, context=context)

    def call_at(  # type: ignore[override]  # typed without TypeVarTuple
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run a callback at a virtual time."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._number += 1
        heapq.heappush(self._timers, (when, self._number, handle))
        return handle

    def call_later(  # type: ignore[override]  # typed without TypeVarTuple
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run a callback after virtual seconds."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def run_in_executor(self, *args: object) -> Any:
        """Refuse threads.

        Raises:
            AssertionError: Always.

        """
        raise AssertionError("the code under simulation starts a thread")

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: cancelled timers are skipped when they expire."""

    def _process_events(self, event_list: object) -> None:
        """Do nothing: there is no I/O."""

    # ------------------------------------------------------------------ the simulation

    def after_steps(self, steps: int, trip: Callable[[], None]) -> None:
        """Call ``trip`` before the callback that follows ``steps`` others."""
        self._number += 1
        heapq.heappush(self._trips, (self.steps + steps, self._number, trip))

    def cancel_trips(self) -> None:
        """Cancel the calls that ``after_steps`` has scheduled."""
        self._trips.clear()

    def _run_once(self) -> None:
        timers, queue = self._timers, self._queue
        while timers and timers[0][0] <= self._now:
            _, number, handle = heapq.heappop(timers)
            queue.append((number, handle))
        if not queue:
            self._jump()
            return
        if self._shuffle and len(queue) > 1:
            at = self._draw.randrange(len(queue))
            queue[0], queue[at] = queue[at], queue[0]
        self._run_handle(*queue.popleft())

    def _jump(self) -> None:
        """Advance the time to the next timer."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not timers:
            raise StuckError("deadlock: no callback is left to run")
        when, number, handle = heapq.heappop(timers)
        self._now = max(self._now, when)
        self._queue.append((number, handle))

    def _run_handle(self, number: int, handle: asyncio.Handle) -> None:
        if handle.cancelled():
            return
        process = handle._context.get(PROCESS)  # type: ignore[attr-defined]
        if process is not None:
            if process.dead:
                return
            if process.frozen_until > self._now:
                timer = (process.frozen_until, number, handle)
                heapq.heappush(self._timers, timer)
                return
        self.steps += 1
        if self._trips and self.steps >= self._trips[0][0]:
            heapq.heappop(self._trips)[2]()
            if process is not None and process.dead:
                return
        if self.steps > MOST_STEPS:
            raise StuckError(f"{self.steps:,} callbacks without an end: livelock")
        self.digest = (self.digest * 1000003 ^ number ^ int(self._now * 1e9)) & _HASH
        handle._run()
        self.after_step()

    def _note_error(self, _: object, context: dict[str, Any]) -> None:
        self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    def end_all(self) -> None:
        """End all remaining tasks, including those of dead processes, and close the loop."""
        self.after_step = _nothing
        for task in self._tasks:
            if not task.done():
                # `finally` blocks run now, on the stores of a finished round; their errors are
                # irrelevant.
                with warnings.catch_warnings(), contextlib.suppress(BaseException):
                    # A `finally` that creates a coroutine finds no running loop to await it.
                    warnings.simplefilter("ignore", RuntimeWarning)
                    task.get_coro().close()
        self._queue.clear()
        self._timers.clear()
        self._tasks.clear()
        self.close()


def _nothing() -> None:
    """Do nothing."""
