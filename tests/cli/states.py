"""States of a migration, for tests of their display."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from sagastore.v1 import migration_pb2 as pb
from sagastore.v1 import storage_pb2

MOMENT = Timestamp(seconds=1_700_000_000)
SQLITE = pb.StoreHealth(
    store=storage_pb2.STORE_SQLITE, healthy=True, messages=56_086, schema_version=3
)
POSTGRESQL = pb.StoreHealth(
    store=storage_pb2.STORE_POSTGRESQL,
    healthy=True,
    messages=20_193,
    schema_version=2,
    sessions=1_204,
)
DOWN = pb.StoreHealth(
    store=storage_pb2.STORE_POSTGRESQL, healthy=False, detail="connection refused", messages=-1
)
DONE = pb.Backfill(state=pb.Backfill.STATE_DONE, copied=56_086, total=56_086)
VERIFIED = pb.Verification(
    started_at=MOMENT, finished_at=Timestamp(seconds=1_700_000_012), compared=56_086
)


def blocker(reason: str, detail: str = "what it is; what to do") -> pb.Blocker:
    """Return something in the way."""
    return pb.Blocker(reason=reason, detail=detail)


def sqlite_only(*blockers: pb.Blocker) -> pb.Migration:
    """Return the first phase."""
    return pb.Migration(
        phase=pb.PHASE_SQLITE_ONLY,
        epoch=1,
        backfill=pb.Backfill(state=pb.Backfill.STATE_PENDING),
        stores=[SQLITE, POSTGRESQL],
        blockers_to_next=blockers,
    )


def dual_write() -> pb.Migration:
    """Return a state in dual-write with writes in the journal."""
    return pb.Migration(
        phase=pb.PHASE_DUAL_WRITE,
        epoch=2,
        backfill=pb.Backfill(state=pb.Backfill.STATE_PENDING),
        journal_rows=12,
        journal_lag_seconds=0.2,
        stores=[SQLITE, POSTGRESQL],
    )


def backfill(
    state: pb.Backfill.State.ValueType = pb.Backfill.STATE_RUNNING,
    *blockers: pb.Blocker,
    error: str = "",
) -> pb.Migration:
    """Return the third phase, in the middle of the copying."""
    running = state == pb.Backfill.STATE_RUNNING
    return pb.Migration(
        phase=pb.PHASE_BACKFILL,
        epoch=3,
        backfill=pb.Backfill(
            state=state,
            copied=20_193,
            total=56_086,
            rows_per_second=5512.4 if running else 0,
            eta_seconds=6.5 if running else 0,
            step="copying rows",
            error=error,
        ),
        quarantined=1,
        stores=[SQLITE, POSTGRESQL],
        blockers_to_next=blockers or [blocker("BACKFILL_NOT_DONE")],
    )


def copied(*blockers: pb.Blocker) -> pb.Migration:
    """Return the third phase after the copying."""
    return pb.Migration(
        phase=pb.PHASE_BACKFILL,
        epoch=3,
        backfill=DONE,
        last_verification=VERIFIED,
        shadow=pb.ShadowReads(compared=120, skipped=2),
        stores=[SQLITE, POSTGRESQL],
        blockers_to_next=blockers,
    )


def differing() -> pb.Migration:
    """Return the third phase when all that can differ does."""
    state = copied(blocker("SHADOW_READS_DIFFER"), blocker("VERIFICATION_MISMATCH"))
    state.last_verification.mismatch_count = 3
    state.last_verification.repaired = 2
    state.shadow.different = 5
    for number in range(5):
        state.shadow.differences.add(
            time=MOMENT, read=f"Search({number})", sqlite="a@3, b@4", postgresql=""
        )
    return state


def verifying() -> pb.Migration:
    """Return the third phase while rows are compared."""
    state = copied(blocker("NOT_VERIFIED"))
    state.ClearField("last_verification")
    state.verifying.CopyFrom(pb.VerifyResponse(compared=28_043, total=56_086, mismatch_count=1))
    return state


def read_postgres() -> pb.Migration:
    """Return the fourth phase."""
    return pb.Migration(
        phase=pb.PHASE_READ_POSTGRES,
        epoch=4,
        backfill=DONE,
        last_verification=VERIFIED,
        stores=[SQLITE, POSTGRESQL],
    )


def fallback() -> pb.Migration:
    """Return the fourth phase while PostgreSQL is down."""
    return pb.Migration(
        phase=pb.PHASE_READ_POSTGRES,
        epoch=4,
        backfill=DONE,
        last_verification=VERIFIED,
        reads_from_fallback=True,
        journal_rows=12_000,
        journal_lag_seconds=62,
        stores=[SQLITE, DOWN],
        blockers_to_next=[blocker("POSTGRES_UNAVAILABLE", "it is down; start it")],
    )


def postgres_only() -> pb.Migration:
    """Return the last phase."""
    return pb.Migration(
        phase=pb.PHASE_POSTGRES_ONLY,
        epoch=5,
        backfill=DONE,
        last_verification=VERIFIED,
        quarantined=1,
        stores=[POSTGRESQL],
    )
