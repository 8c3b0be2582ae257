"""MigrationControl: the contract behind the gRPC MigrationService, and its data types."""

from __future__ import annotations

import abc
import enum
from collections.abc import AsyncIterator
from typing import NamedTuple

from sagastore_server.storage.errors import Blocker
from sagastore_server.storage.model import StoreHealth
from sagastore_server.storage.phase import Phase


class BackfillState(enum.Enum):
    """State of the backfill, which copies existing rows."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    """All rows are copied and all indexes built."""
    FAILED = "failed"


class Pace(enum.Enum):
    """What limits the pace of the backfill."""

    UNKNOWN = enum.auto()
    """It does not copy rows now."""
    FULL = enum.auto()
    """Nothing: batch follows batch."""
    OPERATOR = enum.auto()
    """The operator's limit, ``max_rows_per_second``."""
    LATENCY = enum.auto()
    """Its own pause: batches slowed down the writes of clients."""
    LOAD = enum.auto()
    """A short pause while clients write, so that the latency of writes can be compared."""


class BackfillStatus(NamedTuple):
    """Progress of the backfill."""

    state: BackfillState
    step: str = ""
    """The current step, in plain text: ``copying rows``, ``building idx_messages_tags 40 %``."""
    copied: int = 0
    total: int = 0
    rows_per_second: float = 0.0
    eta_seconds: float = 0.0
    error: str = ""
    """Why it failed or is retried, in one line."""
    pace: Pace = Pace.UNKNOWN
    pace_detail: str = ""
    """The measurement behind ``pace``, in one line; empty: none."""


class Verification(NamedTuple):
    """Result of a completed comparison of the two stores."""

    started_at: int
    """Microseconds since 1970-01-01 UTC."""
    finished_at: int
    compared: int
    mismatch_count: int
    repaired: int
    revision: int
    """The last revision when it began; not all later changes were compared."""


class Mismatch(NamedTuple):
    """A lasting difference between the stores in one row."""

    id: str
    kind: str
    """MISSING (in SQLite only), EXTRA (in PostgreSQL only) or DIFFERENT."""
    fields: tuple[str, ...]


class VerifyProgress(NamedTuple):
    """Progress of a verification."""

    compared: int
    total: int
    mismatches: tuple[Mismatch, ...]
    """Found since the previous progress report; at most 1000 in total are listed."""
    mismatch_count: int
    repaired: int
    done: bool


class ShadowDifference(NamedTuple):
    """A read that the two stores answered differently, after the journal had caught up."""

    at: int
    """Microseconds since 1970-01-01 UTC."""
    read: str
    """The read, without the text of any message: ``Search(query …)``."""
    sqlite: str
    """The answer of SQLite: ids and revisions."""
    postgresql: str


class ShadowStatus(NamedTuple):
    """Results of the shadow reads since the backfill completed."""

    compared: int = 0
    skipped: int = 0
    """Not compared: too many were pending, or the messages kept changing."""
    different: int = 0
    differences: tuple[ShadowDifference, ...] = ()
    """The latest of them, at most 10."""


class MigrationStatus(NamedTuple):
    """Status of a migration."""

    phase: Phase
    epoch: int
    """Counts the changes of phase, from 1."""
    backfill: BackfillStatus
    journal_rows: int
    """Changes that PostgreSQL lacks."""
    journal_lag_seconds: float
    """Age of the oldest of them."""
    quarantined: int
    last_verification: Verification | None
    blockers_to_next: tuple[Blocker, ...]
    stores: tuple[StoreHealth, ...]
    shadow: ShadowStatus = ShadowStatus()
    reads_from_fallback: bool = False
    """READ_POSTGRES only: PostgreSQL is down or behind, so SQLite answers reads."""
    verifying: VerifyProgress | None = None
    """The verification that runs now."""


class StatusSnapshot(NamedTuple):
    """The part of ``MigrationStatus`` that is in memory."""

    phase: Phase
    epoch: int
    backfill: BackfillStatus
    last_verification: Verification | None = None
    shadow: ShadowStatus = ShadowStatus()
    reads_from_fallback: bool = False
    taken_over: bool = False
    """Whether another server has taken over the migration; this one must be stopped."""
    trouble: Blocker | None = None
    """Why the journal is not applied; None: it is applied, or the phase has none."""


class Backlog(NamedTuple):
    """Replication lag; the part of ``MigrationStatus`` that reads the journal."""

    rows: int = 0
    lag_seconds: float = 0.0


class Inventory(NamedTuple):
    """Health and row counts of the stores. Counting time grows with the number of rows."""

    stores: tuple[StoreHealth, ...]
    quarantined: int


class MigrationControl(abc.ABC):
    """Reports on a migration and controls it."""

    @abc.abstractmethod
    def snapshot(self) -> StatusSnapshot:
        """Return the status that is in memory, without waiting."""

    @abc.abstractmethod
    async def backlog(self) -> Backlog:
        """Return the replication lag.

        Raises:
            StorageError: The journal cannot be read.

        """

    @abc.abstractmethod
    async def inventory(self) -> Inventory:
        """Return health and row counts of the stores of the phase.

        Raises:
            StorageError: The quarantined rows cannot be counted.

        """

    @abc.abstractmethod
    async def status(self) -> MigrationStatus:
        """Return the status within seconds, even if a store hangs."""

    @abc.abstractmethod
    def watch(self) -> AsyncIterator[MigrationStatus]:
        """Yield the status now, after each change, and at least once a second."""

    @abc.abstractmethod
    async def change_phase(
        self, phase: Phase, *, dry_run: bool, accept_quarantine: bool
    ) -> MigrationStatus:
        """Change to the next or the previous phase.

        * If ``phase`` is in force already, the call succeeds without a change.
        * A started change is not interrupted if the caller is cancelled.
        * ``accept_quarantine`` accepts the rows in quarantine, and is committed with the phase.
        * ``dry_run`` checks the preconditions only.

        Raises:
            PreconditionError: Has every blocker; nothing has changed.
            UnavailableError: A store failed; nothing has changed.

        """

    @abc.abstractmethod
    async def control_backfill(
        self, *, paused: bool | None, batch_size: int | None, max_rows_per_second: int | None
    ) -> MigrationStatus:
        """Pause, resume or throttle the backfill; None leaves a setting unchanged.

        Raises:
            PreconditionError: The phase is not BACKFILL.

        """

    @abc.abstractmethod
    def verify(self, *, repair: bool) -> AsyncIterator[VerifyProgress]:
        """Compare every field of every row of both stores during normal operation.

        Raises:
            PreconditionError: The phase has one store only.
            UnavailableError: A store failed; there is no result.

        """
