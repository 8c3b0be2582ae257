"""Group commit for SQLite: one thread that commits all waiting writes in one transaction.

Writes that arrive while a transaction is synced to disk form the next group, so the latency of
the disk determines the size of the groups, and a single write on an idle store starts at once.

The thread uses ``sqlite3`` directly. With aiosqlite every statement would switch threads, and
a group must run in one piece.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.sqlite.batch import Batch, Counters, Touched
from sagastore_server.sqlite.errors import translated
from sagastore_server.sqlite.index_terms import FtsColumns, IndexedFields
from sagastore_server.sqlite.migration_state import load_state
from sagastore_server.sqlite.pending import load_pending
from sagastore_server.sqlite.queries import QUERIES
from sagastore_server.storage.changes import Changes
from sagastore_server.storage.errors import StorageError, UnavailableError
from sagastore_server.storage.load import OnGroup, unheard
from sagastore_server.storage.model import Store

MAX_GROUP_ROWS = 2000
"""Rows at which a group is complete. Bounds the time that a single save can wait."""

T = TypeVar("T")
_NONE: Mapping[IndexedFields, FtsColumns] = MappingProxyType({})
_Outcome = object
_DATA_ERRORS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    ValueError,
    OverflowError,
)
"""Errors that one bad row can cause, in contrast to a full disk or a lost file."""


class _Write(NamedTuple):
    ids: Sequence[str]
    sessions: Sequence[str]
    files: Sequence[str]
    apply: Callable[[Changes], object]
    future: asyncio.Future[Any]
    terms: Mapping[IndexedFields, FtsColumns]

    @property
    def rows(self) -> int:
        """Messages and file records that it touches."""
        return len(self.ids) + len(self.files)


class _Task(NamedTuple):
    run: Callable[[sqlite3.Connection], object]
    future: asyncio.Future[Any]
    in_transaction: bool


class _Group(NamedTuple):
    """Statistics of a committed group."""

    writes: int
    rows: int
    seconds: float


class SQLiteGroupWriter:
    """The only writer of a SQLite store. Applies writes in the order of submission, in groups.

    * A group that fails because of one bad row is retried write by write, so the others succeed.
    * After a failed transaction, no group starts before the committed counters are read again.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        on_commit: Callable[[int], None],
        on_group: OnGroup = unheard,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """Start the thread. It alone uses ``connection`` until ``close`` returns.

        Args:
            connection: The writing connection.
            on_commit: Called on the event loop with the new ``committed``, once per group, before
                the callers of the group get their results.
            on_group: Called on the event loop for each committed group.
            tracer: Records a span for each write.

        """
        self._connection = connection
        self._on_commit = on_commit
        self._on_group = on_group
        self._tracer = tracer
        self._waiting: queue.SimpleQueue[_Write | _Task | None] = queue.SimpleQueue()
        self._next_items: list[_Task | None] = []
        """The item that ended a group and is next. Used by the thread only."""
        self._counters = _read_counters(connection)
        self._groups: list[_Group] = []
        """Committed groups that are not reported yet. Used by the thread only."""
        self._uncertain = False
        """A transaction failed: read the counters again before the next group."""
        self.committed = self._counters.revision
        """The greatest revision on disk. Used by the event loop only."""
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    async def submit(
        self,
        ids: Sequence[str],
        sessions: Sequence[str],
        apply: Callable[[Changes], T],
        terms: Mapping[IndexedFields, FtsColumns] = _NONE,
        files: Sequence[str] = (),
    ) -> T:
        """Run ``apply`` in the next group and return its result once it is on disk.

        A caller that is cancelled before the group begins has written nothing.

        Args:
            ids: The ids that ``apply`` touches.
            sessions: The sessions that ``apply`` touches, apart from those of stored messages.
            apply: Applies the write.
            terms: Index terms of contents it stores, as far as they are known.
            files: The ids of file records that ``apply`` touches.

        Raises:
            StorageError: Any error of ``apply``; StorageFullError, UnavailableError or
                CorruptStoreError if the group cannot be committed.

        """
        if self._closing:
            raise UnavailableError("the store is closing; try again")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.put(_Write(ids, sessions, files, apply, future, terms))
        with self._tracer.step("sqlite.commit", {"db.system.name": "sqlite"}):
            return cast("T", await future)

    @property
    def rows(self) -> int:
        """Number of messages on disk."""
        return self._counters.rows

    @property
    def waiting(self) -> int:
        """Number of writes that are in no group yet."""
        return self._waiting.qsize()

    async def run_between_groups(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Call ``run`` with the connection while no transaction is open.

        Raises:
            StorageError: As ``submit``.

        """
        return await self._send(run, in_transaction=False)

    async def run_in_transaction(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Call ``run`` in a separate transaction between two groups.

        ``run`` may assign revisions or change the migration state. The next group uses the
        values that it stored.

        Raises:
            StorageError: As ``submit``; nothing has changed.

        """
        return await self._send(run, in_transaction=True)

    async def flush(self) -> None:
        """Wait until every write submitted before has its result.

        Raises:
            StorageError: As ``submit``; the state on disk is unknown.

        """
        await self.run_between_groups(lambda _: self._reload_if_uncertain())

    async def _send(self, run: Callable[[sqlite3.Connection], T], *, in_transaction: bool) -> T:
        if self._closing:
            raise UnavailableError("the store is closing; try again")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.put(_Task(run, future, in_transaction))
        return cast("T", await future)

    async def close(self) -> None:
        """Refuse new writes, commit the waiting ones, and end the thread."""
        if not self._closing:
            self._closing = True
            self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while (item := self._next()) is not None:
            if isinstance(item, _Task):
                self._report([item], [self._run_task(item)])
            elif group := self._group(item):
                self._report(group, self._commit(group))

    def _next(self) -> _Write | _Task | None:
        if self._next_items:
            return self._next_items.pop()
        return self._waiting.get()

    def _group(self, first: _Write) -> list[_Write]:
        """Return ``first`` and the writes waiting behind it, up to the size of a group."""
        group: list[_Write] = []
        rows = 0
        item: _Write | _Task | None = first
        while isinstance(item, _Write):
            if not item.future.cancelled():
                group.append(item)
                rows += item.rows
            if rows >= MAX_GROUP_ROWS:
                return group
            try:
                item = self._waiting.get_nowait()
            except queue.Empty:
                return group
        self._next_items.append(item)
        return group

    def _report(self, group: Sequence[_Write | _Task], outcomes: list[_Outcome]) -> None:
        groups, self._groups = self._groups, []
        # The loop is closed only if the process ends without close().
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(
                self._deliver, group, outcomes, self._counters.revision, groups
            )

    def _deliver(
        self,
        group: Sequence[_Write | _Task],
        outcomes: list[_Outcome],
        revision: int,
        groups: list[_Group],
    ) -> None:
        try:
            if revision > self.committed:
                self.committed = revision
                self._on_commit(revision)
        finally:
            _answer(group, outcomes)
        for committed in groups:
            self._on_group(Store.SQLITE, *committed)

    def _run_task(self, task: _Task) -> _Outcome:
        try:
            if task.in_transaction:
                return self._run_in_transaction(task.run)
            return task.run(self._connection)
        except Exception as exc:  # noqa: BLE001 - every error goes to the caller
            return _public_error(exc)

    def _run_in_transaction(self, run: Callable[[sqlite3.Connection], object]) -> object:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            outcome = run(self._connection)
            self._connection.execute("COMMIT")
        finally:
            self._recover()
        return outcome

    def _commit(self, group: list[_Write]) -> list[_Outcome]:
        try:
            return self._commit_once(group)
        except Exception as exc:  # noqa: BLE001 - every error goes to the callers
            self._recover()
            if len(group) > 1 and isinstance(exc, _DATA_ERRORS):
                return [outcome for write in group for outcome in self._commit([write])]
            return [_public_error(exc)] * len(group)

    def _commit_once(self, group: list[_Write]) -> list[_Outcome]:
        connection = self._connection
        self._reload_if_uncertain()
        began = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        ids = {key for write in group for key in write.ids}
        sessions = {key for write in group for key in write.sessions}
        terms: dict[IndexedFields, FtsColumns] = {}
        for write in group:
            terms.update(write.terms)
        files = {key for write in group for key in write.files}
        touched = Touched(ids, sessions, files)
        batch = Batch(connection, self._counters, time.time_ns() // 1000, touched, terms)
        outcomes = [_outcome(write, batch.changes) for write in group]
        counters = batch.flush()
        connection.execute("COMMIT")
        self._counters = counters
        rows = sum(write.rows for write in group)
        self._groups.append(_Group(len(group), rows, time.perf_counter() - began))
        return outcomes

    def _recover(self) -> None:
        """Roll back a failed transaction and read what was committed."""
        self._uncertain = True
        with contextlib.suppress(sqlite3.Error, StorageError):
            self._reload_if_uncertain()

    def _reload_if_uncertain(self) -> None:
        # Nothing may be written before this succeeds: a revision could be assigned twice, or a
        # change could be missing from the journal.
        if self._uncertain:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._counters = _read_counters(self._connection)
            self._uncertain = False


def _read_counters(connection: sqlite3.Connection) -> Counters:
    (revision,) = connection.execute(QUERIES["get_state"], ("revision",)).fetchone()
    (rows,) = connection.execute(QUERIES["get_state"], ("messages",)).fetchone()
    journals = load_state(connection).phase.journals
    return Counters(revision, rows, journals, load_pending(connection))


def _outcome(write: _Write, changes: Changes) -> _Outcome:
    """Apply one write. Its error does not affect the other writes of the group."""
    try:
        return write.apply(changes)
    except StorageError as exc:
        return exc


def _public_error(error: Exception) -> Exception:
    if isinstance(error, sqlite3.Error):
        public = translated(error)
        public.__cause__ = error
        return public
    return error


def _answer(group: Sequence[_Write | _Task], outcomes: list[_Outcome]) -> None:
    for write, outcome in zip(group, outcomes, strict=True):
        if write.future.done():
            continue
        if isinstance(outcome, Exception):
            write.future.set_exception(outcome)
        else:
            write.future.set_result(outcome)
