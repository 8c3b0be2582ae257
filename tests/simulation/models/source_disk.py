"""Durable half of the source model: the contents of the SQLite file across a crash."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Literal, NamedTuple

from sagastore_server.sqlite.journal import ROWS_AT_ONCE
from sagastore_server.sqlite.readers import MOST_READ
from sagastore_server.storage.changes import Changes, Revisions
from sagastore_server.storage.errors import CannotOpenError, StorageFullError, UnavailableError
from sagastore_server.storage.files import File
from sagastore_server.storage.model import Message, QuarantinedRow
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    Archive,
    Entry,
    ExtraValue,
    JournalStatus,
    MigrationState,
)
from sagastore_server.storage.sessions import RecordKind, Session
from tests.simulation.models.file_rows import store_files
from tests.simulation.models.latency import Latency
from tests.simulation.models.session_rows import store_sessions

if TYPE_CHECKING:
    from tests.simulation.models.source import ModelSource

_LAST_ID = "\U0010ffff"


class JournalRow(NamedTuple):
    """Row of the journal; rows are ordered by sequence."""

    sequence: int
    id: str
    forced: bool
    written_at: int
    """Microseconds since 1970-01-01 UTC."""
    kind: RecordKind = RecordKind.MESSAGE


class SourceDisk(Latency):
    """SQLite file. Methods that change it are transactions: atomic and durable at once.

    Faults, set from outside:

    - ``fault``: commits fail with probability ``fault_rate``, because the disk is full or returns
      I/O errors.
    - ``slow``: factor for every duration.
    - ``busy_readers``: probability that a read first waits for a connection, up to 0.3 s.
    """

    def __init__(
        self,
        draw: Random,
        *,
        holder: str = "host:1:1",
        store_id: str = "store-1",
        scale: float = 1.0,
    ) -> None:
        """Create an empty file on the machine and device that ``holder`` names."""
        super().__init__(draw, scale)
        self.holder = holder
        self.store_id = store_id
        self.is_new = True
        self.messages: dict[str, Message] = {}
        self.sessions: dict[str, Session] = {}
        self.buried: dict[str, int] = {}
        """Revision of the latest deletion, by id."""
        self.revision = 0
        self.journal: list[JournalRow] = []
        self.pruned = 0
        self.state = MigrationState()
        self.archive: Archive | None = None
        """Set when the file becomes an archive."""
        self.quarantine: list[QuarantinedRow] = []
        self.files: dict[str, File] = {}
        self.buried_files: dict[str, int] = {}
        """Revision of the latest deletion, by id of a file."""
        self.extras: list[ExtraValue] = []
        self.locked_by: ModelSource | None = None
        """Store that has the file open; a crash of its process releases the lock."""

        self.fault: Literal["full", "eio"] | None = None
        self.fault_rate = 0.7
        self.busy_readers = 0.0
        self.offloaded_analysis = 0.0
        """Share of writes whose text is analysed in another thread before they are queued."""
        self.rows_at_once = ROWS_AT_ONCE
        """Journal rows that one transaction removes or adds."""
        self.commits = 0
        """Transactions since the file was created, including failed ones."""

    @property
    def archived(self) -> bool:
        """Whether the file is an archive."""
        return self.archive is not None

    # ------------------------------------------------------------------ the lock

    def lock(self, store: ModelSource) -> None:
        """Lock the file for a store; a no-op if that store has the lock."""
        owner = self.locked_by
        if owner is not None and owner is not store and not owner.process.dead:
            raise CannotOpenError("messages.db is in use by another SagaStore server")
        self.locked_by = store

    def unlock(self, store: ModelSource) -> None:
        """Unlock the file; a no-op if another store has the lock."""
        if self.locked_by is store:
            self.locked_by = None

    # ------------------------------------------------------------------ faults

    def failure(self, rate: float | None = None) -> StorageFullError | UnavailableError | None:
        """Draw the error of the next commit; None: success."""
        rate = self.fault_rate if rate is None else rate
        if self.fault is None or self.draw.random() >= rate:
            return None
        if self.fault == "full":
            return StorageFullError("the disk of the SQLite store is full; nothing was stored")
        return UnavailableError("the SQLite store cannot be used now; try again")

    # ------------------------------------------------------------------ transactions

    def store(self, changes: Changes, revisions: Revisions) -> list[JournalRow]:
        """Store the changes of a group; return the rows to journal."""
        rows = []
        for key, message in changes.after.items():
            sequence = changes.buried[key] if message is None else message.revision
            rows.append(JournalRow(sequence, key, False, changes.now))
            if message is None:
                self.messages.pop(key, None)
            else:
                self.messages[key] = message
        self.buried.update(changes.buried)
        reached = {one.session_id for one in changes.after.values() if one is not None}
        store_sessions(self.sessions, self.messages, changes)
        for session in changes.sessions:
            if session.session_id not in reached:
                entry = (session.revision, session.session_id, False, changes.now)
                rows.append(JournalRow(*entry, RecordKind.SESSION))
        for key, record in changes.files.after.items():
            sequence = changes.files.buried[key] if record is None else record.revision
            rows.append(JournalRow(sequence, key, False, changes.now, RecordKind.FILE))
        store_files(self.files, self.buried_files, changes.files)
        self.revision = max(self.revision, revisions.last)
        return sorted(rows)

    def change_state(self, state: MigrationState, rejournal_after: int | None, now: int) -> int:
        """As ``sqlite.journal.change_state``."""
        journalled = self.state.phase.journals
        revision = self.revision
        self.state = state
        if not state.phase.journals:
            self.journal.clear()
        elif rejournal_after is not None:
            self._rejournal(rejournal_after, now)
            for kind in (RecordKind.SESSION, RecordKind.FILE):
                self.journal_records(kind, now, rejournal_after)
            self.pruned = rejournal_after
        elif not journalled:
            self.pruned = self.revision
        return revision

    def _rejournal(self, after: int, now: int) -> None:
        there = {row.sequence for row in self.journal}
        changes = [(message.revision, message.id) for message in self.messages.values()]
        changes += [(revision, key) for key, revision in self.buried.items()]
        sequences = {sequence for sequence, _ in changes}
        rows = [JournalRow(sequence, key, False, now) for sequence, key in changes]
        rows += [
            JournalRow(one.revision, key, False, now, RecordKind.SESSION)
            for key, one in self.sessions.items()
            if one.revision not in sequences
        ]
        files = [(one.revision, one.id) for one in self.files.values()]
        files += [(revision, key) for key, revision in self.buried_files.items()]
        rows += [JournalRow(*one, False, now, RecordKind.FILE) for one in files]
        self.journal += [row for row in rows if row.sequence > after and row.sequence not in there]
        self.journal.sort()

    def force(self, ids: Sequence[str], kind: RecordKind, now: int) -> int:
        """As ``sqlite.journal.force``."""
        for key in ids:
            self.revision += 1
            self.journal.append(JournalRow(self.revision, key, True, now, kind))
        return self.revision

    def journal_records(self, kind: RecordKind, now: int, upto: int | None = None) -> None:
        """Add every session, or file, to the journal; with ``upto``, those up to that revision."""
        rows = self.sessions if kind is RecordKind.SESSION else self.files
        for key in sorted(rows):
            if upto is None or rows[key].revision <= upto:
                self.revision += 1
                self.journal.append(JournalRow(self.revision, key, False, now, kind))

    def prune_some(self, upto: int) -> bool:
        """As ``sqlite.journal.prune_some``: up to ``rows_at_once`` rows."""
        removed = min(self._place(upto), self.rows_at_once)
        if not removed:
            return False
        self.pruned = max(self.pruned, self.journal[removed - 1].sequence)
        del self.journal[:removed]
        return removed >= self.rows_at_once

    def seal(self, now: int) -> None:
        """Store POSTGRES_ONLY, the first step of archiving."""
        if self.state.phase is not Phase.POSTGRES_ONLY:
            last = self.state._replace(
                phase=Phase.POSTGRES_ONLY, epoch=self.state.epoch + 1, completing=False
            )
            self.change_state(last, None, now)

    # ------------------------------------------------------------------ the journal

    def entries(self, after: int, limit: int) -> list[Entry]:
        """As ``MigrationSource.journal``."""
        start = self._place(after)
        found: list[Entry] = []
        room = MOST_READ
        seen: set[str] = set()
        for row in self.journal[start : start + limit]:
            entry = self._entry(row)
            room -= entry.message.size if entry.message else 0
            room -= entry.file.size if entry.file else 0
            if found and room < 0:
                break
            if entry.session is not None:
                # A session comes with the first entry that concerns it.
                key = entry.session.session_id
                entry = entry._replace(session=None) if key in seen else entry
                seen.add(key)
            found.append(entry)
        return found

    def _entry(self, row: JournalRow) -> Entry:
        """Return the entry of a row, with its session or file."""
        values = (row.forced, row.written_at, row.kind)
        if row.kind is RecordKind.SESSION:
            session = self.sessions.get(row.id)
            return Entry(row.sequence, row.id, None, 0, *values, session)
        if row.kind is RecordKind.FILE:
            buried = self.buried_files.get(row.id, 0)
            record = self.files.get(row.id)
            return Entry(row.sequence, row.id, None, buried, *values, None, record)
        message = self.messages.get(row.id)
        session_id = None if message is None else message.session_id
        session = None if session_id is None else self.sessions.get(session_id)
        return Entry(row.sequence, row.id, message, self.buried.get(row.id, 0), *values, session)

    def journal_status(self, after: int) -> JournalStatus:
        """As ``MigrationSource.journal_status``."""
        start = self._place(after)
        oldest = self.journal[start].written_at if start < len(self.journal) else None
        return JournalStatus(len(self.journal) - start, oldest, self.pruned)

    def _place(self, after: int) -> int:
        """Return the number of rows with a sequence up to ``after``."""
        return bisect.bisect_right(self.journal, (after, _LAST_ID))
