"""Compiler from session criteria to PostgreSQL statements, and the rows of sessions.

A list walks ``idx_sessions_active`` in the order of activity and checks each session, so a page
costs the sessions up to its end. Every value is a parameter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from sagastore_server.storage.sessions import (
    Session,
    SessionCriteria,
    SessionScan,
    providers_from_json,
)
from sagastore_server.storage.validation import MAX_TIMESTAMP, MIN_TIMESTAMP

_COLUMNS = (
    "session_id, title, metadata::text, explicit, message_count, providers::text, first_time, "
    "first_sequence, first_message, last_time, last_sequence, created_at, updated_at, revision, "
    "deleting"
)


class SessionStatement(NamedTuple):
    """SQL with its parameters."""

    sql: str
    parameters: list[Any]


def compile_list(criteria: SessionCriteria, scan: SessionScan) -> SessionStatement:
    """Return the statement that finds the sessions of ``criteria`` within ``scan``."""
    ahead, direction = (">", "ASC") if scan.oldest_first else ("<", "DESC")
    conditions = ["(explicit OR message_count > 0)"]
    parameters: list[object] = []

    def add(part: str, *values: object) -> None:
        places = [f"${len(parameters) + number}" for number, _ in enumerate(values, 1)]
        parameters.extend(values)
        conditions.append(part.format(*places))

    if criteria.start is not None:
        add("active_at >= {}::timestamptz", criteria.start)
    if criteria.end is not None:
        add("active_at < {}::timestamptz", criteria.end)
    if scan.after is not None:
        moment = min(max(scan.after.active_at, MIN_TIMESTAMP - 1), MAX_TIMESTAMP + 1)
        place = f"(active_at, session_id) {ahead} ({{}}::timestamptz, {{}}::text)"
        add(place, moment, scan.after.session_id)
    if criteria.metadata not in {None, "{}"}:
        add("metadata @> {}::jsonb", criteria.metadata)
    if criteria.provider is not None:
        add("providers ? {}::text", criteria.provider)
    if criteria.title_prefix is not None:
        add("starts_with(title, {}::text)", criteria.title_prefix)
    where = " AND ".join(conditions)
    # Safe to join: the parts are constants of this module.
    return SessionStatement(
        f"SELECT {_COLUMNS} FROM sessions WHERE {where}"  # noqa: S608
        f" ORDER BY active_at {direction}, session_id {direction}"
        f" LIMIT ${len(parameters) + 1}::bigint",
        [*parameters, scan.limit + 1],
    )


def session_from_row(row: Sequence[Any]) -> Session:
    """Return the session of a row in the column order of sessions.sql."""
    return Session._make((*row[:5], providers_from_json(row[5]), *row[6:15]))


def locked_session(row: Sequence[Any]) -> Session:
    """Return the session of a row of the statement ``lock``: in the columns of a message first."""
    title, explicit, count, providers, *ends, updated_at, deleting = row[11:]
    values = (row[7], title, row[6], explicit, count, providers_from_json(providers))
    return Session._make((*values, *ends, row[8], updated_at, row[9], deleting))


def session_columns(session: Session) -> tuple[Any, ...]:
    """Return the columns of a session, in the order of sessions.sql."""
    providers = json.dumps(dict(session.providers), ensure_ascii=False)
    return (*session[:3], int(session.explicit), session.message_count, providers, *session[6:])
