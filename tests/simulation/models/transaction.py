"""Transaction of the PostgreSQL model, on the server side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sagastore_server.storage.errors import StorageError, StorageFullError, UnavailableError
from tests.simulation.models.process import Process

if TYPE_CHECKING:
    from tests.simulation.models.postgres import PostgresServer


class Read(NamedTuple):
    """Read-only transaction at one instant."""

    look: Callable[[], object]
    """Return the answer, which keeps no reference to the contents."""


class Write(NamedTuple):
    """Transaction that writes."""

    locks: Sequence[str]
    """Rows that it locks, in this order, until its end."""
    execute: Callable[[], Callable[[], object]]
    """Execute the statements at one instant under the locks: checks and reads without changes.
    Returns the function that COMMIT executes at a later instant. Either may raise a StorageError,
    which rolls the transaction back.
    """


class Transaction:
    """Request in transit to the server, its execution, and its answer.

    A write takes two round trips: the statements, and COMMIT. The client may disappear at any
    point: before COMMIT was sent, that rolls back; afterwards the outcome is open.
    """

    def __init__(self, server: PostgresServer, process: Process, work: Read | Write) -> None:
        """Send ``work`` from ``process``."""
        self._server = server
        self.process = process
        self._work = work
        self._gone = False
        """The client no longer receives or sends anything."""
        self.begun = False
        """Whether the server has started to execute it."""
        self._locked: list[asyncio.Lock] = []
        loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Any] = loop.create_future()
        # A client that has disappeared never retrieves the answer.
        self.answer.add_done_callback(_retrieve)
        server.requests.append(self)
        context = server.process.context
        self._task = loop.create_task(self._serve(), name="transaction", context=context)

    def lose(self, *, silent: bool) -> None:
        """Lose the connection; ``silent``: without an error for the client."""
        self._gone = True
        if not silent and not self.answer.done():
            self.answer.set_exception(
                UnavailableError("the connection to the PostgreSQL store was lost; try again")
            )

    def abort(self) -> None:
        """Roll back at once, and lose the connection."""
        self._task.cancel()
        self.lose(silent=False)

    async def _serve(self) -> None:
        try:
            await self._server.hop()
            if not self._server.up:
                self.lose(silent=False)
            elif isinstance(self._work, Read):
                await self._read(self._work)
            elif not self._gone:
                await self._write(self._work)
        finally:
            self._unlock()
            if self in self._server.requests:
                self._server.requests.remove(self)

    async def _read(self, work: Read) -> None:
        self.begun = True
        await asyncio.sleep(self._server.pause())
        outcome = _run(work.look)
        await self._server.hop()
        self._deliver(outcome)

    async def _write(self, work: Write) -> None:
        server = self._server
        self.begun = True
        for key in work.locks:
            lock = server.lock(key)
            await lock.acquire()
            self._locked.append(lock)
        await asyncio.sleep(server.pause())
        commit = _run(work.execute)
        await server.hop()
        if not callable(commit):
            self._deliver(commit)
        elif await self._commit_arrives():
            await asyncio.sleep(server.pause(0.005))
            outcome = self._commit(commit)
            self._unlock()
            await server.hop()
            self._deliver(outcome)

    async def _commit_arrives(self) -> bool:
        """Wait for COMMIT from the client; False: it never arrives."""
        server = self._server
        await asyncio.sleep(server.pause(0.001))
        if self._client_is_gone():
            # PostgreSQL detects the loss late and keeps the locks until then.
            await asyncio.sleep(server.pause(0.05))
            return False
        await server.hop()
        return not self._client_is_gone() or server.draw.random() >= 0.5

    def _client_is_gone(self) -> bool:
        # A method, because the value changes while one of its callers waits.
        return self._gone

    def _commit(self, commit: Callable[[], object]) -> object:
        server = self._server
        if server.fault and server.draw.random() < 0.6:
            return StorageFullError("the disk of the PostgreSQL store is full; try again")
        server.commits += 1
        return _run(commit)

    def _unlock(self) -> None:
        while self._locked:
            self._locked.pop().release()

    def _deliver(self, outcome: object) -> None:
        if self._gone or self.answer.done():
            return
        if isinstance(outcome, StorageError):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)


def _run(work: Callable[[], object]) -> object:
    try:
        return work()
    except StorageError as exc:
        return exc


def _retrieve(answer: asyncio.Future[Any]) -> None:
    if not answer.cancelled():
        answer.exception()
