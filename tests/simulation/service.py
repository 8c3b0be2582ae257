"""Service of a round as a simulated process: start, stop, kill, freeze, and calls."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sagastore_server.migration.migrating_service import MigratingService, Options
from sagastore_server.storage.environment import Environment
from sagastore_server.storage.errors import (
    CannotOpenError,
    CorruptStoreError,
    FencedError,
    StorageError,
    StorageFullError,
    UnavailableError,
)
from tests.simulation.environment import SimulationClock
from tests.simulation.models.process import Process
from tests.simulation.observed_stores import CALL, ObservedSource, ObservedTarget

if TYPE_CHECKING:
    from tests.simulation.models.postgres import PostgresServer
    from tests.simulation.models.source_disk import SourceDisk
    from tests.simulation.world import World

T = TypeVar("T")
Make = Callable[[MigratingService], Awaitable[T]]
"""Makes a call to the service."""

_AMBIGUOUS = (
    UnavailableError,
    StorageFullError,
    CorruptStoreError,
    FencedError,
    CannotOpenError,
)
"""Errors after which a client does not know whether its call took effect."""

RESTART_SECONDS = 0.5
"""Seconds until a server that refused to start is restarted, as by a service manager."""

STOP_SECONDS = 30.0
"""Maximum duration of a graceful stop in seconds: calls in progress and the stores' time-outs."""


class UnknownError(Exception):
    """The call may have taken effect, may take effect later, or never."""


class RefusedError(Exception):
    """The call was never sent, because there is no server."""


class Service:
    """Sequence of server processes on one file and one PostgreSQL."""

    def __init__(self, world: World) -> None:
        """Create the service on the stores of ``world``."""
        self._world = world
        self._starts = itertools.count(1)
        self._calls: dict[asyncio.Future[Any], None] = {}
        self._numbers = itertools.count(1)
        self.process = Process("server-0")
        self.process.dead = True
        self.disk = world.disk
        """File for the next start."""
        self.postgres = world.postgres
        """PostgreSQL for the next start."""
        self.live: MigratingService | None = None
        self.serving = False
        self.refused = ""
        """Error of the last start."""

    # ------------------------------------------------------------------ the process

    def start(self) -> None:
        """Start a new process."""
        world = self._world
        self.process = process = Process(f"server-{next(self._starts)}")
        self.serving = False
        self.live = make_live(world, self.disk, process, self.postgres)
        opening = self._open(process, self.live)
        world.loop.create_task(opening, name="main", context=process.context)

    async def _open(self, process: Process, live: MigratingService) -> None:
        world = self._world
        try:
            await live.backend.open()
        except CannotOpenError as exc:
            world.note(process.name, "start refused", why=str(exc))
        except StorageError as exc:
            world.violation(f"a start failed with a traceback instead of a one-line error: {exc!r}")
        else:
            self.serving = True
            world.note(process.name, "serves", phase=live.phase.slug)
            world.watch(live)
            return
        self.refused = "the last start was refused"
        process.dead = True
        self._start_again(process, RESTART_SECONDS)

    def _start_again(self, process: Process, after: float) -> None:
        def again() -> None:
            if process is self.process and process.dead:
                self.start()

        self._world.loop.call_later(after, again, context=contextvars.Context())

    def kill(self, after: float) -> None:
        """Kill the process now and start a new one after ``after`` seconds."""
        process = self.process
        if process.dead:
            return
        self._world.note(process.name, "killed")
        process.dead, self.serving = True, False
        self._bury(process)
        self._start_again(process, after)

    def _bury(self, process: Process) -> None:
        """End the tasks of a dead process."""
        for postgres in (self._world.postgres, self.postgres):
            postgres.cut(of=process, silent=True)
        self._lose_calls()

    def abandon(self) -> None:
        """Kill the process without starting another."""
        process, self.process = self.process, Process("none")
        self.process.dead, self.serving = True, False
        if not process.dead:
            process.dead = True
            self._bury(process)

    def _lose_calls(self) -> None:
        for answer in list(self._calls):
            if not answer.done():
                answer.set_exception(UnknownError())
        self._calls.clear()

    async def stop(self) -> None:
        """Stop the process gracefully and start a new one."""
        if self.serving and await self._end():
            self.start()

    async def end(self) -> None:
        """Stop the process gracefully if it serves; kill it if it is still starting."""
        if self.serving:
            await self._end()
        self.abandon()

    async def _end(self) -> bool:
        """Stop the process; return whether the stop is what ended it."""
        process, live, world = self.process, self.live, self._world
        if process.dead or live is None:
            return False
        world.note(process.name, "stops")
        self.serving = False
        closing = world.loop.create_task(live.close(), name="close", context=process.context)
        done, _ = await asyncio.wait({closing}, timeout=STOP_SECONDS)
        if self._was_killed(process):
            return False
        if not done:
            world.violation(f"the server did not stop within {STOP_SECONDS:g} s")
        elif closing.exception() is not None:
            world.violation(f"the stop failed: {closing.exception()!r}")
        process.dead = True
        self._lose_calls()
        return True

    async def _cancel(self, task: asyncio.Task[Any], call: _Call, process: Process) -> None:
        """Tell the server that the caller disconnected, before the caller sends anything else.

        A frozen process learns of it when it resumes. Calls that it has not seen by then never
        start.
        """
        if process.dead:
            return
        if not call.begun:
            task.cancel()
            return
        notified: asyncio.Future[None] = self._world.loop.create_future()
        self._calls[notified] = None

        def notify() -> None:
            task.cancel()
            if not notified.done():
                notified.set_result(None)

        self._world.loop.call_soon(notify, context=process.context)
        await asyncio.wait({notified})
        self._calls.pop(notified, None)
        notified.cancelled() or notified.exception()

    @staticmethod
    def _was_killed(process: Process) -> bool:
        return process.dead

    # ------------------------------------------------------------------ calls

    async def call(
        self,
        client: str,
        what: str,
        make: Make[T],
        *,
        deadline: float | None = None,
        lossy: bool = True,
        write: bool = False,
    ) -> T:
        """Call the service over a network that delays, and loses answers.

        Raises:
            RefusedError: There is no server.
            UnknownError: The outcome is unknown.
            StorageError: A definite answer.
        """
        world, draw = self._world, self._world.network
        await asyncio.sleep(draw.random() ** 3 * 0.002)
        if not self.serving or self.process.dead or self.live is None:
            await asyncio.sleep(0.02)
            raise RefusedError
        process = self.process
        answer: asyncio.Future[T] = world.loop.create_future()
        self._calls[answer] = None
        call = _Call(world, next(self._numbers), client, what, write=write)
        serving = call.serve(self.live, make, answer)
        task = world.loop.create_task(serving, name="call", context=process.context)
        if deadline is None:
            deadline = world.settings.deadline
        if lossy and draw.random() < world.lossy:
            # The caller disconnects early, and gRPC then cancels the call.
            deadline = draw.random() * 0.02
        try:
            await asyncio.wait({answer}, timeout=deadline)
        finally:
            self._calls.pop(answer, None)
            if not task.done():
                await self._cancel(task, call, process)
        return _result_of(answer)


def _result_of(answer: asyncio.Future[T]) -> T:
    if not answer.done():
        answer.cancel()
        raise UnknownError
    try:
        return answer.result()
    except _AMBIGUOUS as exc:
        raise UnknownError from exc


class _Call:
    """One call, on the server side."""

    def __init__(self, world: World, number: int, client: str, what: str, *, write: bool) -> None:
        self._world = world
        self._number = number
        self._client = client
        self._what = what
        self._write = write
        self.begun = False
        """Whether the server has seen it."""

    async def serve(self, live: MigratingService, make: Make[T], answer: asyncio.Future[T]) -> None:
        """Execute the call and send the answer."""
        CALL.set(self._number)
        self.begun = True
        self._note("begins")
        result: T | Exception
        try:
            result = await make(live)
        except Exception as exc:  # noqa: BLE001 - it is the answer
            result = exc
        else:
            if self._write:
                self._world.acknowledged(live)
        self._note("answered", answer=result)

        def notify() -> None:
            if answer.done():
                return
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        # In transit, the answer does not depend on the process any more.
        delay = self._world.network.random() ** 3 * 0.002
        self._world.loop.call_later(delay, notify, context=contextvars.Context())

    def _note(self, kind: str, **facts: Any) -> None:
        self._world.note(self._client, f"{self._what} {kind}", call=self._number, **facts)


def make_live(
    world: World, disk: SourceDisk, process: Process, postgres: PostgresServer
) -> MigratingService:
    """Return a service on a file and a PostgreSQL, as ``process``."""
    clock = SimulationClock(world.loop, process)
    settings = world.settings
    return MigratingService(
        ObservedSource(disk, process, clock.now, world.observer),
        ObservedTarget(postgres, process, clock.now, world.observer),
        Options(shadow_share=settings.shadow_share, patience=settings.patience),
        Environment(clock, world.randomness),
        settings.tuning,
    )
