"""Task supervisor: starts, restarts and stops every background task of the process.

A background task has a name and a policy for its failure. `RESTART` runs it again after a pause
that doubles from `first_pause` to `longest_pause`; `FATAL` ends the server. Each failure is

* logged once with its traceback; repetitions of the same error, errors of the storage contract
  (a full disk, an unreachable store) and a `TaskError` are logged without it;
* counted in `sagastore_task_failures_total`;
* visible in `failing`, which readiness reports, until the task has run for `HEALTHY_AFTER`.

A task that is awaited by the code that starts it is no background task: its failure is raised
where it is awaited. `awaited` starts one. No other module calls `asyncio.create_task`
(`make lint` checks that).
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, NamedTuple, TypeVar

from sagastore_server.interfaces.instruments import Instruments
from sagastore_server.storage.errors import StorageError

T = TypeVar("T")

HEALTHY_AFTER = 60.0
"""Seconds that a restarted task runs until its last failure is forgotten. Twice the longest
pause, so that a task that fails at once is reported without interruption."""


class TaskError(Exception):
    """A failure that is no defect of the task. The text is one line for the public."""


_SHOWN = (OSError, StorageError, TaskError)
"""Errors whose text readiness reports, to clients without authentication. Other texts may quote a
value, such as the content of a message; only the log has them."""

_log = logging.getLogger(__name__)


class Policy(enum.Enum):
    """What happens when a background task fails."""

    RESTART = "restart"
    """It is started again after a pause."""
    FATAL = "fatal"
    """The server ends with an error: without this task it must not serve."""


class Failure(NamedTuple):
    """A background task that has failed and has not recovered yet."""

    task: str
    policy: Policy
    error: str
    """Type of the latest error, in one line; with its text if that is of the system or a store."""
    failures: int
    """Failures since the task last ran for `HEALTHY_AFTER` seconds."""


class Supervisor:
    """Owner of the background tasks. Belongs to one event loop; `failing` is safe in any thread."""

    def __init__(
        self,
        instruments: Instruments | None = None,
        *,
        first_pause: float = 0.1,
        longest_pause: float = 30.0,
    ) -> None:
        """Report failures to ``instruments``; restart after ``first_pause`` seconds or more."""
        self._instruments = instruments or Instruments()
        self._first_pause = first_pause
        self._longest_pause = longest_pause
        self._running: dict[SupervisedTask, None] = {}  # A set has no order to rely on.
        self._failures: dict[SupervisedTask, Failure] = {}
        self._logged: dict[SupervisedTask, str] = {}
        """The latest error of each task that has failed."""
        self._fatal: Failure | None = None
        self._fatal_event = asyncio.Event()
        self.failing: tuple[Failure, ...] = ()
        """Tasks that have failed and have not recovered yet, by name."""

    def start(
        self,
        name: str,
        main: Callable[[], Awaitable[None]],
        policy: Policy = Policy.RESTART,
    ) -> SupervisedTask:
        """Run ``main`` in the background until it returns or is stopped.

        Args:
            name: What logs, metrics and readiness call it; in kebab-case, for example
                ``sqlite-checkpointer``.
            main: Runs the task. A restart calls it again.
            policy: What happens when it raises an exception.

        """
        self._instruments.task_started(name)
        task = SupervisedTask(name)
        self._running[task] = None
        task.bind(asyncio.create_task(self._run(task, main, policy), name=name))
        return task

    async def fatal(self) -> Failure:
        """Wait until a task whose policy is `FATAL` has failed, and return the failure."""
        await self._fatal_event.wait()
        assert self._fatal is not None  # noqa: S101 - set before the event
        return self._fatal

    async def close(self) -> None:
        """Stop every task that is still running."""
        await asyncio.gather(*(task.stop() for task in list(self._running)))

    async def _run(
        self, task: SupervisedTask, main: Callable[[], Awaitable[None]], policy: Policy
    ) -> None:
        try:
            await self._repeat(task, main, policy)
        finally:
            self._running.pop(task, None)
            if policy is Policy.RESTART:
                self._recover(task)

    async def _repeat(
        self, task: SupervisedTask, main: Callable[[], Awaitable[None]], policy: Policy
    ) -> None:
        while True:
            timer = asyncio.get_running_loop().call_later(HEALTHY_AFTER, self._recover, task)
            try:
                await main()
            except asyncio.CancelledError as exc:
                if _cancelled_from_outside():
                    raise
                # Something that the task awaited was cancelled, for example a future.
                failure = self._note(task, policy, exc)
            except Exception as exc:  # noqa: BLE001 - the supervisor handles every error
                failure = self._note(task, policy, exc)
            else:
                return
            finally:
                timer.cancel()
            if policy is Policy.FATAL:
                self._fatal = self._fatal or failure
                self._fatal_event.set()
                return
            pause = self._first_pause * 2 ** min(failure.failures - 1, 30)
            await asyncio.sleep(min(pause, self._longest_pause))

    def _note(self, task: SupervisedTask, policy: Policy, exc: BaseException) -> Failure:
        before = self._failures.get(task)
        error = " ".join(f"{type(exc).__name__}: {exc}".split()).removesuffix(":")
        shown = error if isinstance(exc, _SHOWN) else type(exc).__name__
        failure = Failure(task.name, policy, shown, 1 if before is None else before.failures + 1)
        self._instruments.task_failed(task.name)
        again = self._logged.get(task) == error
        self._logged[task] = error
        _log.error(
            "background task %s failed (%s, failure %d): %s",
            *(task.name, policy.value, failure.failures, error),
            exc_info=None if again or isinstance(exc, StorageError | TaskError) else exc,
        )
        self._failures[task] = failure
        self._publish()
        return failure

    def _recover(self, task: SupervisedTask) -> None:
        self._logged.pop(task, None)
        if self._failures.pop(task, None) is not None:
            self._publish()

    def _publish(self) -> None:
        found = self._failures.values()
        self.failing = tuple(sorted(found, key=lambda failure: (failure.task, failure.error)))


def _cancelled_from_outside() -> bool:
    """Return whether the current task itself was cancelled."""
    current = asyncio.current_task()
    return current is None or current.cancelling() > 0


class SupervisedTask:
    """A background task of a `Supervisor`."""

    def __init__(self, name: str) -> None:
        """Describe the task ``name``, which `bind` has yet to start."""
        self.name = name
        self._task: asyncio.Task[None] | None = None

    def bind(self, task: asyncio.Task[None]) -> None:
        """Attach the asyncio task that runs it."""
        self._task = task

    @property
    def done(self) -> bool:
        """Whether it has returned, was stopped, or has failed with the policy `FATAL`."""
        return self._task is not None and self._task.done()

    def cancel(self) -> None:
        """Request the stop without waiting for it."""
        if self._task is not None:
            self._task.cancel()

    async def wait(self) -> None:
        """Wait until the task has ended, without stopping it. Raises nothing that it raised."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def stop(self) -> None:
        """Cancel the task and wait until it has ended. Does nothing if it has."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait({self._task})


def awaited(
    work: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
) -> asyncio.Task[T]:
    """Run ``work`` concurrently with its caller, which awaits or cancels the task.

    The exception of the task is raised where it is awaited, as by `asyncio.create_task`.
    """
    return asyncio.create_task(work, name=name, context=context)
