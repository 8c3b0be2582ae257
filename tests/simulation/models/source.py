"""ModelSource: model of SQLiteSource for a deterministic simulation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from sagastore_server.sqlite.files import SCHEMA_VERSION
from sagastore_server.storage.base import PreparedTerms
from sagastore_server.storage.changes import Changes, endless
from sagastore_server.storage.errors import MovedError, StorageError, UnavailableError
from sagastore_server.storage.files import File
from sagastore_server.storage.model import (
    BulkResult,
    NewMessage,
    OnConflict,
    QuarantinedRow,
    SaveResult,
    Store,
    StoreHealth,
)
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    Archive,
    AuxiliaryTally,
    Entry,
    ExtraValue,
    JournalStatus,
    MigrationSource,
    MigrationState,
)
from sagastore_server.storage.sessions import RecordKind, Session
from tests.simulation.models.auxiliary_rows import tally_of
from tests.simulation.models.file_rows import ModelFiles
from tests.simulation.models.process import Process
from tests.simulation.models.reads import Rows, SnapshotReads
from tests.simulation.models.session_rows import ModelSessions, deletable
from tests.simulation.models.source_disk import JournalRow, SourceDisk
from tests.simulation.models.writer import GroupWriter, Job, Kind

T = TypeVar("T")


class ModelSource(SnapshotReads, ModelSessions, ModelFiles, MigrationSource):
    """Source of a migration on a ``SourceDisk``, used by one process.

    It keeps the guarantees of SQLiteSource, and otherwise behaves as badly as they allow:

    - Groups become durable long before they are acknowledged.
    - Reads see durable, not yet acknowledged writes.
    - A commit that failed with an I/O error may be on disk nevertheless.

    Overridable for planted faults: ``_commit``, ``_journal_entries``.
    """

    def __init__(self, disk: SourceDisk, process: Process, now: Callable[[], int]) -> None:
        """Create a source on ``disk``; ``now`` is the process's wall clock in microseconds."""
        self._disk = disk
        self.process = process
        self._now = now
        self._listeners: list[Callable[[], None]] = []
        self._committed = 0
        self._durable = 0
        """Highest revision on disk, as far as the writer knows."""
        self._uncertain = False
        """A commit failed, and the writer has not yet checked what is on disk."""
        self._writer: GroupWriter | None = None
        self._archiving = asyncio.Lock()
        self._sealed: MigrationState | None = None
        self._rejournalled = 0

    # ------------------------------------------------------------------ identity

    @property
    def store_id(self) -> str:
        """See the contract."""
        return self._disk.store_id

    @property
    def place(self) -> str:
        """See the contract."""
        return "messages.db"

    @property
    def is_new(self) -> bool:
        """See the contract."""
        return self._disk.is_new

    @property
    def holder(self) -> str:
        """See the contract."""
        return self._disk.holder

    @property
    def committed(self) -> int:
        """See the contract."""
        return self._committed

    def on_commit(self, listener: Callable[[], None]) -> None:
        """See the contract."""
        self._listeners.append(listener)

    # ------------------------------------------------------------------ opening and closing

    async def open(self) -> None:
        """See the contract."""
        disk = self._disk
        await self._wait(disk.pause())
        disk.lock(self)
        if disk.archived:
            disk.unlock(self)
            raise MovedError("the messages have moved to PostgreSQL", disk.store_id)
        disk.is_new = False
        if disk.state.phase is Phase.POSTGRES_ONLY:
            self._sealed = disk.state
            return
        self._committed = self._durable = disk.revision
        self._writer = GroupWriter(disk, self.process, self._commit_group, self._grow)

    async def close(self) -> None:
        """See the contract."""
        self.process.check_alive()
        async with self._archiving:
            await self._close_writer()
            self._disk.unlock(self)

    async def _close_writer(self) -> None:
        if self._writer is not None:
            await self._writer.close()
            self._writer = None

    async def _wait(self, seconds: float) -> None:
        self.process.check_alive()
        await asyncio.sleep(seconds)
        self.process.check_alive()

    def _ready(self) -> GroupWriter:
        self.process.check_alive()
        if self._writer is None or self._writer.closing:
            raise UnavailableError("the store is not open; try again")
        return self._writer

    # ------------------------------------------------------------------ writing

    async def save(
        self,
        draft: NewMessage,
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> SaveResult:
        """See the contract."""
        return await self._write(lambda changes: changes.save(draft, if_revision))

    async def bulk_save(
        self,
        drafts: Sequence[NewMessage],
        on_conflict: OnConflict,
        terms: PreparedTerms | None = None,
    ) -> BulkResult:
        """See the contract."""
        return await self._write(
            lambda changes: changes.bulk_save(drafts, on_conflict), len(drafts)
        )

    async def delete(self, message_id: str, if_revision: int | None = None) -> None:
        """See the contract."""
        await self._write(lambda changes: changes.delete(message_id, if_revision))

    async def _write(self, apply: Callable[[Changes], T], rows: int = 1) -> T:
        # The text is analysed before the write is queued, in another thread if it is long.
        if self._disk.draw.random() < self._disk.offloaded_analysis:
            await self._wait(self._disk.pause(0.02))
        return cast("T", await self._submit(Kind.WRITE, apply, rows))

    async def _task(self, run: Callable[[SourceDisk], T]) -> T:
        """Run a function in its own transaction between two groups."""
        return cast("T", await self._submit(Kind.TASK, run))

    async def _submit(self, kind: Kind, run: Callable[..., object], rows: int = 1) -> object:
        return await self._ready().submit(kind, run, rows)

    def _commit_group(self, kind: Kind, group: Sequence[Job]) -> tuple[Sequence[object], int]:
        outcomes = self._commit(kind, group)
        self._disk.commits += kind is not Kind.FLUSH
        return outcomes, self._durable

    def _commit(self, kind: Kind, group: Sequence[Job]) -> Sequence[object]:
        """Commit a group at one instant; return the outcome of each job."""
        failure = self._disk.failure()
        if failure and self._uncertain:
            # The writer neither writes nor acknowledges before it knows what is on disk.
            return [failure] * len(group)
        if kind is Kind.FLUSH:
            failure = None
        if failure and not self._commits_all_the_same(kind):
            return [failure] * len(group)
        if kind is Kind.WRITE:
            outcomes = self._store(group)
        else:
            outcomes = [_outcome(job, self._disk) for job in group]
        self._uncertain = failure is not None and self._disk.draw.random() < 0.5
        if not self._uncertain:
            self._durable = self._disk.revision
        return [failure or outcome for outcome in outcomes]

    def _commits_all_the_same(self, kind: Kind) -> bool:
        """Draw whether a group whose COMMIT failed is on disk.

        Possible for writes after an I/O error, but never for tasks: callers of ``set_state`` take
        an error for "unchanged".
        """
        return kind is Kind.WRITE and self._disk.fault == "eio" and self._disk.draw.random() < 0.5

    def _store(self, group: Sequence[Job]) -> list[object]:
        disk = self._disk
        revisions = endless(disk.revision)
        stored = (disk.messages, disk.sessions)
        changes = Changes(*stored, revisions, self._now(), (Store.SQLITE,), files=disk.files)
        outcomes = [_outcome(job, changes) for job in group]
        rows = disk.store(changes, revisions)
        if disk.state.phase.journals:
            self._journal_entries(rows)
        return outcomes

    def _journal_entries(self, rows: Sequence[JournalRow]) -> None:
        """Add the rows of a group to the journal, in its transaction."""
        self._disk.journal.extend(rows)

    def _grow(self, revision: int) -> None:
        """Record, on the event loop, the highest revision on disk."""
        if revision > self._committed:
            self._committed = revision
            for listener in self._listeners:
                listener()

    async def flush(self) -> int:
        """See the contract."""
        await self._submit(Kind.FLUSH, _nothing)
        return self._committed

    async def _change(
        self,
        ids: Sequence[str],
        sessions: Sequence[str],
        apply: Callable[[Changes], T],
        messages: Sequence[NewMessage] = (),
    ) -> T:
        return await self._write(apply, len(ids))

    async def _change_files(self, file_ids: Sequence[str], apply: Callable[[Changes], T]) -> T:
        return await self._write(apply, len(file_ids))

    # ------------------------------------------------------------------ reading

    async def _look_at_sessions(self, look: Callable[[Mapping[str, Session]], T]) -> T:
        return await self._read(lambda disk: look(disk.sessions))

    async def _look_at_files(self, look: Callable[[Mapping[str, File]], T]) -> T:
        return await self._read(lambda disk: look(disk.files))

    async def _deletable_ids(self, session_id: str, upto: int, limit: int) -> list[str]:
        return await self._look(lambda rows: deletable(rows, session_id, upto)[:limit])

    async def _look(self, look: Callable[[Rows], T]) -> T:
        return await self._read(lambda disk: look(disk.messages))

    async def _read(self, look: Callable[[SourceDisk], T]) -> T:
        """Return the result of ``look`` at one instant within the call."""
        self._ready()
        disk = self._disk
        await self._wait(disk.pause())
        if disk.draw.random() < disk.busy_readers:
            await self._wait(disk.draw.random() ** 2 * 0.3 * disk.scale)
        if self._writer is None:
            raise UnavailableError("the store is closing; try again")
        found = look(disk)
        await self._wait(disk.pause(0.001))
        return found

    async def health(self) -> StoreHealth:
        """See the contract."""
        await self._wait(self._disk.pause())
        if self._writer is None:
            return StoreHealth(Store.SQLITE, False, "the store is not open", -1, 0)
        disk = self._disk
        counts = sum(one.exists for one in disk.sessions.values()), len(disk.files)
        return StoreHealth(Store.SQLITE, True, "", len(disk.messages), SCHEMA_VERSION, *counts)

    async def quarantine(self, after: int, limit: int) -> list[QuarantinedRow]:
        """See the contract."""
        found = await self._read(lambda disk: sorted(disk.quarantine))
        return [row for row in found if row.number > after][:limit]

    async def quarantine_count(self) -> int:
        """See the contract."""
        return await self._read(lambda disk: len(disk.quarantine))

    # ------------------------------------------------------------------ state and journal

    async def state(self) -> MigrationState:
        """See the contract."""
        self.process.check_alive()
        if self._sealed is not None:
            return self._sealed
        return await self._read(lambda disk: disk.state)

    async def set_state(self, state: MigrationState, rejournal_after: int | None = None) -> int:
        """See the contract."""
        if rejournal_after is not None:
            self._rejournalled += 1
        return await self._task(lambda disk: disk.change_state(state, rejournal_after, self._now()))

    async def journal(self, after: int, limit: int) -> list[Entry]:
        """See the contract."""
        return await self._read(lambda disk: disk.entries(after, limit))

    async def journal_status(self, after: int) -> JournalStatus:
        """See the contract."""
        return await self._read(lambda disk: disk.journal_status(after))

    async def prune(self, upto: int) -> None:
        """See the contract; ends early if entries are journalled again meanwhile."""
        began = self._rejournalled
        more = True
        while more and began == self._rejournalled:
            more = await self._task(lambda disk: disk.prune_some(upto))

    async def requeue(self, ids: Sequence[str], kind: RecordKind = RecordKind.MESSAGE) -> int:
        """See the contract."""
        last = self.committed
        for start in range(0, len(ids), self._disk.rows_at_once):
            last = await self._force(ids[start : start + self._disk.rows_at_once], kind)
        return last

    async def _force(self, ids: Sequence[str], kind: RecordKind) -> int:
        return await self._task(lambda disk: disk.force(ids, kind, self._now()))

    async def journal_records(self) -> int:
        """See the contract."""
        for kind in (RecordKind.SESSION, RecordKind.FILE):
            await self._task(partial(SourceDisk.journal_records, kind=kind, now=self._now()))
        return self.committed

    # ------------------------------------------------------------------ auxiliary rows

    async def extras(self, after: tuple[str, str], limit: int) -> list[ExtraValue]:
        """See the contract."""
        found = await self._read(lambda disk: sorted(disk.extras))
        return [row for row in found if row[:2] > after][:limit]

    async def carried(self) -> AuxiliaryTally:
        """See the contract."""
        return await self._read(lambda disk: tally_of(disk.quarantine, disk.extras))

    # ------------------------------------------------------------------ archiving

    async def archive(self, report: dict[str, object]) -> Archive:
        """See the contract. Continues if the caller is cancelled, and delays the cancellation."""
        self.process.check_alive()
        async with self._archiving:
            self._disk.lock(self)
            try:
                await self._close_writer()
                return await self._archive_to_the_end()
            finally:
                self._disk.unlock(self)

    async def _archive_to_the_end(self) -> Archive:
        loop = asyncio.get_running_loop()
        work = loop.create_task(self._archive(), name="archive", context=self.process.context)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            raise

    async def _archive(self) -> Archive:
        disk = self._disk
        if disk.archive is not None:
            return disk.archive
        await self._archiving_step(0.01)
        disk.seal(self._now())
        self._sealed = disk.state
        await self._archiving_step(0.05)
        disk.archive = Archive(Path("messages.db.archive"), Path("messages.db.receipt"))
        return disk.archive

    async def _archiving_step(self, most: float) -> None:
        await self._wait(self._disk.pause(most))
        failure: StorageError | None = self._disk.failure(0.5)
        if failure is not None:
            raise failure


def _nothing(_: object) -> None:
    """Only take a place in the write queue."""


def _outcome(job: Job, message_state: object) -> object:
    """Run a job; an error affects only that job, not the rest of its group."""
    try:
        return job.run(message_state)
    except StorageError as exc:
        return exc
