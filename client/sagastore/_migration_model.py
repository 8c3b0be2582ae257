"""The state of a migration from SQLite to PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sagastore import _json
from sagastore._enums import BackfillPace, BackfillState, MismatchKind, Phase, Store

__all__ = [
    "Backfill",
    "Blocker",
    "Migration",
    "Mismatch",
    "QuarantinedRow",
    "ShadowDifference",
    "ShadowReads",
    "StoreHealth",
    "Verification",
    "VerifyProgress",
]


@dataclass(frozen=True, slots=True)
class Backfill:
    """The copying of the rows that existed before dual write started.

    Attributes:
        state: The state.
        copied: Number of rows copied.
        total: Number of rows to copy in total.
        rows_per_second: Recent rate.
        eta_seconds: Estimated time left, in seconds.
        error: Why the backfill failed or is being retried, in one line; empty
            if there is no error.
        step: The current step, as text for display.
        pace: What limits the pace.
        pace_detail: The measurement behind `pace`, in one line; may be empty.
    """

    state: BackfillState
    copied: int
    total: int
    rows_per_second: float
    eta_seconds: float
    error: str
    step: str = ""
    pace: BackfillPace = BackfillPace.UNKNOWN
    pace_detail: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a verification.

    Attributes:
        started_at: Time of its start.
        finished_at: Time of its end.
        compared: Number of rows compared, field by field.
        mismatch_count: Number of rows that remained different.
        repaired: Number of rows queued for replication to repair them.
    """

    started_at: datetime | None
    finished_at: datetime | None
    compared: int
    mismatch_count: int
    repaired: int


@dataclass(frozen=True, slots=True)
class Blocker:
    """An unmet precondition of the next phase.

    Attributes:
        reason: A stable name in UPPER_SNAKE_CASE.
        detail: The problem and what to do, in one line.
    """

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """The health of one store.

    Attributes:
        store: The store.
        healthy: True if the store responds.
        detail: The problem, in one line; empty if healthy.
        messages: Recent number of messages in the store; None while unknown.
        schema_version: Version of the schema; None while unknown.
        sessions: Recent number of sessions in the store; None while unknown.
        files: Recent number of file records in the store; None while unknown.
        revision: The revision at which the numbers were counted; the same in both stores
            of a migration. None if the numbers of the stores are of different moments.
    """

    store: Store
    healthy: bool
    detail: str
    messages: int | None
    schema_version: int | None
    sessions: int | None = None
    files: int | None = None
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class ShadowDifference:
    """A read for which the two stores return different results.

    Attributes:
        time: Time of the read.
        read: Description of the read.
        sqlite: The result of SQLite: ids and revisions.
        postgresql: The result of PostgreSQL: ids and revisions.
    """

    time: datetime | None
    read: str
    sqlite: str
    postgresql: str


@dataclass(frozen=True, slots=True)
class ShadowReads:
    """Shadow reads: in BACKFILL, a sample of the reads is compared with PostgreSQL.

    Attributes:
        compared: Number of reads compared.
        skipped: Number of sampled reads not compared, because too many were
            waiting or the messages kept changing.
        different: Number of reads whose results still differed after the
            journal was applied.
        differences: The latest of those, at most 10.
    """

    compared: int = 0
    skipped: int = 0
    different: int = 0
    differences: tuple[ShadowDifference, ...] = ()


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A row that differs between the stores.

    Attributes:
        id: The message's id.
        kind: The kind of difference.
        fields: The fields that differ.
    """

    id: str
    kind: MismatchKind
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """The progress of a verification.

    Attributes:
        compared: Number of rows compared so far.
        total: Number of rows to compare in total.
        mismatches: Mismatches since the previous progress; the server lists at
            most 1000 in total.
        done: True in the last item.
        mismatch_count: Number of mismatches so far.
        repaired: Number of rows queued for replication so far.
    """

    compared: int
    total: int
    mismatches: tuple[Mismatch, ...]
    done: bool
    mismatch_count: int
    repaired: int


@dataclass(frozen=True, slots=True)
class Migration:
    """The state of a migration.

    Attributes:
        phase: The current phase.
        epoch: Number of the phase change; increases by one with each change.
        backfill: The copying of existing rows.
        journal_rows: Number of writes in SQLite that are not yet replicated to
            PostgreSQL.
        journal_lag_seconds: Age of the oldest of them, in seconds.
        quarantined: Number of rows in quarantine.
        last_verification: The last verification that finished; None before the
            first.
        blockers_to_next: Unmet preconditions of the next phase.
        stores: The stores that the service is configured with.
        shadow: The result of the shadow reads.
        reads_from_fallback: True while SQLite serves reads in READ_POSTGRES
            because PostgreSQL is down or behind.
        verifying: The verification in progress; None if there is none.
    """

    phase: Phase
    epoch: int
    backfill: Backfill
    journal_rows: int
    journal_lag_seconds: float
    quarantined: int
    last_verification: Verification | None
    blockers_to_next: tuple[Blocker, ...]
    stores: tuple[StoreHealth, ...]
    shadow: ShadowReads = ShadowReads()
    reads_from_fallback: bool = False
    verifying: VerifyProgress | None = None

    @property
    def reads_from(self) -> Store:
        """The store that serves reads; UNKNOWN if the phase is unknown."""
        if self.phase is Phase.UNKNOWN:
            return Store.UNKNOWN
        if self.phase < Phase.READ_POSTGRES or self.reads_from_fallback:
            return Store.SQLITE
        return Store.POSTGRESQL


@dataclass(frozen=True, slots=True)
class QuarantinedRow:
    """A row of a legacy file that no message can represent.

    Attributes:
        source_key: The row in its source, for example `messages/rowid=20029`.
        reason: All problems of the row, in one line.
        field: The first invalid field.
        row: The raw values as JSON text in UTF-8; see `columns`.
    """

    source_key: str
    reason: str
    field: str
    row: bytes

    def columns(self) -> dict[str, Any]:
        """Return the raw values by column.

        A value is None, a number, a str, or `{"base64": "…"}` for bytes and for
        text that is not valid UTF-8.
        """
        values: dict[str, Any] = _json.loads(self.row.decode())
        return values
