"""MigrationSource and MigrationTarget: the contracts of the two stores of a live migration.

The package ``migration`` knows the stores by these contracts only.

* **The source is authoritative** until the last phase: it has every acknowledged write, and the
  phase stored in it is the phase in force.
* **The target stores its own progress**: which part of the source it has. The progress is
  committed together with the rows, so it is correct after any crash, and even after the target
  was restored from a backup.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.counts import CountingSource, CountingTarget
from sagastore_server.storage.file_base import FileRows
from sagastore_server.storage.files import File
from sagastore_server.storage.migration import BackfillState, Verification
from sagastore_server.storage.model import Message, QuarantinedRow
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.session_base import SessionRows
from sagastore_server.storage.sessions import RecordKind, Session

# ------------------------------------------------------------------ state of the source


class MigrationState(NamedTuple):
    """The migration state that the source stores."""

    phase: Phase = Phase.SQLITE_ONLY
    epoch: int = 1
    base: int = 0
    """The last revision when journalling began, or the position that the target had then. Later
    changes are in the journal; the backfill copies the others."""
    completing: bool = False
    """The cutover has started: the target may be in POSTGRES_ONLY, and must be asked at a start."""
    paused: bool = False
    batch_size: int = 1000
    max_rows_per_second: int = 0
    accepted_quarantine: int = -1
    """Number of quarantined rows that the operator has accepted; -1: none yet."""
    last_verification: Verification | None = None
    restored: int = -1
    """For a file restored from a backup: the last revision of that backup; otherwise -1. A start
    is refused if the target has a later one. Set to -1 after that check."""


class Entry(NamedTuple):
    """A journal entry, with the row that is stored under the id *now*."""

    sequence: int
    """The revision of the change; increases from entry to entry."""
    id: str
    message: Message | None
    """None: the row was deleted."""
    buried: int
    """The revision of the id's latest deletion; 0: never deleted."""
    forced: bool
    """From a repair: replaces whatever the target has, even at a greater revision."""
    written_at: int
    """Microseconds since 1970-01-01 UTC."""
    kind: RecordKind = RecordKind.MESSAGE
    session: Session | None = None
    """The session of the message, or the session with the id, as stored now. Only the first entry
    of a batch that concerns a session has it."""
    file: File | None = None
    """The file record with the id, as stored now. For a file, ``buried`` is its latest deletion."""


class JournalStatus(NamedTuple):
    """Pending entries of the journal."""

    rows: int
    oldest: int | None
    """When the first of them was written, in microseconds since 1970-01-01 UTC; None: no entry."""
    pruned: int
    """The greatest sequence ever pruned. The target had confirmed it."""


# ------------------------------------------------------------------ auxiliary rows


class ExtraValue(NamedTuple):
    """A value of a column that a legacy ``messages`` table had beyond the known ones."""

    message_id: str
    name: str
    value: str
    """As JSON: ``raw_row_as_json`` of ``{"value": …}``."""


class AuxiliaryRows(NamedTuple):
    """Rows that a migration copies and that never change."""

    quarantine: Sequence[QuarantinedRow] = ()
    extras: Sequence[ExtraValue] = ()


class Tally(NamedTuple):
    """Number of rows, and a SHA-256 over all of them in the order of their keys."""

    rows: int
    digest: str


class AuxiliaryTally(NamedTuple):
    """Tally of each kind; equal in both stores after a complete copy."""

    quarantine: Tally
    extras: Tally


class Archive(NamedTuple):
    """The archive of the source's file."""

    path: Path
    receipt: Path


class MigrationSource(StorageBackend, SessionRows, FileRows, CountingSource):
    """The store that is migrated from: a backend with a journal of its changes."""

    @property
    @abc.abstractmethod
    def store_id(self) -> str:
        """Identity of the store's content; the same after a restart, and in copies of the file."""

    @property
    @abc.abstractmethod
    def place(self) -> str:
        """Location of the file, for logs and errors."""

    @property
    @abc.abstractmethod
    def is_new(self) -> bool:
        """Whether ``open`` would create the file. False for a file that was archived."""

    @property
    @abc.abstractmethod
    def holder(self) -> str:
        """Identity of this file on this machine, ``host:device:inode``; differs for a copy."""

    @property
    @abc.abstractmethod
    def committed(self) -> int:
        """The greatest revision on disk.

        It is updated on the event loop before the write returns.
        """

    @abc.abstractmethod
    def on_commit(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` on the event loop whenever ``committed`` has increased."""

    @abc.abstractmethod
    async def flush(self) -> int:
        """Wait until every write submitted before this call is durable or has failed.

        Returns:
            ``committed``. A read that ended before the call has seen nothing later, not even
            a commit that the event loop had not processed yet.

        Raises:
            UnavailableError: The store is closing.

        """

    @abc.abstractmethod
    async def state(self) -> MigrationState:
        """Return the stored migration state; the default for a new store."""

    @abc.abstractmethod
    async def set_state(self, state: MigrationState, rejournal_after: int | None = None) -> int:
        """Store ``state`` and its consequences in one transaction.

        * If ``state.phase.journals``, every later change is journalled; otherwise the journal is
          emptied.
        * ``rejournal_after`` adds every change with a greater revision to the journal again
          (messages, files and tombstones), every session and every file, for a target that lacks
          them, and resets ``pruned`` to it.

        Returns:
            The greatest revision assigned before.

        """

    @abc.abstractmethod
    async def journal(self, after: int, limit: int) -> list[Entry]:
        """Return the next entries after the sequence ``after``, in order.

        * At most ``limit`` entries and about 4 MiB of messages, but at least one entry if any
          follows (of up to ``limits.LARGEST_MESSAGE``).
        * Entries and messages are of one snapshot.
        """

    @abc.abstractmethod
    async def journal_status(self, after: int) -> JournalStatus:
        """Return the status of the entries after the sequence ``after``."""

    @abc.abstractmethod
    async def prune(self, upto: int) -> None:
        """Delete entries up to the sequence ``upto``, some thousands per transaction."""

    @abc.abstractmethod
    async def requeue(self, ids: Sequence[str], kind: RecordKind = RecordKind.MESSAGE) -> int:
        """Add ids to the journal as ``forced`` entries; return the last sequence.

        The revisions of the rows do not change.
        """

    @abc.abstractmethod
    async def journal_records(self) -> int:
        """Add every session and every file to the journal, some thousands per transaction.

        Returns:
            The last sequence assigned.

        """

    @abc.abstractmethod
    async def count(self) -> int:
        """Return the exact number of messages."""

    @abc.abstractmethod
    async def extras(self, after: tuple[str, str], limit: int) -> list[ExtraValue]:
        """Return the extra values after ``(message_id, name)``, in order."""

    @abc.abstractmethod
    async def carried(self) -> AuxiliaryTally:
        """Count and digest auxiliary rows."""

    @abc.abstractmethod
    async def archive(self, report: dict[str, object]) -> Archive:
        """Close the store and turn its file into a read-only archive with a receipt.

        * ``report`` has the parts of the receipt that are not in the file.
        * The call may be repeated, on a closed or newly opened store, to finish after a crash.

        Raises:
            StorageError: The file cannot be archived; the text says what to do. The file is
                unchanged, or archived.

        """


# ------------------------------------------------------------------ state of the target


class BackfillMark(NamedTuple):
    """Progress of the backfill, as stored in the target."""

    state: BackfillState = BackfillState.PENDING
    """PENDING, RUNNING or DONE; pauses and failures are not stored here."""
    carried: bool = False
    """Whether quarantine, extra values, sessions and files have been copied."""
    cursor: str = ""
    """Every row of the backfill up to this id has been copied."""
    upto: str = ""
    """The last id to copy; later rows are in the journal."""
    copied: int = 0
    total: int = 0
    attempt: int = 0
    """Number of steps of copying the auxiliary rows, over all attempts. Each step raises it, so
    that a target that was set back between two steps has another mark."""


class TargetRecord(NamedTuple):
    """The migration record that the target stores."""

    source: str
    """``store_id`` of the source."""
    phase: Phase
    epoch: int
    holder: str
    """``MigrationSource.holder`` of the last server with the lease; empty: none yet."""
    session: str
    """Random token of the server process with the lease; empty: released."""
    lease_seconds: float
    """Seconds until the lease expires; negative: it has expired."""
    applied: int
    """The sequence up to which the journal was applied."""
    backfill: BackfillMark


class TargetState(NamedTuple):
    """Contents of the target before it is claimed."""

    schema_version: int
    """0: no schema."""
    empty: bool
    """Whether there are no messages, files and quarantined rows."""
    record: TargetRecord | None


class Lease(NamedTuple):
    """Identifies the writing server; every transaction of the target checks it."""

    holder: str
    session: str


class IndexState(NamedTuple):
    """An index that is built after the copy."""

    name: str
    valid: bool
    """Whether it exists and is usable."""


class PreparedRows:
    """Rows prepared for storage; each target has its own subclass."""


class MigrationTarget(StorageBackend, SessionRows, FileRows, CountingTarget):
    """The store that is migrated to: it applies the journal of the source.

    * Every method with a ``Lease`` is one transaction. If another server has taken over, it
      raises FencedError and changes nothing.
    * ``open`` connects and checks, and creates nothing. It may be repeated after a failure.
    * The guarantees of ``StorageBackend`` for writes hold in POSTGRES_ONLY only.
    """

    @property
    @abc.abstractmethod
    def place(self) -> str:
        """Location of the store, for logs and errors; has no secrets."""

    @abc.abstractmethod
    def on_connection_loss(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` on the event loop when a connection is lost.

        It is called before a read that is repeated on another connection returns: that
        connection may lead to a restored database, or to a standby.
        """

    @abc.abstractmethod
    async def inspect(self) -> TargetState:
        """Return the contents of the target, without changes.

        Raises:
            CannotOpenError: The database has foreign tables, or an unknown schema; the text
                says what to do.

        """

    @abc.abstractmethod
    async def claim(
        self, lease: Lease, source: str, phase: Phase, epoch: int, *, steal: bool = False
    ) -> TargetRecord:
        """Take the lease on the target for a migration.

        * Creates or upgrades the schema; a new one lacks the indexes that are built later.
        * Creates the record, with ``phase`` and ``epoch``, if there is none.
        * From now on until ``finish``, the database itself rejects writes of messages without
          the lease.
        * With ``steal``, a lease with the same ``holder`` is taken over: the caller knows that
          its server is dead. The caller, not this method, waits for the lease of another holder.

        Raises:
            PreconditionError: LEASE_HELD, TARGET_NOT_EMPTY or OTHER_MIGRATION.
            CannotOpenError: As ``inspect``.

        """

    @abc.abstractmethod
    async def renew(self, lease: Lease) -> TargetRecord:
        """Renew the lease, and return the record."""

    @abc.abstractmethod
    async def release(self, lease: Lease) -> None:
        """Release the lease. Does nothing if it is lost."""

    @abc.abstractmethod
    async def set_phase(
        self, lease: Lease, phase: Phase, epoch: int, base: int, after: int | None = None
    ) -> TargetRecord:
        """Store the phase in force, and raise ``applied`` to ``base`` if it is lower.

        With ``after`` it is a compare-and-set of the target's position.

        Raises:
            TargetSetBackError: ``applied`` is not ``after``; nothing has changed.

        """

    @abc.abstractmethod
    async def apply(self, lease: Lease, entries: Sequence[Entry], after: int | None = None) -> None:
        """Apply journal entries and store the sequence of the last, in one transaction.

        * An older revision never replaces a newer one, and a deleted row is never restored,
          unless the entry is ``forced``.
        * Applying an entry twice has no effect.
        * With ``after`` it is a compare-and-set of the target's position.

        Raises:
            TargetSetBackError: ``applied`` is not ``after``; nothing has changed.

        """

    @abc.abstractmethod
    async def prepare(self, messages: Sequence[Message]) -> PreparedRows:
        """Prepare rows for ``copy``. May run during a ``copy`` of other rows."""

    @abc.abstractmethod
    async def copy(
        self,
        lease: Lease,
        messages: Sequence[Message] | PreparedRows,
        mark: BackfillMark,
        before: BackfillMark | None = None,
        least: int = 0,
    ) -> BackfillMark:
        """Store existing rows, except those with a newer revision or a tombstone, and ``mark``.

        * With ``before`` it is a compare-and-set of the mark.
        * ``least`` is the journal position that the target must have reached.

        Returns:
            ``mark``.

        Raises:
            TargetSetBackError: The target's mark is not ``before``, or its position is lower than
                ``least``; nothing has changed.

        """

    @abc.abstractmethod
    async def carry(
        self,
        lease: Lease,
        rows: AuxiliaryRows,
        mark: BackfillMark,
        before: BackfillMark | None = None,
        *,
        first: bool,
    ) -> None:
        """Store auxiliary rows, and ``mark``; ``first`` deletes those that were copied before.

        With ``before`` it is a compare-and-set of the mark.

        Raises:
            TargetSetBackError: The target's mark is not ``before``; nothing has changed.

        """

    @abc.abstractmethod
    async def carried(self) -> AuxiliaryTally:
        """Return count and digest of the auxiliary rows."""

    @abc.abstractmethod
    async def count(self) -> int:
        """Return the exact number of messages."""

    @abc.abstractmethod
    async def indexes(self) -> list[IndexState]:
        """Return the indexes that are built after the copy, in the order of building."""

    @abc.abstractmethod
    async def build_index(self, name: str, progress: Callable[[float], None]) -> None:
        """Build an index without blocking writes; an invalid one is dropped first.

        ``progress`` is called with the completed share, from 0 to 1.
        """

    @abc.abstractmethod
    async def refresh_statistics(self) -> None:
        """Refresh the statistics of the query planner."""

    @abc.abstractmethod
    async def finish(
        self,
        lease: Lease,
        epoch: int,
        last_revision: int,
        after: int | None = None,
        before: BackfillMark | None = None,
    ) -> None:
        """Become the only store, in one transaction: POSTGRES_ONLY, without a lease.

        * Later revisions are greater than ``last_revision``.
        * With ``after`` and ``before`` it is a compare-and-set of the position and of the
          backfill mark.

        Raises:
            TargetSetBackError: The position or the mark differs; nothing has changed.
            UnavailableError: The outcome is unknown; call ``inspect``.

        """

    def serve_alone(self) -> None:
        """Serve clients as the only store from now on: tell positions and meet requirements.

        Called once ``finish`` has committed, before the first write of a client. Until then reads
        tell no positions: a write that SQLite acknowledges has none.
        """
