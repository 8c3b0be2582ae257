"""SQLiteSource: `MigrationSource` on one SQLite file."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sagastore.receipt import receipt_path
from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.runtime.supervisor import Supervisor, awaited
from sagastore_server.sqlite.archived_store_guard import StoreRecord, is_archive, moved, remembered
from sagastore_server.sqlite.auxiliary_rows import AuxiliaryRowReader
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.backup.archive import archive_file
from sagastore_server.sqlite.journal import (
    ROWS_AT_ONCE,
    change_state,
    entry_from_row,
    force,
    journal_some_files,
    journal_some_sessions,
    pending_from_rows,
    prune_some,
)
from sagastore_server.sqlite.migration_state import state_from_json
from sagastore_server.sqlite.opening import Progress
from sagastore_server.sqlite.queries import QUERIES
from sagastore_server.sqlite.readers import MOST_READ
from sagastore_server.storage.counts import PendingRecords
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
from sagastore_server.storage.sessions import RecordKind

JOURNAL_BYTES = MOST_READ
"""Messages that are read from the journal at once; a single one may be larger."""


class SQLiteSource(SQLiteStorage, MigrationSource):
    """SQLite store with a journal of its changes, which can become an archive.

    ``open`` depends on the phase of the file:

    * up to READ_POSTGRES: normal operation;
    * POSTGRES_ONLY, but a crash prevented the archiving: the store opens *sealed*. ``state``,
      ``store_id``, ``place``, ``holder`` and ``archive`` work; all other methods raise
      UnavailableError;
    * an archive, or no file but its receipt: MovedError.
    """

    def __init__(
        self,
        path: Path,
        progress: Progress | None = None,
        supervisor: Supervisor | None = None,
        *,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """As ``SQLiteStorage``."""
        super().__init__(path, progress, supervisor, tracer=tracer)
        self._auxiliary_rows = AuxiliaryRowReader(self._readers)
        self._listeners: list[Callable[[], None]] = []
        self._last_committed = 0
        self._sealed: MigrationState | None = None
        self._archiving = asyncio.Lock()
        self._store_id = ""
        self._holder = ""
        self._rejournalled = 0
        """Number of times that entries were journalled again. A ``prune`` that began earlier
        must stop then."""

    # -------------------------------------------------------------- identity

    @property
    def store_id(self) -> str:
        """See the contract; known once it is open."""
        return self._store_id

    @property
    def place(self) -> str:
        """See the contract."""
        return str(self._path)

    @property
    def is_new(self) -> bool:
        """See the contract; False if there is a receipt of an archived file."""
        real = self._path.resolve()
        return not real.exists() and not receipt_path(real).exists()

    @property
    def holder(self) -> str:
        """See the contract; known once it is open."""
        return self._holder

    @property
    def committed(self) -> int:
        """See the contract."""
        return self._last_committed

    def on_commit(self, listener: Callable[[], None]) -> None:
        """See the contract."""
        self._listeners.append(listener)

    async def flush(self) -> int:
        """See the contract."""
        # The writer reports commits and tasks to the event loop in order, so all earlier commits
        # are known when this returns.
        await self._open_writer().flush()
        return self._last_committed

    # -------------------------------------------------------------- state and journal

    async def state(self) -> MigrationState:
        """See the contract."""
        if self._sealed is not None:
            return self._sealed
        rows = await self._readers.rows(QUERIES["get_state"], ("migration",))
        return state_from_json(rows[0][0]) if rows else MigrationState()

    async def set_state(self, state: MigrationState, rejournal_after: int | None = None) -> int:
        """See the contract.

        Journalling again takes time in proportion to the messages, emptying the journal in
        proportion to its entries. Writes wait meanwhile.
        """
        if rejournal_after is not None:
            self._rejournalled += 1
        return await self._open_writer().run_in_transaction(
            partial(change_state, state=state, rejournal_after=rejournal_after)
        )

    async def journal(self, after: int, limit: int) -> list[Entry]:
        """See the contract."""
        rows = await self._readers.some(QUERIES["entries"], (after, limit), JOURNAL_BYTES)
        return [entry_from_row(row) for row in rows]

    async def journal_status(self, after: int) -> JournalStatus:
        """See the contract."""
        rows = await self._readers.rows(QUERIES["journal_status"], (after,))
        return JournalStatus(*rows[0])

    async def pending_records(self, after: int, limit: int) -> PendingRecords | None:
        """See the contract."""
        rows = await self._readers.rows(QUERIES["pending_records"], (after, limit + 1))
        return pending_from_rows(rows, after, limit)

    async def prune(self, upto: int) -> None:
        """See the contract; stops early if entries are journalled again meanwhile."""
        began = self._rejournalled
        more = True
        while more and began == self._rejournalled:
            more = await self._open_writer().run_in_transaction(partial(prune_some, upto=upto))

    async def requeue(self, ids: Sequence[str], kind: RecordKind = RecordKind.MESSAGE) -> int:
        """See the contract; the sequences are new revision numbers."""
        last = self.committed
        for start in range(0, len(ids), ROWS_AT_ONCE):
            part = ids[start : start + ROWS_AT_ONCE]
            last = await self._open_writer().run_in_transaction(partial(force, ids=part, kind=kind))
        return last

    async def journal_records(self) -> int:
        """See the contract; the sequences are new revision numbers."""
        for journal_some in (journal_some_sessions, journal_some_files):
            after: str | None = None
            more = True
            while more:
                after = await self._open_writer().run_in_transaction(
                    partial(journal_some, after=after)
                )
                more = after is not None
        return self.committed

    async def count(self) -> int:
        """See the contract."""
        count: int = await self._value("count_messages")
        return count

    # -------------------------------------------------------------- auxiliary rows

    async def extras(self, after: tuple[str, str], limit: int) -> list[ExtraValue]:
        """See the contract; fewer than ``limit`` if values are large."""
        return await self._auxiliary_rows.extras(after, limit)

    async def carried(self) -> AuxiliaryTally:
        """See the contract."""
        return await self._auxiliary_rows.carried()

    # -------------------------------------------------------------- archiving

    async def archive(self, report: dict[str, object]) -> Archive:
        """See the contract.

        The store is closed afterwards, also after a failure; ``archive`` and ``state`` still
        work. Takes time in proportion to the size of the file. A cancelled caller waits until
        the archiving has ended.
        """
        async with self._archiving:
            self._ownership.acquire()
            try:
                await self._close_connections()
                return await self._archive(report)
            finally:
                self._ownership.release()

    async def close(self) -> None:
        """See the contract; waits for a running ``archive``."""
        async with self._archiving:
            await super().close()

    async def _archive(self, report: dict[str, object]) -> Archive:
        work = awaited(
            asyncio.to_thread(archive_file, self._path.resolve(), report, self._sealed_as)
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # The lock must not be released while the file is being renamed.
            await asyncio.gather(work, return_exceptions=True)
            raise

    # -------------------------------------------------------------- opening

    async def _open_owned(self) -> None:
        found = await asyncio.to_thread(remembered, self._path, recover=True)
        if found is not None and found.state.phase is Phase.POSTGRES_ONLY:
            if is_archive(self._path.resolve(), found):
                raise moved(self._path, found)
            self._sealed, self._store_id = found.state, found.store_id
        else:
            await super()._open_owned()
            self._last_committed = self._open_writer().committed
            rows = await self._readers.rows(QUERIES["get_state"], ("store_id",))
            self._store_id = str(rows[0][0])
        self._holder = await asyncio.to_thread(_holder_of, self._path)

    def _admit(self, path: Path, found: StoreRecord) -> None:
        """Admit every file but one in POSTGRES_ONLY that ``_open_owned`` could not read."""
        if found.state.phase is Phase.POSTGRES_ONLY:
            raise moved(path, found)

    def _on_commit(self, revision: int) -> None:
        self._last_committed = revision
        for listener in self._listeners:
            listener()

    def _sealed_as(self, state: MigrationState) -> None:
        self._sealed = state


def _holder_of(path: Path) -> str:
    found = path.resolve().stat()
    return f"{socket.gethostname()}:{found.st_dev}:{found.st_ino}"
