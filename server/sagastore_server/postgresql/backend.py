"""PostgreSQLStorage: `StorageBackend` on one PostgreSQL database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from sagastore_server.interfaces.instruments import Instruments
from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.postgresql import timeline
from sagastore_server.postgresql.batch import BLOCK
from sagastore_server.postgresql.compatibility import Compatibility
from sagastore_server.postgresql.diagnosis import cannot_open
from sagastore_server.postgresql.errors import DRIVER_ERRORS, translating
from sagastore_server.postgresql.file_store import PostgreSQLFiles
from sagastore_server.postgresql.options import PostgreSQLOptions, display_address
from sagastore_server.postgresql.pool import Pool
from sagastore_server.postgresql.queries import MIGRATION, QUERIES
from sagastore_server.postgresql.reads import PostgreSQLReads
from sagastore_server.postgresql.reanalysis import Reanalyser
from sagastore_server.postgresql.replicas import Replicas
from sagastore_server.postgresql.rows import SearchColumns, message_from_row, search_columns_of
from sagastore_server.postgresql.schema import SCHEMA_VERSION, prepare
from sagastore_server.postgresql.search import (
    FIRST_BLOCK,
    compile_ranked,
    compile_search,
    next_block,
    planner_must_guess,
    ranked_page,
)
from sagastore_server.postgresql.sessions import compile_list, session_from_row
from sagastore_server.postgresql.watcher import PrimaryWatcher
from sagastore_server.postgresql.writer import PostgreSQLGroupWriter
from sagastore_server.runtime.supervisor import Supervisor
from sagastore_server.runtime.worker_pool import WorkerPool
from sagastore_server.storage.base import Indexer, PreparedTerms
from sagastore_server.storage.batch_saves import sessions_of
from sagastore_server.storage.changes import Changes, Turn
from sagastore_server.storage.errors import (
    NotFoundError,
    SessionNotFoundError,
    StorageError,
    UnavailableError,
)
from sagastore_server.storage.limits import MAX_PAGE_BYTES, page_of, session_page_of
from sagastore_server.storage.load import Load, OnGroup, unheard
from sagastore_server.storage.model import (
    BulkResult,
    Message,
    NewMessage,
    OnConflict,
    Page,
    QuarantinedRow,
    SaveResult,
    Store,
    StoreHealth,
)
from sagastore_server.storage.query import (
    Criteria,
    RankedPage,
    RankedScan,
    Scan,
    TextQuery,
    may_rank,
)
from sagastore_server.storage.reanalysis import Reanalysis
from sagastore_server.storage.session_writes import SessionWrites
from sagastore_server.storage.sessions import (
    Session,
    SessionCriteria,
    SessionPage,
    SessionScan,
)

_COUNT_ALWAYS = 0.02
"""Seconds. If counting takes less, every request counts."""

_COUNT_PAUSE = 50
"""Otherwise a count is reused for this multiple of the time it took: 2 % of one processor."""

_T = TypeVar("_T")
_NONE: Mapping[str, SearchColumns] = MappingProxyType({})


class PostgreSQLStorage(SessionWrites, PostgreSQLFiles):
    """`StorageBackend` on a PostgreSQL database, which any number of servers may share.

    * A write returns after its transaction is committed with ``synchronous_commit``.
    * Writes that wait together share a transaction (``writer``).
    * A row is locked before its revision is assigned, so the revisions of an id grow, whichever
      server writes (``batch``).
    """

    def __init__(
        self,
        options: PostgreSQLOptions,
        supervisor: Supervisor | None = None,
        *,
        tracer: Tracer = NO_TRACER,
        instruments: Instruments | None = None,
    ) -> None:
        """Create a store on a database, to which only ``open`` connects.

        ``supervisor`` runs the background tasks of the store; ``tracer`` records its spans, and
        ``instruments`` get its reads.
        """
        self._options = options
        self._supervisor = supervisor or Supervisor()
        self._tracer = tracer
        self._pool = Pool(options, tracer)
        self._replicas = Replicas(
            options, self._pool, self._supervisor, instruments or Instruments(), tracer
        )
        self._reads = PostgreSQLReads(self._pool, self._replicas, instruments)
        self._worker_pool = WorkerPool()
        self._searching = asyncio.Semaphore(max(1, options.pool_max // 2))
        self._taking_turns = asyncio.Lock()
        self._last_turn = 0
        self._compatibility = Compatibility(SCHEMA_VERSION)
        self._reanalyser = Reanalyser(
            self._pool, self._worker_pool, self._supervisor, self._compatibility
        )
        self._writer: PostgreSQLGroupWriter | None = None
        self._watcher: PrimaryWatcher | None = None
        self._on_group: OnGroup = unheard
        self._schema_version = 0
        self.migrated_from = ""
        """Identity of the SQLite file whose messages were migrated to it; empty: of none."""
        self._last_counts: Sequence[int] = (-1, -1, -1)
        self._counts_valid_until = 0.0

    @property
    def place(self) -> str:
        """Host and database, without user and password."""
        return f"PostgreSQL at {display_address(self._options.dsn)}"

    async def open(self) -> None:
        """See the contract: creates or upgrades the schema."""
        try:
            await self._pool.open(logged=False)
            self._start_watcher()
            self._schema_version = await prepare(self._pool, self.place)
            self.migrated_from = await self._pool.value(MIGRATION["source"]) or ""
            await self._enter_timelines()
            await self._reanalyser.start()
        except (*DRIVER_ERRORS, ValueError, StorageError) as exc:
            await self.close()
            raise cannot_open(self.place, exc, self._pool.connector) from exc
        except BaseException:
            await self.close()
            raise
        self._start_writer()

    async def _enter_timelines(self) -> None:
        """Keep revisions unique, on this timeline of PostgreSQL and each later one."""
        self._pool.enter_timeline = partial(timeline.enter, self._pool)
        async with self._pool.connection() as connection:
            await timeline.enter(self._pool, connection, connection.timeline)

    def _start_watcher(self) -> None:
        assert self._pool.connector is not None  # noqa: S101 - the pool is open
        self._watcher = PrimaryWatcher(self._pool.connector, self._supervisor)

    def _start_writer(self) -> None:
        self._writer = PostgreSQLGroupWriter(
            self._pool,
            self._worker_pool,
            self._options.writers,
            2 * self._options.acquire_timeout,
            self._compatibility,
            on_group=self._on_group,
            supervisor=self._supervisor,
            tracer=self._tracer,
        )
        if self._pool.tells_positions:
            self._replicas.start()

    async def close(self) -> None:
        """See the contract."""
        if self._watcher is not None:
            await self._watcher.close()
            self._watcher = None
        await self._replicas.close()
        await self._reanalyser.stop()
        if self._writer is not None:
            await self._writer.close()
            self._writer = None
        await self._worker_pool.close()
        await self._pool.close()

    async def save(
        self,
        draft: NewMessage,
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> SaveResult:
        """See the contract."""
        del everywhere_within  # One store is every store.
        return await self._write(
            (draft.id,), sessions_of(draft), lambda changes: changes.save(draft, if_revision)
        )

    @property
    def indexer(self) -> Indexer:
        """See the contract."""
        return search_columns_of

    async def bulk_save(
        self,
        drafts: Sequence[NewMessage],
        on_conflict: OnConflict,
        terms: PreparedTerms | None = None,
    ) -> BulkResult:
        """See the contract."""
        ids = [draft.id for draft in drafts]
        known = _NONE
        if terms is not None and terms.by is search_columns_of:
            known = dict(zip((draft.content for draft in drafts), terms.of, strict=True))
        turn = await self._take_turn()
        return await self._write(
            ids,
            sessions_of(*drafts),
            lambda changes: changes.bulk_save(drafts, on_conflict, turn),
            known,
        )

    async def _take_turn(self) -> Turn:
        """Take a block of sequences, and the time for messages without a timestamp.

        Batches are written in several transactions at once, so the messages of a stream keep
        their order only if its batches take both one after the other.
        """
        async with self._taking_turns:
            last: int = await self._pool.drawn(QUERIES["take_block"])
            self._last_turn = max(self._last_turn, time.time_ns() // 1000)
            return Turn(last - BLOCK + 1, self._last_turn)

    async def delete(self, message_id: str, if_revision: int | None = None) -> None:
        """See the contract."""
        await self._write(
            (message_id,), (), lambda changes: changes.delete(message_id, if_revision)
        )

    async def get(self, message_id: str) -> Message:
        """See the contract."""
        with self._tracer.step("postgresql.read", {"db.system.name": "postgresql"}):
            found = await self._reads.message(message_id)
        if found is None:
            raise NotFoundError(message_id)
        return message_from_row(found)

    async def batch_get(self, message_ids: Sequence[str]) -> dict[str, Message]:
        """See the contract."""
        rows = await self._reads.rows(QUERIES["batch_get"], list(message_ids))
        return {row[0]: message_from_row(row) for row in rows}

    async def list_session(self, session_id: str, scan: Scan) -> Page:
        """See the contract."""
        compiled = compile_search(Criteria(session_id=session_id), scan)
        rows = await self._reads.rows(compiled.sql, *compiled.parameters)
        return page_of(map(message_from_row, rows), scan.limit)

    async def search(self, criteria: Criteria, scan: Scan) -> Page:
        """See the contract."""
        if criteria.text is not None and criteria.text.condition is None:
            # Nothing can match, in any state; but the answer tells a position.
            await self._reads.value("SELECT 1")
            return Page([], more=False)
        # A search can take seconds. Half of the connections remain for short requests.
        async with self._searching:
            if not planner_must_guess(criteria):
                return await self._search_block(criteria, scan, None)
            block = FIRST_BLOCK
            while block:
                page = await self._search_block(criteria, scan, block)
                if page.more:
                    return page
                block = next_block(block, len(page.messages), scan.limit + 1)
            return await self._search_block(criteria, scan, 0)

    async def _search_block(self, criteria: Criteria, scan: Scan, block: int | None) -> Page:
        compiled = compile_search(criteria, scan, block)
        rows = await self._reads.planned_rows(*compiled)
        return page_of(map(message_from_row, rows), scan.limit)

    async def search_ranked(self, criteria: Criteria, scan: RankedScan) -> RankedPage | None:
        """See the contract.

        Rows whose analysis is older are ranked by their content, so above this store.
        """
        text = criteria.text
        if text is None or not may_rank(text) or self.reanalysis is not None:
            return None
        async with self._searching:
            # The rows from the top to the bottom of a window are not many.
            if not planner_must_guess(criteria) or scan.bottom is not None:
                page, _ = await self._rank_block(criteria, text, scan, None)
                return page
            block = FIRST_BLOCK
            page, matches = await self._rank_block(criteria, text, scan, block)
            while block and not page.below:
                block = next_block(block, matches, scan.window + 1)
                page, matches = await self._rank_block(criteria, text, scan, block)
            return page

    async def _rank_block(
        self, criteria: Criteria, text: TextQuery, scan: RankedScan, block: int | None
    ) -> tuple[RankedPage, int]:
        compiled = compile_ranked(criteria, text, scan, block)
        return ranked_page(await self._reads.planned_rows(*compiled), scan)

    async def scan_ids(self, after: str, upto: str, limit: int) -> Page:
        """See the contract."""
        arguments = (after, upto, limit + 1, MAX_PAGE_BYTES)
        rows = await self._pool.rows(QUERIES["scan_ids"], *arguments)
        return page_of(map(message_from_row, rows), limit)

    async def last_id(self) -> str | None:
        """See the contract."""
        last: str | None = await self._pool.value(QUERIES["last_id"])
        return last

    async def scan_sequences(self, after: int, upto: int, limit: int) -> Page:
        """See the contract."""
        arguments = (after, upto, limit + 1, MAX_PAGE_BYTES)
        rows = await self._reads.rows(QUERIES["scan_sequences"], *arguments)
        return page_of(map(message_from_row, rows), limit)

    async def last_sequence(self) -> int:
        """See the contract."""
        last: int = await self._reads.value(QUERIES["last_sequence"])
        return last

    async def quarantine(self, after: int, limit: int) -> list[QuarantinedRow]:
        """See the contract."""
        rows = await self._pool.rows(QUERIES["quarantine"], after, limit)
        return [
            QuarantinedRow(number, key, reason, field, raw.encode())
            for number, key, reason, field, raw in rows
        ]

    async def quarantine_count(self) -> int:
        """See the contract."""
        count: int = await self._pool.value(QUERIES["quarantine_count"])
        return count

    async def health(self) -> StoreHealth:
        """See the contract."""
        try:
            [(version, compatible_from)] = await self._pool.rows(QUERIES["ping"])
            self._schema_version = version or 0
            self._compatibility.check(compatible_from)
            counts = await self._counts()
        except StorageError as exc:
            return StoreHealth(Store.POSTGRESQL, False, str(exc), -1, 0)
        return StoreHealth(Store.POSTGRESQL, True, "", counts[0], self._schema_version, *counts[1:])

    @property
    def reanalysis(self) -> Reanalysis | None:
        """See the contract."""
        return self._reanalyser.progress

    def observe(self, on_group: OnGroup) -> None:
        """See the contract."""
        self._on_group = on_group

    def loads(self) -> list[Load]:
        """See the contract."""
        if self._writer is None:
            return []
        size, busy, most = self._pool.use
        commits = self._pool.commits
        return [
            Load(
                Store.POSTGRESQL,
                writes_waiting=self._writer.waiting,
                connections=size,
                connections_busy=busy,
                connections_most=most,
                connections_wanted=self._pool.waiting,
                commit_seconds=commits.longest_seconds,
                commits_unconfirmed=commits.unconfirmed,
                is_unreplicated=commits.is_refused,
                is_outdated=self._compatibility.error is not None,
                replicas=self._replicas.loads(),
                reanalysis=self.reanalysis,
            )
        ]

    async def _counts(self) -> Sequence[int]:
        """Return the numbers of messages, sessions and files, cached: counting reads an index."""
        began = time.monotonic()
        if began < self._counts_valid_until:
            return self._last_counts
        [self._last_counts] = await self._pool.rows(QUERIES["count_records"])
        took = time.monotonic() - began
        if took > _COUNT_ALWAYS:
            self._counts_valid_until = began + _COUNT_PAUSE * took
        return self._last_counts

    # ------------------------------------------------------------------ sessions

    async def _change(
        self,
        ids: Sequence[str],
        sessions: Sequence[str],
        apply: Callable[[Changes], _T],
        messages: Sequence[NewMessage] = (),
    ) -> _T:
        del messages  # The writer analyses long texts in the worker pool.
        return await self._write(ids, sessions, apply)

    async def _deletable(self, session_id: str, limit: int) -> tuple[int, list[str]]:
        rows = await self._pool.rows(QUERIES["deletable"], session_id, limit)
        upto = rows[0][0] if rows else 0
        return upto, [row[1] for row in rows if row[1] is not None]

    async def unfinished_session_deletions(self, limit: int) -> list[str]:
        """See the contract."""
        return [row[0] for row in await self._pool.rows(QUERIES["deleting"], limit)]

    async def get_session(self, session_id: str) -> Session:
        """See the contract."""
        rows = await self._reads.rows(QUERIES["sessions_by_id"], [session_id])
        found = session_from_row(rows[0]) if rows else None
        if found is None or not found.exists:
            raise SessionNotFoundError(session_id)
        return found

    async def list_sessions(self, criteria: SessionCriteria, scan: SessionScan) -> SessionPage:
        """See the contract."""
        compiled = compile_list(criteria, scan)
        rows = await self._reads.rows(compiled.sql, *compiled.parameters)
        return session_page_of(map(session_from_row, rows), scan.limit)

    async def sessions_by_id(self, session_ids: Sequence[str]) -> dict[str, Session]:
        """See ``SessionRows``."""
        rows = await self._pool.rows(QUERIES["sessions_by_id"], list(session_ids))
        return {row[0]: session_from_row(row) for row in rows}

    async def scan_sessions(self, after: str | None, upto: str, limit: int) -> SessionPage:
        """See ``SessionRows``."""
        bounds = (after or "", after is None, upto)
        rows = await self._pool.rows(QUERIES["scan_sessions"], *bounds, limit + 1)
        return session_page_of(map(session_from_row, rows), limit)

    async def last_session(self) -> str | None:
        """See ``SessionRows``."""
        last: str | None = await self._pool.value(QUERIES["last_session"])
        return last

    async def count_sessions(self) -> int:
        """See ``SessionRows``."""
        count: int = await self._pool.value(QUERIES["count_sessions"])
        return count

    async def _write(
        self,
        ids: Sequence[str],
        sessions: Sequence[str],
        apply: Callable[[Changes], _T],
        known: Mapping[str, SearchColumns] = _NONE,
    ) -> _T:
        writer = self._open_writer()
        with translating():
            return await writer.submit(ids, sessions, apply, known)

    def _open_writer(self) -> PostgreSQLGroupWriter:
        if self._writer is None:
            raise UnavailableError("the store is not open; try again")
        return self._writer
