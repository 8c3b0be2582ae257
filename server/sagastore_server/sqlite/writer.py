"""The one writer: a thread that commits everything that is waiting in one transaction.

While one transaction is being synced to disk, the next writes gather; so the disk
decides how large the groups are, and a single write waits for nobody. This thread
talks to ``sqlite3`` itself: a group must run as one piece on the connection's
thread, which aiosqlite, with a hop between threads for every statement, does not do.
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
from sagastore_server.sqlite.batch import Batch, Counters
from sagastore_server.sqlite.errors import translated
from sagastore_server.sqlite.index_terms import FtsColumns, IndexedFields
from sagastore_server.sqlite.migration_state import load_state
from sagastore_server.sqlite.queries import QUERIES
from sagastore_server.storage.changes import Changes
from sagastore_server.storage.errors import StorageError, UnavailableError
from sagastore_server.storage.load import OnGroup, unheard
from sagastore_server.storage.model import Store

MAX_GROUP_ROWS = 2000
"""Rows after which a group takes no more: bounds how long a single save can wait."""

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
"""What a single bad row causes, as opposed to a full disk or a lost file."""


class _Write(NamedTuple):
    ids: Sequence[str]
    apply: Callable[[Changes], object]
    future: asyncio.Future[Any]
    terms: Mapping[IndexedFields, FtsColumns]


class _Task(NamedTuple):
    run: Callable[[sqlite3.Connection], object]
    future: asyncio.Future[Any]
    in_transaction: bool


class _Group(NamedTuple):
    """A group that was committed."""

    writes: int
    rows: int
    seconds: float


class SQLiteGroupWriter:
    """Applies writes in the order in which they are submitted, in groups."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        on_commit: Callable[[int], None],
        on_group: OnGroup = unheard,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """Take over ``connection``: only this object uses it until ``close`` returns.

        ``on_commit`` is called on the event loop with ``committed`` when that has grown,
        once for each group, before the callers of the group are told. ``on_group`` hears of
        each group, there as well.
        """
        self._connection = connection
        self._on_commit = on_commit
        self._on_group = on_group
        self._tracer = tracer
        self._waiting: queue.SimpleQueue[_Write | _Task | None] = queue.SimpleQueue()
        self._put_back: list[_Task | None] = []
        """What ended a group and is next; the thread's own."""
        self._counters = _read_counters(connection)
        self._groups: list[_Group] = []
        """Committed, and not told of yet; the thread's own."""
        self._uncertain = False
        """What was committed must be read again before the next group."""
        self.committed = self._counters.revision
        """The greatest revision on disk; the event loop's own."""
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    async def submit(
        self,
        ids: Sequence[str],
        apply: Callable[[Changes], T],
        terms: Mapping[IndexedFields, FtsColumns] = _NONE,
    ) -> T:
        """Run ``apply`` in the next group and return its result once it is on disk.

        ``ids`` are those that it touches; ``terms`` are known of what it writes. A caller
        that is cancelled before the group begins has written nothing.

        Raises:
            StorageError: Whatever ``apply`` raises; StorageFullError,
                UnavailableError or CorruptStoreError if the group cannot be committed.

        """
        if self._closing:
            raise UnavailableError("the store is closing; try again")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.put(_Write(ids, apply, future, terms))
        with self._tracer.step("sqlite.commit", {"db.system.name": "sqlite"}):
            return cast("T", await future)

    @property
    def last_number(self) -> int:
        """About how many rows there are: the number of the last, among those on disk."""
        return self._counters.number

    @property
    def waiting(self) -> int:
        """How many writes are in no group yet."""
        return self._waiting.qsize()

    async def run_between_groups(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Run something on the connection while no transaction is under way on it.

        Raises:
            StorageError: As ``submit``.

        """
        return await self._send(run, in_transaction=False)

    async def run_in_transaction(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Run something in a transaction of its own between two groups.

        It may give out revisions, or change the state of the migration: the next group
        goes on from what it has stored.

        Raises:
            StorageError: As ``submit``; nothing has changed.

        """
        return await self._send(run, in_transaction=True)

    async def flush(self) -> None:
        """Wait until everything submitted before is on disk, or has failed, and is told.

        Raises:
            StorageError: As ``submit``; what is on disk is not known.

        """
        await self.run_between_groups(lambda _: self._be_certain())

    async def _send(self, run: Callable[[sqlite3.Connection], T], *, in_transaction: bool) -> T:
        if self._closing:
            raise UnavailableError("the store is closing; try again")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.put(_Task(run, future, in_transaction))
        return cast("T", await future)

    async def close(self) -> None:
        """Commit what is waiting, refuse what comes, and end the thread."""
        if not self._closing:
            self._closing = True
            self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while (item := self._next()) is not None:
            if isinstance(item, _Task):
                self._tell([item], [self._errand(item)])
            elif group := self._group(item):
                self._tell(group, self._commit(group))

    def _next(self) -> _Write | _Task | None:
        if self._put_back:
            return self._put_back.pop()
        return self._waiting.get()

    def _group(self, first: _Write) -> list[_Write]:
        """Return ``first`` and the writes that wait behind it, as far as a group goes."""
        group: list[_Write] = []
        rows = 0
        item: _Write | _Task | None = first
        while isinstance(item, _Write):
            if not item.future.cancelled():
                group.append(item)
                rows += len(item.ids)
            if rows >= MAX_GROUP_ROWS:
                return group
            try:
                item = self._waiting.get_nowait()
            except queue.Empty:
                return group
        self._put_back.append(item)
        return group

    def _tell(self, group: Sequence[_Write | _Task], outcomes: list[_Outcome]) -> None:
        groups, self._groups = self._groups, []
        # The loop is gone only if the process is ending without close().
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

    def _errand(self, errand: _Task) -> _Outcome:
        try:
            if errand.in_transaction:
                return self._transact(errand.run)
            return errand.run(self._connection)
        except Exception as exc:  # noqa: BLE001 - the caller must be told, whatever it is
            return _failure(exc)

    def _transact(self, run: Callable[[sqlite3.Connection], object]) -> object:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            outcome = run(self._connection)
            self._connection.execute("COMMIT")
        finally:
            self._recover()
        return outcome

    def _commit(self, group: list[_Write]) -> list[_Outcome]:
        try:
            return self._attempt(group)
        except Exception as exc:  # noqa: BLE001 - every caller must be told, whatever it is
            self._recover()
            if len(group) > 1 and isinstance(exc, _DATA_ERRORS):
                return [outcome for write in group for outcome in self._commit([write])]
            return [_failure(exc)] * len(group)

    def _attempt(self, group: list[_Write]) -> list[_Outcome]:
        connection = self._connection
        self._be_certain()
        began = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        ids = {key for write in group for key in write.ids}
        terms: dict[IndexedFields, FtsColumns] = {}
        for write in group:
            terms.update(write.terms)
        batch = Batch(connection, self._counters, time.time_ns() // 1000, ids, terms)
        outcomes = [_outcome(write, batch.changes) for write in group]
        counters = batch.flush()
        connection.execute("COMMIT")
        self._counters = counters
        rows = sum(len(write.ids) for write in group)
        self._groups.append(_Group(len(group), rows, time.perf_counter() - began))
        return outcomes

    def _recover(self) -> None:
        """Leave a failed transaction, and learn what really was committed."""
        self._uncertain = True
        with contextlib.suppress(sqlite3.Error, StorageError):
            self._be_certain()

    def _be_certain(self) -> None:
        # Nothing may be written before this succeeds: a revision could be given out
        # twice, or a change be missing from the journal.
        if self._uncertain:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._counters = _read_counters(self._connection)
            self._uncertain = False


def _read_counters(connection: sqlite3.Connection) -> Counters:
    (revision,) = connection.execute(QUERIES["get_state"], ("revision",)).fetchone()
    (number,) = connection.execute(QUERIES["last_number"]).fetchone()
    return Counters(revision, number, load_state(connection).phase.journals)


def _outcome(write: _Write, changes: Changes) -> _Outcome:
    """Apply one write; a refusal is its own and spoils no neighbour."""
    try:
        return write.apply(changes)
    except StorageError as exc:
        return exc


def _failure(error: Exception) -> Exception:
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
