"""JSON form of a migration, with the same fields in the same order in all commands."""

from __future__ import annotations

from typing import Any

from sagastore import Blocker, Migration, Mismatch, VerifyProgress
from sagastore.cli.records import iso

__all__ = ["blockers", "facts", "mismatch"]


def facts(state: Migration) -> dict[str, Any]:
    """Return the state of a migration; unknown values are None."""
    backfill, last, now = state.backfill, state.last_verification, state.verifying
    return {
        "phase": state.phase.label,
        "epoch": state.epoch,
        "reads_from": state.reads_from.label,
        "reads_from_fallback": state.reads_from_fallback,
        "stores": [
            {
                "store": store.store.label,
                "healthy": store.healthy,
                "detail": store.detail,
                "messages": store.messages,
                "schema_version": store.schema_version,
                "sessions": store.sessions,
                "files": store.files,
                "revision": store.revision,
            }
            for store in state.stores
        ],
        "backfill": {
            "state": backfill.state.label,
            "step": backfill.step,
            "copied": backfill.copied,
            "total": backfill.total,
            "rows_per_second": backfill.rows_per_second,
            "eta_seconds": backfill.eta_seconds,
            "error": backfill.error,
            "pace": backfill.pace.label,
            "pace_detail": backfill.pace_detail,
        },
        "journal_rows": state.journal_rows,
        "journal_lag_seconds": state.journal_lag_seconds,
        "verifying": None if now is None else _verifying(now),
        "last_verification": None
        if last is None
        else {
            "started_at": iso(last.started_at),
            "finished_at": iso(last.finished_at),
            "compared": last.compared,
            "mismatch_count": last.mismatch_count,
            "repaired": last.repaired,
        },
        "shadow": _shadow(state),
        "quarantined": state.quarantined,
        "blockers_to_next": blockers(state.blockers_to_next),
    }


def blockers(found: tuple[Blocker, ...]) -> list[dict[str, Any]]:
    """Return unmet preconditions."""
    return [{"reason": blocker.reason, "detail": blocker.detail} for blocker in found]


def mismatch(found: Mismatch) -> dict[str, Any]:
    """Return a row that differs between the stores."""
    return {"id": found.id, "kind": found.kind.value, "fields": list(found.fields)}


def _verifying(now: VerifyProgress) -> dict[str, Any]:
    return {
        "compared": now.compared,
        "total": now.total,
        "mismatch_count": now.mismatch_count,
        "repaired": now.repaired,
    }


def _shadow(state: Migration) -> dict[str, Any]:
    shadow = state.shadow
    return {
        "compared": shadow.compared,
        "skipped": shadow.skipped,
        "different": shadow.different,
        "differences": [
            {
                "time": iso(found.time),
                "read": found.read,
                "sqlite": found.sqlite,
                "postgresql": found.postgresql,
            }
            for found in shadow.differences
        ],
    }
