"""What can be asked of a migration, and what it answers: the contract behind MigrationService."""

from __future__ import annotations

import abc
import enum
from collections.abc import AsyncIterator
from typing import NamedTuple

from sagastore_server.storage.errors import Blocker
from sagastore_server.storage.model import StoreHealth
from sagastore_server.storage.phase import Phase


class BackfillState(enum.Enum):
    """What the copying of existing rows is doing."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    """All rows are copied and all indexes built."""
    FAILED = "failed"


class BackfillStatus(NamedTuple):
    """How far the copying is."""

    state: BackfillState
    step: str = ""
    """What is being done, for people: ``copying rows``, ``building idx_messages_tags 40 %``."""
    copied: int = 0
    total: int = 0
    rows_per_second: float = 0.0
    eta_seconds: float = 0.0
    error: str = ""
    """Why it failed or is being tried again, in one line."""


class Verification(NamedTuple):
    """A comparison of the two stores that ended."""

    started_at: int
    """Microseconds since 1970-01-01 UTC."""
    finished_at: int
    compared: int
    mismatch_count: int
    repaired: int
    revision: int
    """The last revision given out when it began: later changes were not all compared."""


class Mismatch(NamedTuple):
    """A row that differs between the stores and stayed different."""

    id: str
    kind: str
    """MISSING (in SQLite only), EXTRA (in PostgreSQL only) or DIFFERENT."""
    fields: tuple[str, ...]


class VerifyProgress(NamedTuple):
    """How far a verification is."""

    compared: int
    total: int
    mismatches: tuple[Mismatch, ...]
    """Those found since the progress before; at most 1000 in all are listed."""
    mismatch_count: int
    repaired: int
    done: bool


class ShadowDifference(NamedTuple):
    """A read that the two stores answered differently, after the journal had caught up."""

    at: int
    """Microseconds since 1970-01-01 UTC."""
    read: str
    """Which read, without the text of any message: ``Search(query …)``."""
    sqlite: str
    """What SQLite answered: ids and revisions."""
    postgresql: str


class ShadowStatus(NamedTuple):
    """What comparing a sample of the reads has shown since the backfill was done."""

    compared: int = 0
    skipped: int = 0
    """Not compared: too many waited, or the messages kept changing."""
    different: int = 0
    differences: tuple[ShadowDifference, ...] = ()
    """The latest of them, at most 10."""


class MigrationStatus(NamedTuple):
    """Where a migration stands."""

    phase: Phase
    epoch: int
    """Counts the changes of phase, from 1."""
    backfill: BackfillStatus
    journal_rows: int
    """Changes that SQLite has and PostgreSQL has not yet."""
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
    """What is known of a migration without asking a store; as in ``MigrationStatus``."""

    phase: Phase
    epoch: int
    backfill: BackfillStatus
    last_verification: Verification | None = None
    shadow: ShadowStatus = ShadowStatus()
    reads_from_fallback: bool = False
    taken_over: bool = False
    """Another server has gone on with this migration; this one must end."""
    trouble: Blocker | None = None
    """Why PostgreSQL does not follow; None: it does, or need not."""


class Backlog(NamedTuple):
    """What PostgreSQL has not yet; as in ``MigrationStatus``."""

    rows: int = 0
    lag_seconds: float = 0.0


class Inventory(NamedTuple):
    """What the stores of the phase have. Counting takes longer the more there is."""

    stores: tuple[StoreHealth, ...]
    quarantined: int


class MigrationControl(abc.ABC):
    """Watches and steers a migration."""

    @abc.abstractmethod
    def snapshot(self) -> StatusSnapshot:
        """Tell what is in memory; waits for nothing."""

    @abc.abstractmethod
    async def backlog(self) -> Backlog:
        """Tell what waits in the journal.

        Raises:
            StorageError: The journal cannot be read.

        """

    @abc.abstractmethod
    async def inventory(self) -> Inventory:
        """Ask the stores of the phase how they do, and what they have.

        Raises:
            StorageError: What is in quarantine cannot be counted.

        """

    @abc.abstractmethod
    async def status(self) -> MigrationStatus:
        """Tell where it stands. Answers within seconds, whatever hangs."""

    @abc.abstractmethod
    def watch(self) -> AsyncIterator[MigrationStatus]:
        """Tell where it stands, again on every change and at least once a second."""

    @abc.abstractmethod
    async def change_phase(
        self, phase: Phase, *, dry_run: bool, accept_quarantine: bool
    ) -> MigrationStatus:
        """Go to the next phase, or one back; to be in ``phase`` already is success.

        A change that has begun goes on if the caller is cancelled.

        Raises:
            PreconditionError: Every blocker is named; nothing has changed.
            UnavailableError: A store failed on the way; the phase in force is the old one.

        """

    @abc.abstractmethod
    async def control_backfill(
        self, *, paused: bool | None, batch_size: int | None, max_rows_per_second: int | None
    ) -> MigrationStatus:
        """Pause, resume or throttle the backfill; None leaves a setting as it is.

        Raises:
            PreconditionError: The phase is not BACKFILL.

        """

    @abc.abstractmethod
    def verify(self, *, repair: bool) -> AsyncIterator[VerifyProgress]:
        """Compare every field of every row of both stores while writes go on.

        Raises:
            PreconditionError: The phase has one store only.
            UnavailableError: A store failed on the way; nothing is concluded.

        """
