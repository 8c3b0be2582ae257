"""Conversion of the migration contract to its protobuf messages."""

from __future__ import annotations

from sagastore.v1 import migration_pb2
from sagastore_server.rpc import convert
from sagastore_server.storage.migration import (
    BackfillState,
    BackfillStatus,
    MigrationStatus,
    Pace,
    ShadowStatus,
    Verification,
    VerifyProgress,
)
from sagastore_server.storage.model import StoreHealth
from sagastore_server.storage.phase import Phase

# The values of `Phase` are the numbers of the protocol; `requests.phase` relies on it.
PHASES: dict[Phase, migration_pb2.Phase.ValueType] = {
    Phase.SQLITE_ONLY: migration_pb2.PHASE_SQLITE_ONLY,
    Phase.DUAL_WRITE: migration_pb2.PHASE_DUAL_WRITE,
    Phase.BACKFILL: migration_pb2.PHASE_BACKFILL,
    Phase.READ_POSTGRES: migration_pb2.PHASE_READ_POSTGRES,
    Phase.POSTGRES_ONLY: migration_pb2.PHASE_POSTGRES_ONLY,
}

_STATES: dict[BackfillState, migration_pb2.Backfill.State.ValueType] = {
    BackfillState.PENDING: migration_pb2.Backfill.STATE_PENDING,
    BackfillState.RUNNING: migration_pb2.Backfill.STATE_RUNNING,
    BackfillState.PAUSED: migration_pb2.Backfill.STATE_PAUSED,
    BackfillState.DONE: migration_pb2.Backfill.STATE_DONE,
    BackfillState.FAILED: migration_pb2.Backfill.STATE_FAILED,
}


_PACES: dict[Pace, migration_pb2.Backfill.Pace.ValueType] = {
    Pace.UNKNOWN: migration_pb2.Backfill.PACE_UNSPECIFIED,
    Pace.FULL: migration_pb2.Backfill.PACE_FULL,
    Pace.OPERATOR: migration_pb2.Backfill.PACE_OPERATOR,
    Pace.LATENCY: migration_pb2.Backfill.PACE_LATENCY,
    Pace.LOAD: migration_pb2.Backfill.PACE_LOAD,
}


def migration(status: MigrationStatus) -> migration_pb2.Migration:
    """Return the state of a migration as a message."""
    response = migration_pb2.Migration(
        phase=PHASES[status.phase],
        epoch=status.epoch,
        backfill=_backfill(status.backfill),
        journal_rows=status.journal_rows,
        journal_lag_seconds=status.journal_lag_seconds,
        quarantined=status.quarantined,
        blockers_to_next=[
            migration_pb2.Blocker(reason=blocker.reason, detail=_text(blocker.detail))
            for blocker in status.blockers_to_next
        ],
        stores=map(_health, status.stores),
        shadow=_shadow(status.shadow),
        reads_from_fallback=status.reads_from_fallback,
    )
    if status.last_verification is not None:
        _fill_verification(response.last_verification, status.last_verification)
    if status.verifying is not None:
        response.verifying.CopyFrom(progress(status.verifying))
    return response


def progress(value: VerifyProgress) -> migration_pb2.VerifyResponse:
    """Return the progress of a verification as a message."""
    return migration_pb2.VerifyResponse(
        compared=value.compared,
        total=value.total,
        mismatches=[
            migration_pb2.Mismatch(id=found.id, kind=found.kind, fields=found.fields)
            for found in value.mismatches
        ],
        done=value.done,
        mismatch_count=value.mismatch_count,
        repaired=value.repaired,
    )


def _backfill(status: BackfillStatus) -> migration_pb2.Backfill:
    return migration_pb2.Backfill(
        state=_STATES[status.state],
        step=status.step,
        copied=status.copied,
        total=status.total,
        rows_per_second=status.rows_per_second,
        eta_seconds=status.eta_seconds,
        error=_text(status.error),
        pace=_PACES[status.pace],
        pace_detail=status.pace_detail,
    )


def _shadow(status: ShadowStatus) -> migration_pb2.ShadowReads:
    response = migration_pb2.ShadowReads(
        compared=status.compared, skipped=status.skipped, different=status.different
    )
    for difference in status.differences:
        shown = response.differences.add(
            read=difference.read, sqlite=difference.sqlite, postgresql=difference.postgresql
        )
        convert.fill_time(shown.time, difference.at)
    return response


def _fill_verification(target: migration_pb2.Verification, source: Verification) -> None:
    convert.fill_time(target.started_at, source.started_at)
    convert.fill_time(target.finished_at, source.finished_at)
    target.compared = source.compared
    target.mismatch_count = source.mismatch_count
    target.repaired = source.repaired


def _health(health: StoreHealth) -> migration_pb2.StoreHealth:
    return migration_pb2.StoreHealth(
        store=convert.STORES[health.store],
        healthy=health.healthy,
        detail=_text(health.detail),
        messages=health.messages,
        schema_version=health.schema_version,
        sessions=_known(health.sessions),
        files=_known(health.files),
        revision=_known(health.revision),
    )


def _known(count: int) -> int | None:
    return count if count >= 0 else None


def _text(line: str) -> str:
    """Replace lone surrogates, which file names may contain and protobuf rejects."""
    return line if line.isascii() else line.encode("utf-8", "replace").decode("utf-8")
