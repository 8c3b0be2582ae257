"""Group commit: writes that wait together share a transaction.

While a transaction is under way, the next writes gather; so the database decides how large
the groups are, and a single write waits for nobody. Another is begun beside it when it is that
of a large batch, when it takes long, or when much waits. A write is acknowledged after its
transaction has been committed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import asyncpg

from sagastore_server.interfaces import tracing
from sagastore_server.postgresql.batch import LostRaceError, flush, load
from sagastore_server.postgresql.errors import (
    AGAIN,
    is_connection_loss,
    is_data_error,
    translated,
)
from sagastore_server.postgresql.pool import Connection, Pool
from sagastore_server.postgresql.queries import QUERIES
from sagastore_server.postgresql.rows import SearchColumns
from sagastore_server.runtime.supervisor import Supervisor
from sagastore_server.runtime.worker_pool import WorkerPool
from sagastore_server.storage.changes import Changes
from sagastore_server.storage.errors import StorageError, UnavailableError
from sagastore_server.storage.load import OnGroup, unheard
from sagastore_server.storage.model import Store

MAX_GROUP_ROWS = 1000
"""Rows after which a group takes no more: bounds how long a single save can wait."""

LARGE_ROWS = 256
"""Rows that are worth a transaction beside another, and of one that is worth another beside it.
What is less is better added to the next: a transaction costs as much as dozens of rows."""

SHORT_SECONDS = 0.05
"""After which another is begun in any case: a transaction that waits for a lock, say, must hold
up no others."""

MIN_ATTEMPTS = 8
"""How often at least a group that lost against other servers is tried. Each time somebody else
has got on, so it is tried for as long as a write may wait to begin, as well."""

_LONGEST_PAUSE = 0.1
"""Seconds before a group is tried again, at most: what always stands in its way, as a sequence
behind its table does, is to take little time from others."""

T = TypeVar("T")
_Outcome = object
_log = logging.getLogger(__name__)


class _Write(NamedTuple):
    ids: Sequence[str]
    apply: Callable[[Changes], object]
    known: Mapping[str, SearchColumns]
    """What is to be indexed of some contents, made beforehand."""
    future: asyncio.Future[Any]


class _Attempt:
    """How far an attempt to commit a group came."""

    def __init__(self) -> None:
        self.committing = False
        """Whether COMMIT was sent: from then on a lost connection leaves the outcome open."""


class PostgreSQLGroupWriter:
    """Applies writes in groups, a few transactions at a time."""

    def __init__(
        self,
        pool: Pool,
        worker_pool: WorkerPool,
        writers: int,
        patience: float,
        on_group: OnGroup = unheard,
        *,
        supervisor: Supervisor | None = None,
    ) -> None:
        """Write through ``pool`` with up to ``writers`` transactions at a time.

        A write that has not begun after ``patience`` seconds is given up, and a group that
        began so long ago is not begun anew. ``on_group`` hears of each group that was committed.
        """
        self._pool = pool
        self._worker_pool = worker_pool
        self._on_group = on_group
        self._patience = patience
        self._waiting: deque[_Write] = deque()
        self._rows = 0
        """How many rows the writes that wait touch."""
        self._short: set[object] = set()
        """Transactions under way whose end is worth waiting for."""
        self._idle: list[asyncio.Future[None]] = []
        self._overdue: asyncio.TimerHandle | None = None
        """Begins another transaction; runs while something may wait too long."""
        self._closing = False
        supervisor = supervisor or Supervisor()
        self._tasks = [
            supervisor.start(f"postgresql-writer-{number}", self._run)
            for number in range(1, writers + 1)
        ]

    async def submit(
        self, ids: Sequence[str], apply: Callable[[Changes], T], known: Mapping[str, SearchColumns]
    ) -> T:
        """Run ``apply`` in a group and return its result once it is committed.

        ``ids`` are those that it touches; ``known`` is what is to be indexed of some of the
        contents that it stores. A caller that is cancelled before the group begins has
        written nothing.

        Raises:
            StorageError: Whatever ``apply`` raises; StorageFullError,
                UnavailableError or CorruptStoreError if the group cannot be committed.

        """
        if self._closing:
            raise UnavailableError("the store is closing; try again")
        loop = asyncio.get_running_loop()
        write = _Write(ids, apply, known, loop.create_future())
        self._waiting.append(write)
        self._rows += len(ids)
        self._begin_soon(loop)
        overdue = loop.call_later(self._patience, self._give_up, write)
        try:
            with tracing.step("postgresql.commit", **{"db.system.name": "postgresql"}):
                return cast("T", await write.future)
        finally:
            overdue.cancel()

    @property
    def waiting(self) -> int:
        """How many writes are in no group yet."""
        return len(self._waiting)

    async def close(self) -> None:
        """Commit what is waiting, refuse what comes, and end."""
        self._closing = True
        if self._overdue is not None:
            self._overdue.cancel()
        self._wake(len(self._idle))
        await asyncio.gather(*(task.wait() for task in self._tasks))

    def _give_up(self, write: _Write) -> None:
        # A write that is under way is no longer in the queue, and has its own time limits.
        if write in self._waiting:
            self._waiting.remove(write)
            self._rows -= len(write.ids)
            _deliver(write, UnavailableError("the PostgreSQL store does not keep up; try again"))

    async def _run(self) -> None:
        while True:
            group = self._next_group()
            if group:
                transaction = object()
                if sum(len(write.ids) for write in group) < LARGE_ROWS:
                    self._short.add(transaction)
                try:
                    await self._commit(group)
                finally:
                    self._short.discard(transaction)
            elif self._closing:
                return
            else:
                idle = asyncio.get_running_loop().create_future()
                self._idle.append(idle)
                await idle

    def _begin_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """See to it that a transaction is begun for what waits, now or when it is time to."""
        if not self._short or self._rows >= LARGE_ROWS:
            self._wake(1)
        elif self._overdue is None:
            self._overdue = loop.call_later(SHORT_SECONDS, self._begin_overdue)

    def _begin_overdue(self) -> None:
        self._overdue = None
        self._short.clear()
        self._wake(1)

    def _wake(self, writers: int) -> None:
        while self._idle and writers:
            idle = self._idle.pop()
            if not idle.done():
                idle.set_result(None)
                writers -= 1

    def _next_group(self) -> list[_Write]:
        group: list[_Write] = []
        rows = 0
        while self._waiting and rows < MAX_GROUP_ROWS:
            write = self._waiting.popleft()
            self._rows -= len(write.ids)
            if not write.future.done():
                group.append(write)
                rows += len(write.ids)
        if self._overdue is not None and not self._waiting:
            self._overdue.cancel()
            self._overdue = None
        return group

    async def _commit(self, group: list[_Write]) -> None:
        """Commit a group and tell every caller, whatever happens."""
        try:
            outcomes = await self._outcomes(group)
        except Exception as exc:  # noqa: BLE001 - every caller must be told, whatever it is
            if len(group) > 1 and is_data_error(exc):
                for write in group:
                    await self._commit([write])
                return
            outcomes = [_failure(exc)] * len(group)
        except BaseException:
            for write in group:
                write.future.cancel()
            raise
        for write, outcome in zip(group, outcomes, strict=True):
            _deliver(write, outcome)

    async def _outcomes(self, group: list[_Write]) -> list[_Outcome]:
        until = time.monotonic() + self._patience
        number = 0
        while True:
            number += 1
            attempt = _Attempt()
            try:
                return await self._attempt(group, attempt, copy=number == 1)
            except (LostRaceError, asyncpg.UniqueViolationError, *AGAIN) as exc:
                if number >= MIN_ATTEMPTS and (self._closing or time.monotonic() >= until):
                    raise
                _log.debug("a group of writes begins anew: %s", type(exc).__name__)
            except Exception as exc:
                # An idle connection had died: nothing was sent that could have been committed.
                if attempt.committing or number > 1 or not is_connection_loss(exc):
                    raise
            await asyncio.sleep(_pause_after(number))

    async def _attempt(
        self, group: list[_Write], attempt: _Attempt, *, copy: bool
    ) -> list[_Outcome]:
        began = time.perf_counter()
        async with (
            self._pool.connection() as connection,
            self._pool.transaction(connection, QUERIES["begin"]),
        ):
            outcomes = await self._apply(connection, group, copy=copy)
            attempt.committing = True
        rows = sum(len(write.ids) for write in group)
        self._on_group(Store.POSTGRESQL, len(group), rows, time.perf_counter() - began)
        return outcomes

    async def _apply(
        self, connection: Connection, group: list[_Write], *, copy: bool
    ) -> list[_Outcome]:
        changes = await load(connection, [write.ids for write in group])
        outcomes = [_outcome(write, changes) for write in group]
        known: dict[str, SearchColumns] = {}
        for write in group:
            known.update(write.known)
        await flush(connection, changes, self._worker_pool, known, copy=copy)
        return outcomes


def _pause_after(number: int) -> float:
    """Return the seconds before a group is tried again: none at first, then more and more."""
    longest = _LONGEST_PAUSE * min(1.0, (number - 1) / MIN_ATTEMPTS)
    return random.uniform(0, longest)  # noqa: S311 - no secret


def _outcome(write: _Write, changes: Changes) -> _Outcome:
    """Apply one write; a refusal is its own and spoils no neighbour."""
    try:
        return write.apply(changes)
    except StorageError as exc:
        return exc


def _failure(error: Exception) -> Exception:
    if isinstance(error, StorageError):
        return error
    if isinstance(error, LostRaceError):
        return UnavailableError("other writes were in the way again and again; try again")
    public = translated(error)
    public.__cause__ = error
    return public


def _deliver(write: _Write, outcome: _Outcome) -> None:
    if write.future.done():
        return
    if isinstance(outcome, Exception):
        write.future.set_exception(outcome)
    else:
        write.future.set_result(outcome)
