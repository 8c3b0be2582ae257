"""Conversion of a migration's protobuf messages to the types of the library."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from sagastore import _time
from sagastore._enums import BackfillPace, BackfillState, MismatchKind, Phase, Store
from sagastore._migration_model import (
    Backfill,
    Blocker,
    Migration,
    Mismatch,
    QuarantinedRow,
    ShadowDifference,
    ShadowReads,
    StoreHealth,
    Verification,
    VerifyProgress,
)
from sagastore._model import Page
from sagastore.v1 import migration_pb2

__all__ = ["migration", "quarantine_page", "verify_progress"]


def migration(pb: migration_pb2.Migration) -> Migration:
    """Return the state of a migration."""
    last = _verification(pb.last_verification) if pb.HasField("last_verification") else None
    return Migration(
        phase=Phase(pb.phase),
        epoch=pb.epoch,
        backfill=_backfill(pb.backfill),
        journal_rows=pb.journal_rows,
        journal_lag_seconds=pb.journal_lag_seconds,
        quarantined=pb.quarantined,
        last_verification=last,
        blockers_to_next=tuple(Blocker(b.reason, b.detail) for b in pb.blockers_to_next),
        stores=tuple(map(_store, pb.stores)),
        shadow=_shadow(pb.shadow),
        reads_from_fallback=pb.reads_from_fallback,
        verifying=verify_progress(pb.verifying) if pb.HasField("verifying") else None,
    )


def _backfill(pb: migration_pb2.Backfill) -> Backfill:
    return Backfill(
        state=BackfillState(pb.state),
        copied=pb.copied,
        total=pb.total,
        rows_per_second=pb.rows_per_second,
        eta_seconds=pb.eta_seconds,
        error=pb.error,
        step=pb.step,
        pace=BackfillPace(pb.pace),
        pace_detail=pb.pace_detail,
    )


def _verification(pb: migration_pb2.Verification) -> Verification:
    return Verification(
        started_at=_moment(pb.started_at) if pb.HasField("started_at") else None,
        finished_at=_moment(pb.finished_at) if pb.HasField("finished_at") else None,
        compared=pb.compared,
        mismatch_count=pb.mismatch_count,
        repaired=pb.repaired,
    )


def _moment(pb: Timestamp) -> datetime:
    return _time.from_wire(pb.seconds, pb.nanos)


def _shadow(pb: migration_pb2.ShadowReads) -> ShadowReads:
    return ShadowReads(
        compared=pb.compared,
        skipped=pb.skipped,
        different=pb.different,
        differences=tuple(
            ShadowDifference(
                time=_moment(d.time) if d.HasField("time") else None,
                read=d.read,
                sqlite=d.sqlite,
                postgresql=d.postgresql,
            )
            for d in pb.differences
        ),
    )


def _store(pb: migration_pb2.StoreHealth) -> StoreHealth:
    return StoreHealth(
        store=Store(pb.store),
        healthy=pb.healthy,
        detail=pb.detail,
        messages=pb.messages if pb.messages >= 0 else None,
        schema_version=pb.schema_version or None,
        sessions=pb.sessions if pb.HasField("sessions") else None,
        files=pb.files if pb.HasField("files") else None,
        revision=pb.revision if pb.HasField("revision") else None,
    )


def verify_progress(pb: migration_pb2.VerifyResponse) -> VerifyProgress:
    """Return the progress of a verification."""
    return VerifyProgress(
        compared=pb.compared,
        total=pb.total,
        mismatches=tuple(
            Mismatch(m.id, MismatchKind(m.kind), tuple(m.fields)) for m in pb.mismatches
        ),
        done=pb.done,
        mismatch_count=pb.mismatch_count,
        repaired=pb.repaired,
    )


def quarantine_page(pb: migration_pb2.ListQuarantineResponse) -> Page[QuarantinedRow]:
    """Return a page of quarantined rows."""
    rows = tuple(QuarantinedRow(r.source_key, r.reason, r.field, r.row) for r in pb.rows)
    return Page(rows, pb.next_page_token)
