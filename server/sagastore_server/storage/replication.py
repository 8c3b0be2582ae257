"""The contracts of the two ends of a live migration.

``MigrationSource`` is the store that is moved away from, ``MigrationTarget`` the one
that is moved to. What is between them (``migration/``) knows nothing else of either.

The source is the truth until the last phase: it has every acknowledged write, so the
phase that it holds is the phase in force. The target holds what only it can know: how
much of the source it has. That is committed together with the rows themselves, so that
it is true after any crash, and even after the target was restored from a backup.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.migration import BackfillState, Verification
from sagastore_server.storage.model import Message, QuarantinedRow
from sagastore_server.storage.phase import Phase

# ------------------------------------------------------------------ what the source keeps


class MigrationState(NamedTuple):
    """What the source remembers of a migration, on disk."""

    phase: Phase = Phase.SQLITE_ONLY
    epoch: int = 1
    base: int = 0
    """The last revision given out when journalling began, or up to which the target had
    everything then: what is above is in the journal, the rest is for the backfill."""
    completing: bool = False
    """The last step has begun: the target may hold POSTGRES_ONLY, and must be asked."""
    paused: bool = False
    batch_size: int = 1000
    max_rows_per_second: int = 0
    accepted_quarantine: int = -1
    """How many rows in quarantine the operator has accepted; -1: never asked."""
    last_verification: Verification | None = None
    restored: int = -1
    """For a file that came from a backup: the last revision of that backup. What the target
    has of it must not be later, and is looked at before anything is served; then it is -1."""


class Entry(NamedTuple):
    """A change that the journal tells of, with what is stored under the id *now*."""

    sequence: int
    """Grows from entry to entry; the revision that the change was given."""
    id: str
    message: Message | None
    """None: there is none."""
    buried: int
    """The revision of the id's latest deletion; 0: never deleted."""
    forced: bool
    """From a repair: replaces whatever the target has, even at a greater revision."""
    written_at: int
    """When, in microseconds since 1970-01-01 UTC."""


class JournalStatus(NamedTuple):
    """What waits in the journal."""

    rows: int
    oldest: int | None
    """When the first of them was written, in microseconds; None: nothing waits."""
    pruned: int
    """The greatest sequence ever pruned: what the target had confirmed."""


# ------------------------------------------------------------------ what is carried along


class FileRow(NamedTuple):
    """A row of the legacy ``files`` table that both stores can represent."""

    number: int
    """Its rowid in the source."""
    id: str
    filename: str
    filepath: str
    file_type: str
    extracted_text: str | None
    tags: str | None
    file_size: int | None
    uploaded_at: str
    metadata: str | None
    created_at: str | None
    extra: str
    """Further columns, as a JSON object; see ``sagastore.legacy.raw_row_as_json``."""


class ExtraValue(NamedTuple):
    """A value of a column that a legacy ``messages`` table had beyond the known ones."""

    message_id: str
    name: str
    value: str
    """As JSON: ``raw_row_as_json`` of ``{"value": …}``."""


class AuxiliaryRows(NamedTuple):
    """Rows that are no messages and go along."""

    quarantine: Sequence[QuarantinedRow] = ()
    files: Sequence[FileRow] = ()
    extras: Sequence[ExtraValue] = ()


class Tally(NamedTuple):
    """How many rows, and a SHA-256 over all of them in the order of their keys."""

    rows: int
    digest: str


class AuxiliaryTally(NamedTuple):
    """What a store has of each kind; equal on both stores when all was carried."""

    quarantine: Tally
    files: Tally
    extras: Tally


class Archive(NamedTuple):
    """What became of the source's file."""

    path: Path
    receipt: Path


class MigrationSource(StorageBackend):
    """A store that others can follow: the side that is moved away from."""

    @property
    @abc.abstractmethod
    def store_id(self) -> str:
        """The identity of the store's content; survives restarts, and copies of the file."""

    @property
    @abc.abstractmethod
    def place(self) -> str:
        """Where the store's file is, for people."""

    @property
    @abc.abstractmethod
    def is_new(self) -> bool:
        """Whether ``open`` would create it. False also where it has moved for good."""

    @property
    @abc.abstractmethod
    def holder(self) -> str:
        """Names this very file on this very machine: ``host:device:inode``. Not a copy of it."""

    @property
    @abc.abstractmethod
    def committed(self) -> int:
        """The greatest revision on disk.

        Has grown before the caller of the write is told, on the event loop.
        """

    @abc.abstractmethod
    def on_commit(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called on the event loop whenever ``committed`` has grown."""

    @abc.abstractmethod
    async def flush(self) -> int:
        """Wait until every write submitted before this call is durable or has failed.

        Returns:
            ``committed``. A read that ended before the call has shown nothing later, even
            of a commit that was not yet known on the event loop.

        Raises:
            UnavailableError: The store is closing.

        """

    @abc.abstractmethod
    async def state(self) -> MigrationState:
        """Return what is remembered of the migration; the default for a new store."""

    @abc.abstractmethod
    async def set_state(self, state: MigrationState, rejournal_after: int | None = None) -> int:
        """Remember ``state``, in one transaction with all that follows from it.

        From then on each change is journalled if ``state.phase.journals``; otherwise the
        journal is emptied. ``rejournal_after`` puts every change with a greater revision
        into the journal again (messages and tombstones), for a target that lacks them;
        ``pruned`` is set back to it.

        Returns:
            The greatest revision given out before.

        """

    @abc.abstractmethod
    async def journal(self, after: int, limit: int) -> list[Entry]:
        """Return the next entries behind the sequence ``after``, in order.

        At most ``limit``, and no more than about 4 MiB of messages, but at least one if
        there is one. All of them, and the messages, are of one moment.
        """

    @abc.abstractmethod
    async def journal_status(self, after: int) -> JournalStatus:
        """Tell what is behind the sequence ``after``."""

    @abc.abstractmethod
    async def prune(self, upto: int) -> None:
        """Forget entries up to the sequence ``upto``, some thousands at a time."""

    @abc.abstractmethod
    async def requeue(self, ids: Sequence[str]) -> int:
        """Put ids into the journal as ``forced`` entries; return the last sequence.

        The revisions of the messages stay what they are.
        """

    @abc.abstractmethod
    async def count(self) -> int:
        """Count the messages, exactly and now."""

    @abc.abstractmethod
    async def set_aside_files(self) -> int:
        """Put rows of ``files`` that no ``FileRow`` represents into quarantine, once.

        Returns:
            How many were set aside now.

        """

    @abc.abstractmethod
    async def files(self, after: int, limit: int) -> list[FileRow]:
        """Return the files with a number greater than ``after``, in order."""

    @abc.abstractmethod
    async def extras(self, after: tuple[str, str], limit: int) -> list[ExtraValue]:
        """Return the extra values behind ``(message_id, name)``, in order."""

    @abc.abstractmethod
    async def carried(self) -> AuxiliaryTally:
        """Count and digest what is carried along."""

    @abc.abstractmethod
    async def archive(self, report: dict[str, object]) -> Archive:
        """Close the store and turn its file into a read-only archive with a receipt.

        ``report`` is what the receipt says besides what can be read from the file.
        May be called again, on a store that is closed or was just opened, to finish what
        a crash interrupted.

        Raises:
            StorageError: The file cannot be archived; says what to do. It is as it was,
                or has been archived.

        """


# ------------------------------------------------------------------ what the target keeps


class BackfillMark(NamedTuple):
    """How far the copying of existing rows is."""

    state: BackfillState = BackfillState.PENDING
    """PENDING, RUNNING or DONE: pauses and failures are not remembered here."""
    carried: bool = False
    """Quarantine, files and extra values are there."""
    cursor: str = ""
    """Every row that the backfill has to copy and whose id is not greater is there."""
    upto: str = ""
    """The last id to copy; what came later is in the journal."""
    copied: int = 0
    total: int = 0


class TargetRecord(NamedTuple):
    """What the target remembers of a migration."""

    source: str
    """``store_id`` of the source."""
    phase: Phase
    epoch: int
    holder: str
    """The file and machine whose server may write, or was the last that might; empty: none."""
    session: str
    """The server process that holds it, by a random name; empty: nobody does."""
    lease_seconds: float
    """How long the holder still has; negative: that is over."""
    applied: int
    """The sequence up to which the journal was applied."""
    backfill: BackfillMark


class TargetState(NamedTuple):
    """What is found in the target before it is claimed."""

    schema_version: int
    """0: none yet."""
    empty: bool
    """There is no message, no file and nothing in quarantine."""
    record: TargetRecord | None


class Lease(NamedTuple):
    """Proves to the target who writes; each transaction checks it."""

    holder: str
    session: str


class IndexState(NamedTuple):
    """One of the indexes that are built after the copy."""

    name: str
    valid: bool
    """There, and usable."""


class PreparedRows:
    """Rows that a target has made ready to be stored; each target has its own kind."""


class MigrationTarget(StorageBackend):
    """A store that follows another: the side that is moved to.

    Methods that take a ``Lease`` raise FencedError, and have changed nothing, when
    another holder has taken over. Each is one transaction.

    ``open`` connects and checks, and creates nothing; it may be called again after it
    failed. What ``StorageBackend`` says of writes holds in POSTGRES_ONLY alone.
    """

    @property
    @abc.abstractmethod
    def place(self) -> str:
        """Where the store is, for people; never a secret."""

    @abc.abstractmethod
    def on_connection_loss(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called on the event loop when a connection was found lost.

        It is called before the answer of a read that is repeated on another connection: what
        answers there may be a database that was restored, or a standby.
        """

    @abc.abstractmethod
    async def inspect(self) -> TargetState:
        """Tell what is there; changes nothing.

        Raises:
            CannotOpenError: Somebody else's tables, or a schema that this server does
                not know; the line says what to do.

        """

    @abc.abstractmethod
    async def claim(
        self, lease: Lease, source: str, phase: Phase, epoch: int, *, steal: bool = False
    ) -> TargetRecord:
        """Take the target for a migration, or take it over from a holder that is gone.

        Creates or upgrades the schema; a new one without the indexes that are built
        late. The record is made (with ``phase`` and ``epoch``) if there is none.
        From then on nobody without the lease can write messages, whatever server it
        is; the database itself sees to that until ``finish``.

        ``steal``: the caller knows that a former holder of the same name is dead.
        A lease of another name is waited for by the caller, not here.

        Raises:
            PreconditionError: LEASE_HELD, TARGET_NOT_EMPTY or OTHER_MIGRATION.
            CannotOpenError: As ``inspect``.

        """

    @abc.abstractmethod
    async def renew(self, lease: Lease) -> TargetRecord:
        """Hold the lease for longer, and return the record."""

    @abc.abstractmethod
    async def release(self, lease: Lease) -> None:
        """Give the lease back; harmless if it is lost."""

    @abc.abstractmethod
    async def set_phase(
        self, lease: Lease, phase: Phase, epoch: int, base: int, after: int | None = None
    ) -> TargetRecord:
        """Note a phase that is in force; raises ``applied`` to ``base`` if it is below.

        With ``after`` it is a compare-and-set of the target's position.

        Raises:
            TargetSetBackError: ``applied`` is not ``after``; nothing has changed.

        """

    @abc.abstractmethod
    async def apply(self, lease: Lease, entries: Sequence[Entry], after: int | None = None) -> None:
        """Apply journal entries and note the sequence of the last, in one transaction.

        No older value replaces a newer one and nothing deleted comes back, unless
        the entry is ``forced``. Entries that were applied already do no harm.

        With ``after`` it is a compare-and-set of the target's position.

        Raises:
            TargetSetBackError: ``applied`` is not ``after``; nothing has changed.

        """

    @abc.abstractmethod
    async def prepare(self, messages: Sequence[Message]) -> PreparedRows:
        """Work out what ``copy`` needs, which may be under way with other rows meanwhile."""

    @abc.abstractmethod
    async def copy(
        self,
        lease: Lease,
        messages: Sequence[Message] | PreparedRows,
        mark: BackfillMark,
        before: BackfillMark | None = None,
    ) -> BackfillMark:
        """Store existing rows, unless newer or deleted ones are known, and note ``mark``.

        With ``before`` it is a compare-and-set of the mark.

        Returns:
            ``mark``.

        Raises:
            TargetSetBackError: The target's mark is not ``before``; nothing has changed.

        """

    @abc.abstractmethod
    async def carry(self, lease: Lease, rows: AuxiliaryRows, *, first: bool) -> None:
        """Store rows that are no messages; ``first`` removes what was carried before."""

    @abc.abstractmethod
    async def carried(self) -> AuxiliaryTally:
        """Count and digest what was carried."""

    @abc.abstractmethod
    async def count(self) -> int:
        """Count the messages, exactly and now."""

    @abc.abstractmethod
    async def indexes(self) -> list[IndexState]:
        """Return the indexes that are built late, in the order of building."""

    @abc.abstractmethod
    async def build_index(self, name: str, progress: Callable[[float], None]) -> None:
        """Build one of them without blocking writes; an invalid one is dropped first.

        ``progress`` hears the share that is done, from 0 to 1, now and then.
        """

    @abc.abstractmethod
    async def refresh_statistics(self) -> None:
        """Let the planner know how the rows are distributed."""

    @abc.abstractmethod
    async def finish(
        self,
        lease: Lease,
        epoch: int,
        last_revision: int,
        after: int | None = None,
        before: BackfillMark | None = None,
    ) -> None:
        """Become the only store, in one transaction: POSTGRES_ONLY, open to any server.

        Revisions given out from then on are greater than ``last_revision``. With ``after``
        and ``before`` it is a compare-and-set of the position and of the backfill mark.

        Raises:
            TargetSetBackError: Position or mark are others; nothing has changed.
            UnavailableError: It may have happened or not; ask ``inspect``.

        """
