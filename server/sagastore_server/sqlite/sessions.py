"""Compiler from session criteria to SQLite statements.

A list walks ``idx_sessions_active`` in the order of activity and checks each session, so a page
costs the sessions up to its end. Every value is a parameter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sagastore_server.storage.sessions import SessionCriteria, SessionScan

_COLUMNS = (
    "session_id, title, metadata, explicit, message_count, providers, first_time, first_sequence, "
    "first_message, last_time, last_sequence, created_at, updated_at, revision, deleting"
)


class SessionStatement(NamedTuple):
    """SQL with its parameters."""

    sql: str
    parameters: list[Any]


def compile_list(criteria: SessionCriteria, scan: SessionScan) -> SessionStatement:
    """Return the statement that finds the sessions of ``criteria`` within ``scan``."""
    ahead, direction = (">", "ASC") if scan.oldest_first else ("<", "DESC")
    metadata = None if criteria.metadata == "{}" else criteria.metadata
    conditions: list[tuple[str, tuple[Any, ...] | None]] = [
        ("active_at >= ?", _one(criteria.start)),
        ("active_at < ?", _one(criteria.end)),
        (f"(active_at, session_id) {ahead} (?, ?)", scan.after),
        ("metadata_contains(metadata, ?)", _one(metadata)),
        ("EXISTS (SELECT 1 FROM json_each(providers) WHERE key = ?)", _one(criteria.provider)),
        ("substr(title, 1, length(?)) = ?", _twice(criteria.title_prefix)),
    ]
    chosen = [(part, values) for part, values in conditions if values is not None]
    where = " AND ".join(["(explicit OR message_count > 0)", *[part for part, _ in chosen]])
    # Safe to join: the parts are constants of this module.
    return SessionStatement(
        f"SELECT {_COLUMNS} FROM sessions INDEXED BY idx_sessions_active"  # noqa: S608
        f" WHERE {where} ORDER BY active_at {direction}, session_id {direction} LIMIT ?",
        [value for _, values in chosen for value in values] + [scan.limit + 1],
    )


def _one(value: str | int | None) -> tuple[str | int] | None:
    return None if value is None else (value,)


def _twice(value: str | None) -> tuple[str, str] | None:
    return None if value is None else (value, value)
