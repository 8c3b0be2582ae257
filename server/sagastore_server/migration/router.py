"""The router: a storage backend made of two, whatever the phase."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

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
from sagastore_server.storage.load import Load, OnGroup
from sagastore_server.storage.migration import BackfillState
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
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Criteria, Scan

BOTH = (Store.SQLITE, Store.POSTGRESQL)

_OUTAGES = (UnavailableError, CorruptStoreError, StorageFullError)
"""What a read of PostgreSQL may fail with and SQLite may do better."""

_REFUSALS = (AlreadyExistsError, NotFoundError, RevisionMismatchError)

T = TypeVar("T")


class StoreLifecycle(Protocol):
    """What opens and closes the stores of a router."""

    async def open(self) -> None:
        """Open them."""

    async def close(self) -> None:
        """Close them."""


class _NoAnswerError(Exception):
    """PostgreSQL did not answer a read."""


Read = Callable[[StorageBackend], Awaitable[T]]


class Router(StorageBackend):
    """Sends each call to the stores of the phase, and acknowledges as the phase says."""

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
        self._shadow = shadow
        self._throttle = throttle
        self._lifecycle = lifecycle
        self._fence = context.fence
        self._clock = context.environment.clock

    async def open(self) -> None:
        """See the contract: opens both stores, and brings them together after a crash."""
        await self._lifecycle.open()

    async def close(self) -> None:
        """See the contract."""
        await self._lifecycle.close()

    # ------------------------------------------------------------------ writes

    async def save(
        self,
        draft: NewMessage,
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> SaveResult:
        """See the contract; ``durable_on`` follows the phase."""
        result, on_both = await self._write(lambda store: store.save(draft, if_revision))
        if on_both:
            return result._replace(durable_on=BOTH)
        if everywhere_within is not None and self._current_state.phase.journals:
            result = await self._everywhere(result, everywhere_within)
            if self._writes_sqlite():
                self._fallback.check_lease()
        return result

    @property
    def indexer(self) -> Indexer | None:
        """See the contract."""
        return self._primary.indexer

    async def bulk_save(
        self,
        drafts: Sequence[NewMessage],
        on_conflict: OnConflict,
        terms: PreparedTerms | None = None,
    ) -> BulkResult:
        """See the contract."""
        return (await self._write(lambda store: store.bulk_save(drafts, on_conflict, terms)))[0]

    async def delete(self, message_id: str, if_revision: int | None = None) -> None:
        """See the contract."""
        await self._write(lambda store: store.delete(message_id, if_revision))

    async def _write(self, write: Read[T]) -> tuple[T, bool]:
        """Write, and tell whether PostgreSQL has it beside SQLite.

        Raises:
            FencedError, UnavailableError: Another server has taken over meanwhile, or may
                have: what it goes on with does not have this write.

        """
        try:
            result = await self._write_primary(write)
        except _REFUSALS:
            # A refusal tells of what SQLite has. The caller may look for it next.
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
        """Wait until PostgreSQL has what was just written, if the phase asks for it."""
        if not self._writes_sqlite():
            return False
        on_both = False
        if self._current_state.phase.reads_postgres:
            on_both = await self._fallback.confirm(self._source.committed)
        if self._writes_sqlite():
            self._fallback.check_lease()
        return on_both

    async def _everywhere(self, result: SaveResult, within: float) -> SaveResult:
        sequence = self._source.committed
        state = self._current_state.state
        if result.revision <= state.base and self._session.mark.state is not BackfillState.DONE:
            # Unchanged, and from before the journal: the backfill has perhaps not come to it.
            sequence = await self._source.requeue([result.id])
        if await self._fallback.reach(sequence, within):
            return result._replace(durable_on=BOTH)
        if not self._current_state.phase.journals:
            return result
        raise UnavailableError(
            f"message {result.id!r} is stored in SQLite, and PostgreSQL does not have it yet; it "
            "follows by itself, and saving it again is safe"
        )

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

    async def scan_ids(self, after: str, upto: str, limit: int) -> Page:
        """See the contract."""
        return await self._read("", lambda store: store.scan_ids(after, upto, limit))

    async def last_id(self) -> str | None:
        """See the contract."""
        return await self._read("", lambda store: store.last_id())

    async def quarantine(self, after: int, limit: int) -> list[QuarantinedRow]:
        """See the contract."""
        return await self._primary.quarantine(after, limit)

    async def quarantine_count(self) -> int:
        """See the contract."""
        return await self._primary.quarantine_count()

    async def health(self) -> StoreHealth:
        """See the contract: of the store without which the phase cannot go on."""
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
        """Read from the store that the phase names, or from the other one if that fails.

        An answer of SQLite is handed out only under the condition of ``_release``.
        """
        if not self._writes_sqlite():
            return await read(self._target)
        self._fallback.check_lease()
        if self._current_state.phase.reads_postgres and self._fallback.current:
            try:
                return await self._read_target(read)
            except _NoAnswerError:
                pass
        try:
            answer = await self._read_source(name, read)
        except NotFoundError:
            await self._release()
            raise
        except UnavailableError:
            if self._writes_sqlite():
                raise
            # The last step has closed SQLite meanwhile.
            return await read(self._target)
        await self._release()
        return answer

    def _writes_sqlite(self) -> bool:
        """Tell whether SQLite has every write, by the phase as it is now."""
        return self._current_state.phase.writes_sqlite

    async def _read_source(self, name: str, read: Read[T]) -> T:
        if name and self._compares(self._current_state.phase) and self._shadow.wanted():
            return await self._read_and_compare(name, read)
        return await read(self._source)

    async def _release(self) -> None:
        """Wait until an answer of SQLite may be handed out.

        While PostgreSQL answers reads, it must first have all that the answer may show.
        Otherwise the next read, which goes to PostgreSQL, would be older than this one: the
        answer may show writes that are in SQLite only, and not acknowledged. Such answers
        come from a read that began before PostgreSQL became current, or that PostgreSQL
        alone failed to answer.

        Raises:
            FencedError, UnavailableError: As ``Replicator.check_holder``.

        """
        if self._current_state.phase.reads_postgres and self._fallback.current:
            await self._fallback.confirm(await self._flushed())
        if self._writes_sqlite():
            self._fallback.check_lease()

    async def _flushed(self) -> int:
        """Return a sequence that is not below anything that SQLite has shown."""
        try:
            return await self._source.flush()
        except UnavailableError:
            if self._writes_sqlite():
                raise
            # The last step has come in between, and PostgreSQL has everything.
            return 0

    def _compares(self, phase: Phase) -> bool:
        """Tell whether PostgreSQL should have what SQLite has, and is not read yet."""
        return phase.copies and self._session.mark.state is BackfillState.DONE

    async def _read_target(self, read: Read[T]) -> T:
        """Read from PostgreSQL.

        A read that hangs is given up when the follower finds PostgreSQL silent. It runs
        in a task of its own, because giving up a statement can hang as well.

        Raises:
            _NotAnsweredError: It failed, or was given up; SQLite has everything as well.

        """
        task = awaited(_call(read, self._target))
        answer = asyncio.shield(task)
        under_way = self._fallback.pending_reads
        under_way[answer] = None
        try:
            found = await answer
        except asyncio.CancelledError:
            abandon(task)
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise _NoAnswerError from None
        except _OUTAGES as exc:
            # Whether PostgreSQL is away is for the follower to find out.
            if not self._writes_sqlite():
                raise
            raise _NoAnswerError from exc
        finally:
            del under_way[answer]
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


async def _call(read: Read[T], store: StorageBackend) -> T:
    return await read(store)
