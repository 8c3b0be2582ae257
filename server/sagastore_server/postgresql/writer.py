"""Group commit for PostgreSQL: writes that wait together share a transaction.

Writes that arrive during a transaction form the next group, so the latency of the database
determines the size of the groups, and a single write on an idle store starts at once. A second
transaction starts concurrently in three cases:

* the running transaction writes a large batch (`LARGE_ROWS`);
* it takes longer than `SHORT_SECONDS`;
* at least `LARGE_ROWS` rows are waiting.

A write is acknowledged after its transaction has committed.
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

from sagastore_server.interfaces.consistency import WalPosition, note
from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.postgresql.batch import LostRaceError, flush, load
from sagastore_server.postgresql.compatibility import Compatibility
from sagastore_server.postgresql.errors import (
    AGAIN,
    is_connection_loss,
    is_data_error,
    translated,
)
from sagastore_server.postgresql.pool import Connection, Pool
from sagastore_server.postgresql.rows import SearchColumns
from sagastore_server.runtime.supervisor import Supervisor
from sagastore_server.runtime.worker_pool import WorkerPool
from sagastore_server.storage.changes import Changes
from sagastore_server.storage.errors import StorageError, UnavailableError
from sagastore_server.storage.load import OnGroup, unheard
from sagastore_server.storage.model import Store

MAX_GROUP_ROWS = 1000
"""Rows at which a group is complete. Bounds the time that a single save can wait."""

LARGE_ROWS = 256
"""Rows from which a concurrent transaction pays off, whether they are waiting or being written.
Fewer rows join the next group instead: a transaction costs as much as dozens of rows."""

SHORT_SECONDS = 0.05
"""Seconds after which another transaction starts in any case: the running one may be waiting for a
lock."""

MIN_ATTEMPTS = 8
"""Minimum number of attempts for a group that conflicts with other servers. Each conflict means
that another server made progress, so attempts also continue until ``patience`` has passed."""

_LONGEST_PAUSE = 0.1
"""Maximum seconds between two attempts. A permanent conflict, such as a sequence that is behind its
table, should take little time from other groups."""

T = TypeVar("T")
_Outcome = object
_log = logging.getLogger(__name__)


class _Write(NamedTuple):
    ids: Sequence[str]
    sessions: Sequence[str]
    files: Sequence[str]
    apply: Callable[[Changes], object]
    known: Mapping[str, SearchColumns]
    """Search columns of contents, as far as they are known."""
    future: asyncio.Future[Any]

    @property
    def rows(self) -> int:
        """Messages and file records that it touches."""
        return len(self.ids) + len(self.files)


class _Committed(NamedTuple):
    """A group that is committed, or has failed."""

    outcomes: list[_Outcome]
    position: WalPosition | None
    """A position that includes it; None: not told."""


class _Attempt:
    """Progress of an attempt to commit a group."""

    def __init__(self) -> None:
        self.committing = False
        """Whether COMMIT was sent. After that, a lost connection leaves the outcome unknown."""


class PostgreSQLGroupWriter:
    """Writer of a PostgreSQL store. Applies writes in groups, in a few concurrent transactions.

    * A group that fails because of one bad value is retried write by write, so the others succeed.
    * A group that conflicts with another server, or finds a dead connection before COMMIT, is
      retried. After COMMIT was sent it is not.
    """

    def __init__(
        self,
        pool: Pool,
        worker_pool: WorkerPool,
        writers: int,
        patience: float,
        compatibility: Compatibility,
        *,
        on_group: OnGroup = unheard,
        supervisor: Supervisor | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """Start ``writers`` background tasks, each of which runs one transaction at a time.

        Args:
            pool: The connections.
            worker_pool: Computes search columns.
            writers: Maximum number of concurrent transactions.
            patience: Seconds after which a write that has not started fails, and after which a
                group is not retried.
            compatibility: Says whether this server may write.
            on_group: Called for each committed group.
            supervisor: Runs the background tasks.
            tracer: Records a span for each write.

        """
        self._pool = pool
        self._worker_pool = worker_pool
        self._on_group = on_group
        self._tracer = tracer
        self._patience = patience
        self._compatibility = compatibility
        self._waiting: deque[_Write] = deque()
        self._rows = 0
        """Rows of the waiting writes."""
        self._short: set[object] = set()
        """Running transactions that are expected to end soon."""
        self._idle: list[asyncio.Future[None]] = []
        self._overdue: asyncio.TimerHandle | None = None
        """Timer that starts another transaction after `SHORT_SECONDS`."""
        self._closing = False
        supervisor = supervisor or Supervisor()
        self._tasks = [
            supervisor.start(f"postgresql-writer-{number}", self._run)
            for number in range(1, writers + 1)
        ]

    async def submit(
        self,
        ids: Sequence[str],
        sessions: Sequence[str],
        apply: Callable[[Changes], T],
        known: Mapping[str, SearchColumns],
        files: Sequence[str] = (),
    ) -> T:
        """Run ``apply`` in a group and return its result once it is committed.

        The position of the commit is noted for the running call.

        A caller that is cancelled before the group begins has written nothing.

        Args:
            ids: The ids that ``apply`` touches.
            sessions: The sessions that ``apply`` touches, apart from those of stored messages.
            apply: Applies the write.
            known: Search columns by content, as far as they are known.
            files: The ids of file records that ``apply`` touches.

        Raises:
            StorageError: Any error of ``apply``; StorageFullError, UnavailableError or
                CorruptStoreError if the group cannot be committed.

        """
        if self._closing:
            raise UnavailableError("the store is closing; try again")
        loop = asyncio.get_running_loop()
        write = _Write(ids, sessions, files, apply, known, loop.create_future())
        self._waiting.append(write)
        self._rows += write.rows
        self._begin_soon(loop)
        overdue = loop.call_later(self._patience, self._expire, write)
        try:
            with self._tracer.step("postgresql.commit", {"db.system.name": "postgresql"}):
                result, position = await write.future
        finally:
            overdue.cancel()
        # In the task of the call, whose position it is. The group is committed in another one.
        note(position)
        return cast("T", result)

    @property
    def waiting(self) -> int:
        """Number of writes that are in no group yet."""
        return len(self._waiting)

    async def close(self) -> None:
        """Refuse new writes, commit the waiting ones, and end the background tasks."""
        self._closing = True
        if self._overdue is not None:
            self._overdue.cancel()
        self._wake(len(self._idle))
        await asyncio.gather(*(task.wait() for task in self._tasks))

    def _expire(self, write: _Write) -> None:
        # A write that has started is not in the queue; its transaction has its own time limits.
        if write in self._waiting:
            self._waiting.remove(write)
            self._rows -= write.rows
            overloaded = UnavailableError("the PostgreSQL store is overloaded; try again")
            _deliver(write, overloaded, None)

    async def _run(self) -> None:
        while True:
            group = self._next_group()
            if group:
                transaction = object()
                if sum(write.rows for write in group) < LARGE_ROWS:
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
        """Start a transaction for the waiting writes, now or after `SHORT_SECONDS`."""
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
            self._rows -= write.rows
            if not write.future.done():
                group.append(write)
                rows += write.rows
        if self._overdue is not None and not self._waiting:
            self._overdue.cancel()
            self._overdue = None
        return group

    async def _commit(self, group: list[_Write]) -> None:
        """Commit a group and give every caller its result or error."""
        try:
            committed = await self._outcomes(group)
        except Exception as exc:  # noqa: BLE001 - every error goes to the callers
            if len(group) > 1 and is_data_error(exc):
                for write in group:
                    await self._commit([write])
                return
            committed = _Committed([_public_error(exc)] * len(group), None)
        except BaseException:
            for write in group:
                write.future.cancel()
            raise
        for write, outcome in zip(group, committed.outcomes, strict=True):
            _deliver(write, outcome, committed.position)

    async def _outcomes(self, group: list[_Write]) -> _Committed:
        until = time.monotonic() + self._patience
        number = 0
        while True:
            number += 1
            attempt = _Attempt()
            try:
                return await self._commit_once(group, attempt, copy=number == 1)
            except (LostRaceError, asyncpg.UniqueViolationError, *AGAIN) as exc:
                if number >= MIN_ATTEMPTS and (self._closing or time.monotonic() >= until):
                    raise
                _log.debug("retrying a group of writes: %s", type(exc).__name__)
            except Exception as exc:
                # The connection had died while idle: no COMMIT was sent.
                if attempt.committing or number > 1 or not is_connection_loss(exc):
                    raise
            await asyncio.sleep(_pause_after(number))

    async def _commit_once(
        self, group: list[_Write], attempt: _Attempt, *, copy: bool
    ) -> _Committed:
        began = time.perf_counter()
        async with self._pool.connection() as connection, self._pool.write(connection) as commit:
            outcomes = await self._apply(connection, group, copy=copy)
            attempt.committing = True
        rows = sum(write.rows for write in group)
        self._on_group(Store.POSTGRESQL, len(group), rows, time.perf_counter() - began)
        return _Committed(outcomes, commit.position)

    async def _apply(
        self, connection: Connection, group: list[_Write], *, copy: bool
    ) -> list[_Outcome]:
        changes = await load(
            connection,
            self._compatibility,
            [write.ids for write in group],
            [write.sessions for write in group],
            [write.files for write in group],
        )
        outcomes = [_outcome(write, changes) for write in group]
        known: dict[str, SearchColumns] = {}
        for write in group:
            known.update(write.known)
        await flush(connection, changes, self._worker_pool, known, copy=copy)
        return outcomes


def _pause_after(number: int) -> float:
    """Return the seconds before the next attempt: 0 after the first, then up to a growing limit."""
    longest = _LONGEST_PAUSE * min(1.0, (number - 1) / MIN_ATTEMPTS)
    return random.uniform(0, longest)  # noqa: S311 - not a secret


def _outcome(write: _Write, changes: Changes) -> _Outcome:
    """Apply one write. Its error does not affect the other writes of the group."""
    try:
        return write.apply(changes)
    except StorageError as exc:
        return exc


def _public_error(error: Exception) -> Exception:
    if isinstance(error, StorageError):
        return error
    if isinstance(error, LostRaceError):
        return UnavailableError("the write repeatedly conflicted with other writes; try again")
    public = translated(error)
    public.__cause__ = error
    return public


def _deliver(write: _Write, outcome: _Outcome, position: WalPosition | None) -> None:
    if write.future.done():
        return
    if isinstance(outcome, Exception):
        write.future.set_exception(outcome)
    else:
        write.future.set_result((outcome, position))
