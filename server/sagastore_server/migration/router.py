"""Router: the storage backend that combines both stores according to the phase."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from sagastore_server.migration.both_stores import BOTH, BothStores
from sagastore_server.migration.current_state import MigrationContext
from sagastore_server.migration.lease import TAKEN_OVER
from sagastore_server.migration.replicator import Replicator
from sagastore_server.migration.shadow import ShadowReader
from sagastore_server.migration.throttle import Throttle
from sagastore_server.migration.timeouts import abandon
from sagastore_server.runtime.supervisor import awaited
from sagastore_server.storage.base import Indexer, PreparedTerms, StorageBackend
from sagastore_server.storage.errors import (
    AlreadyExistsError,
    CorruptStoreError,
    NotFoundError,
    RevisionMismatchError,
    StorageFullError,
    UnavailableError,
)
from sagastore_server.storage.files import File, FilePage, FileScan, NewFile
from sagastore_server.storage.load import Load, OnGroup
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.model import (
    BulkResult,
    Message,
    NewMessage,
    OnConflict,
    Page,
    QuarantinedRow,
    SaveRequest,
    SaveResult,
    StoreHealth,
)
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Criteria, RankedPage, RankedScan, Scan
from sagastore_server.storage.sessions import (
    AppendResult,
    DeletionStep,
    RecordKind,
    Session,
    SessionCriteria,
    SessionPage,
    SessionScan,
    Truncation,
)

_OUTAGES = (UnavailableError, CorruptStoreError, StorageFullError)
"""Errors of a read of PostgreSQL after which SQLite answers."""

_REFUSALS = (AlreadyExistsError, NotFoundError, RevisionMismatchError)

T = TypeVar("T")


class StoreLifecycle(Protocol):
    """Opens and closes the stores of a router."""

    async def open(self) -> None:
        """Open them."""

    async def close(self) -> None:
        """Close them."""


class _NoAnswerError(Exception):
    """PostgreSQL did not answer a read, and SQLite must."""


Read = Callable[[StorageBackend], Coroutine[Any, Any, T]]


class Router(StorageBackend):
    """Routes each call to the stores of the phase, and acknowledges writes accordingly."""

    def __init__(
        self,
        context: MigrationContext,
        replicator: Replicator,
        shadow: ShadowReader,
        throttle: Throttle,
        lifecycle: StoreLifecycle,
    ) -> None:
        """Route between ``source`` and ``target``; ``lifecycle`` opens and closes both."""
        self._source = context.source
        self._target = context.target
        self._current_state = context.current_state
        self._session = replicator.session
        self._fallback = replicator.fallback
        self._both = BothStores(context, replicator)
        self._shadow = shadow
        self._throttle = throttle
        self._lifecycle = lifecycle
        self._fence = context.fence
        self._clock = context.environment.clock

    async def open(self) -> None:
        """See the contract: opens both stores, and reconciles them after a crash."""
        await self._lifecycle.open()

    async def close(self) -> None:
        """See the contract."""
        await self._lifecycle.close()

    # ------------------------------------------------------------------ writes

    async def save(
        self,
        message: NewMessage,
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> SaveResult:
        """See the contract; ``durable_on`` follows the phase."""
        result, on_both = await self._write(lambda store: store.save(message, if_revision))
        if on_both or await self._both.reached([(result.id, result.revision)], everywhere_within):
            return result._replace(durable_on=BOTH)
        return result

    async def batch_save(self, requests: Sequence[SaveRequest]) -> list[SaveResult | Exception]:
        """See the contract; ``durable_on`` follows the phase."""
        results, on_both = await self._write(lambda store: store.batch_save(requests))
        return await self._both.told(requests, results, on_both=on_both)

    @property
    def indexer(self) -> Indexer | None:
        """See the contract."""
        return self._primary.indexer

    async def bulk_save(
        self,
        messages: Sequence[NewMessage],
        on_conflict: OnConflict,
        terms: PreparedTerms | None = None,
    ) -> BulkResult:
        """See the contract."""
        return (await self._write(lambda store: store.bulk_save(messages, on_conflict, terms)))[0]

    async def delete(self, message_id: str, if_revision: int | None = None) -> None:
        """See the contract."""
        await self._write(lambda store: store.delete(message_id, if_revision))

    # ------------------------------------------------------------------ sessions

    async def append(
        self,
        session_id: str,
        messages: Sequence[NewMessage],
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> AppendResult:
        """See the contract; ``durable_on`` follows the phase."""
        result, on_both = await self._write(
            lambda store: store.append(session_id, messages, if_revision)
        )
        saved = [(one.id, one.revision) for one in result.saved]
        if on_both or await self._both.reached(saved, everywhere_within):
            return result._replace(durable_on=BOTH)
        return result

    async def update_session(
        self,
        session_id: str,
        title: str | None = None,
        metadata: str | None = None,
        if_revision: int | None = None,
    ) -> Session:
        """See the contract."""
        update = (session_id, title, metadata, if_revision)
        return (await self._write(lambda store: store.update_session(*update)))[0]

    async def truncate_session(
        self,
        session_id: str,
        *,
        drop_last: int | None = None,
        keep_through: str | None = None,
        if_revision: int | None = None,
        most_bytes: int = 0,
    ) -> Truncation:
        """See the contract."""

        async def truncate(store: StorageBackend) -> Truncation:
            return await store.truncate_session(
                session_id,
                drop_last=drop_last,
                keep_through=keep_through,
                if_revision=if_revision,
                most_bytes=most_bytes,
            )

        return (await self._write(truncate))[0]

    async def begin_session_deletion(self, session_id: str, if_revision: int | None = None) -> None:
        """See the contract."""
        await self._write(lambda store: store.begin_session_deletion(session_id, if_revision))

    async def delete_session_step(self, session_id: str) -> DeletionStep:
        """See the contract."""
        return (await self._write(lambda store: store.delete_session_step(session_id)))[0]

    async def unfinished_session_deletions(self, limit: int) -> list[str]:
        """See the contract; answered by the primary store of the phase."""
        return await self._primary.unfinished_session_deletions(limit)

    async def get_session(self, session_id: str) -> Session:
        """See the contract."""
        return await self._read("GetSession", lambda store: store.get_session(session_id))

    async def list_sessions(self, criteria: SessionCriteria, scan: SessionScan) -> SessionPage:
        """See the contract."""
        return await self._read("ListSessions", lambda store: store.list_sessions(criteria, scan))

    # ------------------------------------------------------------------ files

    async def save_file(
        self,
        draft: NewFile,
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> SaveResult:
        """See the contract; ``durable_on`` follows the phase."""
        result, on_both = await self._write(lambda store: store.save_file(draft, if_revision))
        if on_both or await self._both.reached(
            [(result.id, result.revision)], everywhere_within, RecordKind.FILE
        ):
            return result._replace(durable_on=BOTH)
        return result

    async def delete_file(self, file_id: str, if_revision: int | None = None) -> None:
        """See the contract."""
        await self._write(lambda store: store.delete_file(file_id, if_revision))

    async def get_file(self, file_id: str) -> File:
        """See the contract."""
        return await self._read("GetFile", lambda store: store.get_file(file_id))

    async def list_files(self, scan: FileScan) -> FilePage:
        """See the contract."""
        return await self._read("ListFiles", lambda store: store.list_files(scan))

    # ------------------------------------------------------------------ writing

    async def _write(self, write: Read[T]) -> tuple[T, bool]:
        """Write, and return the result and whether PostgreSQL has the write as well as SQLite.

        Raises:
            FencedError, UnavailableError: Another server has, or may have, taken over meanwhile;
                its data may lack this write.

        """
        try:
            result = await self._write_primary(write)
        except _REFUSALS:
            # A refusal reveals what SQLite has, and the next read must not be older.
            await self._confirmed()
            raise
        return result, await self._confirmed()

    async def _write_primary(self, write: Read[T]) -> T:
        await self._fence.enter()
        try:
            if not self._current_state.phase.writes_sqlite:
                return await write(self._target)
            self._fallback.check_lease()
            began = self._clock.monotonic()
            result = await write(self._source)
            self._throttle.note_foreground(self._clock.monotonic() - began)
            return result
        finally:
            self._fence.leave()

    async def _confirmed(self) -> bool:
        """Wait until PostgreSQL has the last write, if the phase requires it."""
        if not self._writes_sqlite():
            return False
        on_both = False
        if self._current_state.phase.reads_postgres:
            on_both = await self._fallback.confirm(self._source.committed)
        if self._writes_sqlite():
            self._fallback.check_lease()
        return on_both

    # ------------------------------------------------------------------ reads

    async def get(self, message_id: str) -> Message:
        """See the contract."""
        return await self._read("Get", lambda store: store.get(message_id))

    async def batch_get(self, message_ids: Sequence[str]) -> dict[str, Message]:
        """See the contract."""
        return await self._read("BatchGet", lambda store: store.batch_get(message_ids))

    async def list_session(self, session_id: str, scan: Scan) -> Page:
        """See the contract."""
        return await self._read("List", lambda store: store.list_session(session_id, scan))

    async def search(self, criteria: Criteria, scan: Scan) -> Page:
        """See the contract."""
        return await self._read("Search", lambda store: store.search(criteria, scan))

    async def search_ranked(self, criteria: Criteria, scan: RankedScan) -> RankedPage | None:
        """See the contract."""
        return await self._read("Search", lambda store: store.search_ranked(criteria, scan))

    async def scan_ids(self, after: str, upto: str, limit: int) -> Page:
        """See the contract."""
        return await self._read("", lambda store: store.scan_ids(after, upto, limit))

    async def last_id(self) -> str | None:
        """See the contract."""
        return await self._read("", lambda store: store.last_id())

    async def scan_sequences(self, after: int, upto: int, limit: int) -> Page:
        """See the contract."""
        return await self._read("", lambda store: store.scan_sequences(after, upto, limit))

    async def last_sequence(self) -> int:
        """See the contract."""
        return await self._read("", lambda store: store.last_sequence())

    async def quarantine(self, after: int, limit: int) -> list[QuarantinedRow]:
        """See the contract."""
        return await self._primary.quarantine(after, limit)

    async def quarantine_count(self) -> int:
        """See the contract."""
        return await self._primary.quarantine_count()

    async def health(self) -> StoreHealth:
        """See the contract: the health of the primary store of the phase."""
        health = await self._primary.health()
        if self._session.fenced:
            return health._replace(healthy=False, detail=TAKEN_OVER)
        return health

    def observe(self, on_group: OnGroup) -> None:
        """See the contract; the target commits groups of journal entries."""
        self._source.observe(on_group)
        self._target.observe(on_group)

    def loads(self) -> list[Load]:
        """See the contract."""
        return [*self._source.loads(), *self._target.loads()]

    @property
    def _primary(self) -> StorageBackend:
        return self._source if self._current_state.phase.writes_sqlite else self._target

    async def _read(self, name: str, read: Read[T]) -> T:
        """Read from the store of the phase, or from the other one if that fails.

        An answer of SQLite is returned only under the condition of ``_release``.
        """
        if not self._writes_sqlite():
            return await read(self._target)
        self._fallback.check_lease()
        if self._current_state.phase.reads_postgres and self._fallback.current:
            try:
                return await self._read_target(read)
            except _NoAnswerError:
                pass
        if self._current_state.in_doubt:
            await self._current_state.settled()
        if not self._writes_sqlite():
            return await read(self._target)
        try:
            answer = await self._read_source(name, read)
        except NotFoundError:
            await self._release()
            raise
        except UnavailableError:
            if self._writes_sqlite():
                raise
            # The cutover has closed SQLite meanwhile.
            return await read(self._target)
        await self._release()
        return answer

    def _writes_sqlite(self) -> bool:
        """Return whether SQLite has every write in the current phase."""
        return self._current_state.phase.writes_sqlite

    async def _read_source(self, name: str, read: Read[T]) -> T:
        if name and self._compares(self._current_state.phase) and self._shadow.wanted():
            return await self._read_and_compare(name, read)
        return await read(self._source)

    async def _release(self) -> None:
        """Wait until an answer of SQLite may be returned.

        While PostgreSQL answers reads, it must first have everything that the answer may show.
        The answer may show writes that only SQLite has and that are not acknowledged; the next
        read, from PostgreSQL, would then be older than this one. This concerns reads that began
        before PostgreSQL became current, and reads that only PostgreSQL failed to answer.

        Raises:
            FencedError, UnavailableError: As ``Fallback.check_lease``.

        """
        if self._current_state.phase.reads_postgres and self._fallback.current:
            await self._fallback.confirm(await self._flushed())
        if self._writes_sqlite():
            self._fallback.check_lease()

    async def _flushed(self) -> int:
        """Return a sequence that covers everything SQLite has shown."""
        try:
            return await self._source.flush()
        except UnavailableError:
            if self._writes_sqlite():
                raise
            # The cutover has happened meanwhile, and PostgreSQL has everything.
            return 0

    def _compares(self, phase: Phase) -> bool:
        """Return whether PostgreSQL has a complete copy and is not read yet."""
        return phase.copies and self._session.mark.state is BackfillState.DONE

    async def _read_target(self, read: Read[T]) -> T:
        """Read from PostgreSQL.

        A read that hangs is abandoned when the watchdog finds PostgreSQL silent. It runs in its
        own task, because cancelling a statement can hang as well.

        Raises:
            _NoAnswerError: The read failed or was abandoned; SQLite has everything as well.

        """
        task = awaited(read(self._target))
        answer = asyncio.shield(task)
        pending = self._fallback.pending_reads
        pending[answer] = None
        try:
            found = await answer
        except asyncio.CancelledError:
            abandon(task)
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise _NoAnswerError from None
        except _OUTAGES as exc:
            # The watchdog finds out whether PostgreSQL is unavailable.
            if not self._writes_sqlite():
                raise
            raise _NoAnswerError from exc
        finally:
            del pending[answer]
        if self._writes_sqlite():
            self._fallback.check_lease()
        return found

    async def _read_and_compare(self, name: str, read: Read[T]) -> T:
        try:
            answer = await read(self._source)
        except NotFoundError as exc:
            self._shadow.compare(name, read, exc)
            raise
        self._shadow.compare(name, read, answer)
        return answer
