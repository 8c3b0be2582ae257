"""SQLiteStorage: the storage contract on one SQLite file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.runtime.read_batcher import ReadBatcher
from sagastore_server.runtime.supervisor import Supervisor, awaited
from sagastore_server.runtime.worker_pool import FEW, SHORT, WorkerPool
from sagastore_server.sqlite import index_terms
from sagastore_server.sqlite.archived_store_guard import (
    StoreRecord,
    refuse_by_name,
    refuse_if_migrating,
)
from sagastore_server.sqlite.checkpoint import Checkpointer
from sagastore_server.sqlite.connection import message_from_row, session_from_row
from sagastore_server.sqlite.file_store import SQLiteFiles
from sagastore_server.sqlite.files import SCHEMA_VERSION
from sagastore_server.sqlite.index_terms import IndexedFields, indexed_fields
from sagastore_server.sqlite.opening import Progress, open_for_writing
from sagastore_server.sqlite.ownership import Ownership
from sagastore_server.sqlite.queries import QUERIES
from sagastore_server.sqlite.readers import READERS, ReaderPool, Row
from sagastore_server.sqlite.reanalysis import Reanalyser
from sagastore_server.sqlite.search import (
    Compiled,
    compile_search,
    enough,
    first_block,
    next_block,
    some,
)
from sagastore_server.sqlite.sessions import compile_list
from sagastore_server.sqlite.writer import SQLiteGroupWriter
from sagastore_server.storage.base import Indexer, PreparedTerms
from sagastore_server.storage.batch_saves import sessions_of
from sagastore_server.storage.changes import Changes
from sagastore_server.storage.errors import (
    NotFoundError,
    SessionNotFoundError,
    StorageError,
    UnavailableError,
)
from sagastore_server.storage.limits import session_page_of
from sagastore_server.storage.load import Load, OnGroup, unheard
from sagastore_server.storage.model import (
    BulkResult,
    Message,
    NewMessage,
    OnConflict,
    Page,
    Position,
    QuarantinedRow,
    SaveResult,
    Store,
    StoreHealth,
)
from sagastore_server.storage.query import Criteria, Scan
from sagastore_server.storage.reanalysis import Reanalysis
from sagastore_server.storage.session_writes import SessionWrites
from sagastore_server.storage.sessions import (
    Session,
    SessionCriteria,
    SessionPage,
    SessionScan,
)
from sagastore_server.storage.validation import MAX_TIMESTAMP, MIN_TIMESTAMP

_OLDEST = Position(MIN_TIMESTAMP - 1, 0)
_NEWEST = Position(MAX_TIMESTAMP + 1, 0)

_T = TypeVar("_T")
_NONE: Mapping[IndexedFields, index_terms.FtsColumns] = MappingProxyType({})
_log = logging.getLogger(__name__)


class SQLiteStorage(SessionWrites, SQLiteFiles):
    """`StorageBackend` on one SQLite file, which this process owns while it is open.

    * A write returns after its transaction is synced to disk (WAL, ``synchronous=FULL``).
    * Writes that wait together share a transaction (``writer``).
    * Reads have their own connections (``readers``). Readers and the writer never wait for each
      other, except briefly while the log restarts (``checkpoint``).
    * ``open`` imports a legacy ``memory.db`` (``legacy``).
    """

    def __init__(
        self,
        path: Path,
        progress: Progress | None = None,
        supervisor: Supervisor | None = None,
        *,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """Create a store on the file at ``path``, which only ``open`` touches.

        Args:
            path: The database file.
            progress: Called during long work in ``open``, from another thread.
            supervisor: Runs the background tasks of the store.
            tracer: Records the spans of reads and commits.

        """
        self._path = path
        self._progress = progress or _unheard
        self._ownership = Ownership(path)
        self._tracer = tracer
        self._readers = ReaderPool(path, tracer)
        self._gets = ReadBatcher(self._get_together)
        self._worker_pool = WorkerPool()
        self._searching = asyncio.Semaphore(READERS - 1)
        self._checkpointer = Checkpointer(path, self._readers, supervisor)
        self._reanalyser = Reanalyser(self._readers, self._worker_pool, supervisor)
        self._connection: sqlite3.Connection | None = None
        self._writer: SQLiteGroupWriter | None = None
        self._on_group: OnGroup = unheard
        self._abandoned = threading.Event()

    async def open(self) -> None:
        """See the contract: creates or upgrades the file, or imports a legacy one.

        Raises:
            MovedError: Its messages have moved to PostgreSQL.
            CannotOpenError: As in the contract; also if the file is under migration. Only
                ``SQLiteSource`` may use such a file.

        """
        refuse_by_name(self._path)
        self._ownership.acquire()
        try:
            await self._open_owned()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """See the contract: leaves the file checkpointed, without side files."""
        await self._close_connections()
        self._ownership.release()

    async def save(
        self,
        draft: NewMessage,
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> SaveResult:
        """See the contract."""
        del everywhere_within  # One store is every store.
        known = await self._index_many((draft,), None)
        return await self._write(
            (draft.id,),
            sessions_of(draft),
            lambda changes: changes.save(draft, if_revision),
            known,
        )

    @property
    def indexer(self) -> Indexer:
        """See the contract."""
        return index_terms.indexed_columns

    async def bulk_save(
        self,
        drafts: Sequence[NewMessage],
        on_conflict: OnConflict,
        terms: PreparedTerms | None = None,
    ) -> BulkResult:
        """See the contract."""
        ids = [draft.id for draft in drafts]
        known = await self._index_many(drafts, terms)
        return await self._write(
            ids,
            sessions_of(*drafts),
            lambda changes: changes.bulk_save(drafts, on_conflict),
            known,
        )

    async def _index_many(
        self, drafts: Sequence[NewMessage], terms: PreparedTerms | None
    ) -> dict[IndexedFields, index_terms.FtsColumns]:
        """Return the terms of drafts; empty if the writer computes them as quickly."""
        if terms is not None and terms.by is index_terms.indexed_columns:
            return dict(zip(map(indexed_fields, drafts), terms.of, strict=True))
        size = sum(len(draft.content) + len(draft.metadata) for draft in drafts)
        if len(drafts) < FEW and size < SHORT:
            return {}
        searched = list(map(indexed_fields, drafts))
        made = await self._worker_pool.map(index_terms.fts_columns, searched)
        return dict(zip(searched, made, strict=True))

    async def delete(self, message_id: str, if_revision: int | None = None) -> None:
        """See the contract."""
        await self._write(
            (message_id,), (), lambda changes: changes.delete(message_id, if_revision)
        )

    async def get(self, message_id: str) -> Message:
        """See the contract."""
        with self._tracer.step("sqlite.read", {"db.system.name": "sqlite"}):
            found = await self._gets.get(message_id)
        if found is None:
            raise NotFoundError(message_id)
        return message_from_row(found)

    async def _get_together(self, message_ids: list[str]) -> dict[str, Row]:
        if len(message_ids) == 1:
            rows = await self._readers.rows(QUERIES["get"], message_ids)
        else:
            wanted = json.dumps(message_ids, ensure_ascii=False)
            rows = await self._readers.rows(QUERIES["batch_get"], (wanted,))
        return {row[0]: row for row in rows}

    async def batch_get(self, message_ids: Sequence[str]) -> dict[str, Message]:
        """See the contract."""
        wanted = json.dumps(list(message_ids), ensure_ascii=False)
        rows = await self._readers.rows(QUERIES["batch_get"], (wanted,))
        return {row[0]: message_from_row(row) for row in rows}

    async def list_session(self, session_id: str, scan: Scan) -> Page:
        """See the contract."""
        first, last = (_NEWEST, _OLDEST) if scan.newest_first else (_OLDEST, _NEWEST)
        name = "session_newest" if scan.newest_first else "session_oldest"
        bounds = (*(scan.after or first), *(scan.until or last))
        return await self._readers.page(
            QUERIES[name], (session_id, *bounds, scan.limit + 1), scan.limit
        )

    async def search(self, criteria: Criteria, scan: Scan) -> Page:
        """See the contract."""
        if criteria.text is not None and criteria.text.condition is None:
            return Page([], more=False)
        with self._reanalyser.searching() as both:
            if len(criteria.metadata or "") < SHORT:
                compiled = compile_search(criteria, scan, both=both)
            else:
                # Its facts take too long for the event loop.
                compiled = await asyncio.to_thread(compile_search, criteria, scan, both=both)
            # A search can take seconds. One connection remains for short reads.
            async with self._searching:
                return await self._search(compiled, scan.limit)

    async def _search(self, compiled: Compiled, limit: int) -> Page:
        page = await self._in_blocks(compiled, limit)
        return page if page is not None else await self._readers.page(*compiled.whole, limit)

    async def _in_blocks(self, compiled: Compiled, limit: int) -> Page | None:
        """Search block by block; None if a lookup of all matches is faster. See ``search``."""
        rows = self._open_writer().rows
        block = first_block(rows)
        if compiled.expression is None:
            return None
        # Counting the matches of a prefix takes as long as reading a block.
        counts = iter((0 if compiled.has_prefix else some(limit), enough(rows, limit)))
        while block:
            statement = compiled.of_block(block, next(counts, 0))
            page, size = await self._readers.page_of_block(*statement, limit)
            if size < 0:
                return None
            if page.more or size < block:
                return page
            block = next_block(block, len(page.messages), rows, limit)
        return None

    async def scan_ids(self, after: str, upto: str, limit: int) -> Page:
        """See the contract."""
        return await self._readers.page(QUERIES["scan_ids"], (after, upto, limit + 1), limit)

    async def last_id(self) -> str | None:
        """See the contract."""
        last: str | None = await self._value("last_id")
        return last

    async def scan_sequences(self, after: int, upto: int, limit: int) -> Page:
        """See the contract."""
        return await self._readers.page(QUERIES["scan_sequences"], (after, upto, limit + 1), limit)

    async def last_sequence(self) -> int:
        """See the contract."""
        last: int = await self._value("last_sequence")
        return last

    async def quarantine(self, after: int, limit: int) -> list[QuarantinedRow]:
        """See the contract."""
        rows = await self._readers.rows(QUERIES["quarantine"], (after, limit))
        return [
            QuarantinedRow(number, key, reason, field, raw.encode())
            for number, key, reason, field, raw in rows
        ]

    async def quarantine_count(self) -> int:
        """See the contract."""
        count: int = await self._value("quarantine_count")
        return count

    async def health(self) -> StoreHealth:
        """See the contract."""
        try:
            [(messages, *others)] = await self._readers.rows(QUERIES["count_records"])
        except StorageError as exc:
            return StoreHealth(Store.SQLITE, False, str(exc), -1, 0)
        return StoreHealth(Store.SQLITE, True, "", messages, SCHEMA_VERSION, *others)

    @property
    def reanalysis(self) -> Reanalysis | None:
        """See the contract."""
        return self._reanalyser.progress

    def observe(self, on_group: OnGroup) -> None:
        """See the contract."""
        self._on_group = on_group

    def loads(self) -> list[Load]:
        """See the contract."""
        writer, readers = self._writer, self._readers
        if writer is None:
            return []
        file_bytes, free = _on_disk(self._path)
        return [
            Load(
                Store.SQLITE,
                writes_waiting=writer.waiting,
                connections=readers.size,
                connections_busy=readers.busy,
                connections_most=READERS,
                connections_wanted=readers.waiting,
                log_bytes=self._checkpointer.log_bytes(),
                file_bytes=file_bytes,
                disk_free_bytes=free,
                reanalysis=self.reanalysis,
            )
        ]

    async def checkpoint(self) -> None:
        """Checkpoint the write-ahead log if its size requires it; also runs in the background."""
        await self._checkpointer.run_once()

    async def _open_owned(self) -> None:
        """Open everything that ``_close_connections`` closes."""
        self._connection = await self._open_file()
        self._writer = SQLiteGroupWriter(
            self._connection, self._on_commit, self._on_group, self._tracer
        )
        await self._readers.open()
        await self._checkpointer.open(self._writer)
        await self._reanalyser.open(self._writer)

    async def _close_connections(self) -> None:
        # These use the writer, which refuses work once it closes.
        await self._reanalyser.stop()
        await self._checkpointer.stop()
        if self._writer is not None:
            await self._writer.close()
            self._writer = None
        await self._worker_pool.close()
        await self._checkpointer.close()
        await self._readers.close()
        if self._connection is not None:
            await asyncio.to_thread(_close_tidily, self._connection)
            self._connection = None

    def _admit(self, path: Path, found: StoreRecord) -> None:
        """Refuse a file that this class cannot use, before anything is changed."""
        refuse_if_migrating(path, found)

    def _on_commit(self, revision: int) -> None:
        """Handle a new greatest revision on disk; see ``SQLiteGroupWriter``."""

    async def _open_file(self) -> sqlite3.Connection:
        """Open the file in a thread. If the caller is cancelled, stop the thread first."""
        work = awaited(
            asyncio.to_thread(
                open_for_writing, self._path, self._report_unless_abandoned, self._admit
            )
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self._abandoned.set()
            with contextlib.suppress(StorageError):
                connection = await work
                await asyncio.to_thread(connection.close)
            raise

    def _report_unless_abandoned(self, what: str, done: int, total: int) -> None:
        if self._abandoned.is_set():
            # The caller is gone; the exception rolls the transaction back.
            raise UnavailableError("the server was stopped while it opened the file")
        self._progress(what, done, total)

    # ------------------------------------------------------------------ sessions

    async def _change(
        self,
        ids: Sequence[str],
        sessions: Sequence[str],
        apply: Callable[[Changes], _T],
        messages: Sequence[NewMessage] = (),
    ) -> _T:
        known = await self._index_many(messages, None)
        return await self._write(ids, sessions, apply, known)

    async def _deletable(self, session_id: str, limit: int) -> tuple[int, list[str]]:
        rows = await self._readers.rows(QUERIES["deletable"], (session_id, limit))
        upto = rows[0][0] if rows else 0
        return upto, [row[1] for row in rows if row[1] is not None]

    async def unfinished_session_deletions(self, limit: int) -> list[str]:
        """See the contract."""
        return [row[0] for row in await self._readers.rows(QUERIES["deleting"], (limit,))]

    async def get_session(self, session_id: str) -> Session:
        """See the contract."""
        found = (await self.sessions_by_id([session_id])).get(session_id)
        if found is None or not found.exists:
            raise SessionNotFoundError(session_id)
        return found

    async def list_sessions(self, criteria: SessionCriteria, scan: SessionScan) -> SessionPage:
        """See the contract."""
        rows = await self._readers.rows(*compile_list(criteria, scan))
        return session_page_of(map(session_from_row, rows), scan.limit)

    async def sessions_by_id(self, session_ids: Sequence[str]) -> dict[str, Session]:
        """See ``SessionRows``."""
        wanted = json.dumps(list(session_ids), ensure_ascii=False)
        rows = await self._readers.rows(QUERIES["sessions_by_id"], (wanted,))
        return {row[0]: session_from_row(row) for row in rows}

    async def scan_sessions(self, after: str | None, upto: str, limit: int) -> SessionPage:
        """See ``SessionRows``."""
        bounds = (after or "", after is None, upto)
        rows = await self._readers.rows(QUERIES["scan_sessions"], (*bounds, limit + 1))
        return session_page_of(map(session_from_row, rows), limit)

    async def last_session(self) -> str | None:
        """See ``SessionRows``."""
        last: str | None = await self._value("last_session")
        return last

    async def count_sessions(self) -> int:
        """See ``SessionRows``."""
        count: int = await self._value("count_sessions")
        return count

    async def _write(
        self,
        ids: Sequence[str],
        sessions: Sequence[str],
        apply: Callable[[Changes], _T],
        terms: Mapping[IndexedFields, index_terms.FtsColumns] = _NONE,
    ) -> _T:
        return await self._open_writer().submit(ids, sessions, apply, terms)

    def _open_writer(self) -> SQLiteGroupWriter:
        if self._writer is None:
            raise UnavailableError("the store is not open; try again")
        return self._writer

    async def _value(self, query: str) -> Any:
        rows = await self._readers.rows(QUERIES[query])
        return rows[0][0]


def _unheard(what: str, done: int, total: int) -> None:
    """Ignore the progress."""


def _on_disk(path: Path) -> tuple[int, int]:
    """Return the size of a file and the free space of its disk, in bytes; 0, 0 if unreadable."""
    try:
        free = shutil.disk_usage(path.parent).free
        return path.stat().st_size, free
    except OSError:
        return 0, 0


def _close_tidily(connection: sqlite3.Connection) -> None:
    """Truncate the log and close. SQLite removes the side files with its last connection."""
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as exc:
        _log.warning("the file was closed without a checkpoint; no write is lost: %s", exc)
    connection.close()
