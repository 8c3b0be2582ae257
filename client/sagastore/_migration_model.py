"""Where a migration from SQLite to PostgreSQL stands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sagastore import _json
from sagastore._enums import BackfillState, MismatchKind, Phase, Store

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
    """The copying of the rows that were there before dual write began.

    Attributes:
        state: What it is doing.
        copied: Rows copied.
        total: Rows to copy in all.
        rows_per_second: Recent speed.
        eta_seconds: Expected time left, in seconds.
        error: Why it failed or is being tried again, in one line; empty
            otherwise.
        step: What is being done now, in a few words, for people.
    """

    state: BackfillState
    copied: int
    total: int
    rows_per_second: float
    eta_seconds: float
    error: str
    step: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification found.

    Attributes:
        started_at: When it began.
        finished_at: When it ended.
        compared: Rows compared, field by field.
        mismatch_count: Rows that differed and stayed different.
        repaired: Rows put back into the journal for repair.
    """

    started_at: datetime | None
    finished_at: datetime | None
    compared: int
    mismatch_count: int
    repaired: int


@dataclass(frozen=True, slots=True)
class Blocker:
    """Something that stands in the way of the next phase.

    Attributes:
        reason: A stable name, in UPPER_SNAKE_CASE.
        detail: What it is and what to do, in one line.
    """

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """How one store does.

    Attributes:
        store: The store.
        healthy: True when it answers.
        detail: Why not, in one line; empty when healthy.
        messages: Messages in the store, as of a moment ago; None while unknown.
        schema_version: Version of its schema; None while unknown.
    """

    store: Store
    healthy: bool
    detail: str
    messages: int | None
    schema_version: int | None


@dataclass(frozen=True, slots=True)
class ShadowDifference:
    """A read that the two stores answer differently.

    Attributes:
        time: When it was read.
        read: Which read it was.
        sqlite: What SQLite answered: ids and revisions.
        postgresql: What PostgreSQL answered: ids and revisions.
    """

    time: datetime | None
    read: str
    sqlite: str
    postgresql: str


@dataclass(frozen=True, slots=True)
class ShadowReads:
    """A sample of the reads of BACKFILL, compared with PostgreSQL in the background.

    Attributes:
        compared: Reads compared.
        skipped: Reads of the sample that were not compared, because too many
            waited or the messages kept changing.
        different: Reads whose answers stayed different when the journal had
            caught up.
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
        kind: How it differs.
        fields: The fields that differ.
    """

    id: str
    kind: MismatchKind
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """How far a verification is.

    Attributes:
        compared: Rows compared so far.
        total: Rows to compare in all.
        mismatches: Mismatches found since the progress before; the server
            lists at most 1000 in all.
        done: True in the last one.
        mismatch_count: Mismatches so far.
        repaired: Rows put back into the journal so far.
    """

    compared: int
    total: int
    mismatches: tuple[Mismatch, ...]
    done: bool
    mismatch_count: int
    repaired: int


@dataclass(frozen=True, slots=True)
class Migration:
    """Where a migration stands.

    Attributes:
        phase: The phase in force.
        epoch: Counts the changes of phase; grows by one with each.
        backfill: The copying of existing rows.
        journal_rows: Writes that SQLite has and PostgreSQL has not yet.
        journal_lag_seconds: Age of the oldest of them, in seconds.
        quarantined: Rows in quarantine.
        last_verification: The last verification that ended; None before the
            first.
        blockers_to_next: What stands between this phase and the next; empty
            when nothing does.
        stores: The stores that the service is configured with.
        shadow: What comparing a sample of the reads on both stores has shown.
        reads_from_fallback: True while PostgreSQL is down or behind in
            READ_POSTGRES, so that SQLite answers reads.
        verifying: The verification that runs now; None while none does.
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
        """The store that answers reads now; UNKNOWN in a phase that is unknown."""
        if self.phase is Phase.UNKNOWN:
            return Store.UNKNOWN
        if self.phase < Phase.READ_POSTGRES or self.reads_from_fallback:
            return Store.SQLITE
        return Store.POSTGRESQL


@dataclass(frozen=True, slots=True)
class QuarantinedRow:
    """A row that could not become a message without changing its meaning.

    Attributes:
        source_key: Where it came from, for example `messages/rowid=20029`.
        reason: Why it was set aside: every reason, in one line.
        field: The first field at fault.
        row: The raw values as JSON text in UTF-8; see `columns`.
    """

    source_key: str
    reason: str
    field: str
    row: bytes

    def columns(self) -> dict[str, Any]:
        """Return the raw values by column.

        Each is None, a number, a str, or `{"base64": "…"}` for bytes and for
        text that is not valid UTF-8.
        """
        values: dict[str, Any] = _json.loads(self.row.decode())
        return values
