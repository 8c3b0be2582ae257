"""Looks into a database file without touching it, and tells what a server would do."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sagastore_server.sqlite.archived_store_guard import remembered_by, why_not_alone
from sagastore_server.sqlite.files import (
    SCHEMA_VERSION,
    FileState,
    Kind,
    classify,
    damage,
    open_read_only,
    scalar,
)
from sagastore_server.sqlite.legacy.anomalies import Anomalies, Anomaly, ReasonGroup
from sagastore_server.sqlite.legacy.copy import bytes_free, bytes_needed
from sagastore_server.sqlite.legacy.plan import Plan, make_plan
from sagastore_server.sqlite.legacy.table import LegacyTable, RowJudge
from sagastore_server.storage.errors import CannotOpenError, CorruptStoreError

RowProgress = Callable[[int, int], None]
"""Called with the rows done and all rows, at the start and after every thousand."""
"""Called with the rows done and all rows."""


class SetAside(NamedTuple):
    """A row that would go to quarantine."""

    source_key: str
    field: str
    reason: str


class LegacyReport(NamedTuple):
    """What a takeover would do to a legacy file."""

    rows: int
    served: int
    quarantined: int
    reasons: list[ReasonGroup]
    """Of the rows set aside. A row with two problems counts in two groups."""
    set_aside: list[SetAside]
    """The first of them, or all, as the caller asked."""
    oddities: list[Anomaly]
    files: int | None
    """Rows of the files table; None where there is none."""
    plan: Plan
    index_lacks: int
    """Messages that the legacy full-text index does not know."""
    index_orphans: int
    """Entries of that index whose message is gone."""
    bytes_needed: int
    bytes_free: int


class StoreReport(NamedTuple):
    """What is in a file that is ours."""

    messages: int
    quarantined: int
    revision: int
    store_id: str
    takeover: dict[str, Any] | None
    """How it was taken over; None for a file that was ours from the beginning."""


class FileReport(NamedTuple):
    """What a file is, and whether a server of this version can serve it."""

    path: Path
    size: int
    """Bytes of the main file."""
    state: FileState
    refusal: str | None
    """Why it cannot be served, to follow the file's name; None where it can."""
    legacy: LegacyReport | None = None
    store: StoreReport | None = None


def look_into(
    path: Path, *, limit: int | None = None, progress: RowProgress | None = None
) -> FileReport:
    """Report on the file at ``path``, changing neither it nor its folder.

    ``limit`` is how many of the rows that would be set aside are listed; None: all.
    A large legacy file is read once as a whole, which takes about as long as the
    rows of a takeover do.

    Raises:
        CannotOpenError: It cannot be read.

    """
    state = classify(path)
    size = path.stat().st_size if state.kind is not Kind.MISSING else 0
    report = FileReport(path, size, state, _refusal(state))
    if report.refusal or state.kind is Kind.EMPTY:
        return report
    try:
        with open_read_only(path) as connection:
            damaged = damage(connection, full=True)
            if damaged:
                corrupt = FileState(Kind.CORRUPT, detail=f"is damaged: {damaged}")
                return report._replace(state=corrupt, refusal=corrupt.detail)
            if state.kind is Kind.SAGASTORE:
                found = remembered_by(connection)
                return report._replace(
                    store=_store(connection), refusal=found and why_not_alone(found)
                )
            return _with_legacy(report, connection, limit, progress)
    except CorruptStoreError as exc:
        return report._replace(refusal=f"cannot be served: {exc}")
    except sqlite3.Error as exc:
        raise CannotOpenError(f"{path} cannot be read: {' '.join(str(exc).split())}") from exc
    except OSError as exc:
        raise CannotOpenError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def _refusal(state: FileState) -> str | None:
    if state.kind is Kind.MISSING:
        return "does not exist; a server would create it"
    if state.kind is Kind.SAGASTORE and state.schema_version > SCHEMA_VERSION:
        return (
            f"has schema version {state.schema_version}, this server knows up to {SCHEMA_VERSION}"
        )
    return state.detail or None


def _store(connection: sqlite3.Connection) -> StoreReport:
    state = dict(connection.execute("SELECT name, value FROM store_state"))
    takeover = state.get("takeover")
    return StoreReport(
        scalar(connection, "SELECT count(*) FROM messages"),
        scalar(connection, "SELECT count(*) FROM quarantine"),
        int(state.get("revision", 0)),
        str(state.get("store_id", "")),
        None if takeover is None else json.loads(takeover),
    )


def _with_legacy(
    report: FileReport,
    connection: sqlite3.Connection,
    limit: int | None,
    progress: RowProgress | None,
) -> FileReport:
    try:
        plan = make_plan(connection)
    except CannotOpenError as exc:
        return report._replace(refusal=f"cannot be taken over: {exc}")
    legacy = _legacy(report.path, connection, plan, limit, progress)
    refusal = None
    if legacy.bytes_free < legacy.bytes_needed:
        refusal = (
            f"cannot be taken over: that needs up to {legacy.bytes_needed:,} bytes of disk, "
            f"{legacy.bytes_free:,} are free"
        )
    return report._replace(legacy=legacy, refusal=refusal)


def _legacy(
    path: Path,
    connection: sqlite3.Connection,
    plan: Plan,
    limit: int | None,
    progress: RowProgress | None,
) -> LegacyReport:
    table = LegacyTable(connection)
    rows = scalar(connection, "SELECT count(*) FROM messages NOT INDEXED")
    files = scalar(connection, "SELECT count(*) FROM files") if plan.has_files else None
    lacks, orphans = _drift(connection)
    oddities = Anomalies(table)
    served, done = 0, 0
    set_aside: list[SetAside] = []
    with contextlib.closing(RowJudge(table, connection)) as judge:
        for batch in table.rows(connection):
            for row in batch:
                verdict = judge.verdict(row)
                oddities.add(verdict)
                if not verdict.problems:
                    served += 1
                elif limit is None or len(set_aside) < limit:
                    field = verdict.problems[0].field
                    set_aside.append(SetAside(verdict.source_key, field, verdict.reason))
            done += len(batch)
            if progress:
                progress(done, rows)
    return LegacyReport(
        done,
        served,
        done - served,
        oddities.reasons(),
        set_aside,
        oddities.oddities(),
        files,
        plan,
        lacks,
        orphans,
        bytes_needed(connection),
        bytes_free(path.resolve()),
    )


def _drift(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return how many messages the full-text index lacks, and how many it has too many."""
    try:
        return (
            scalar(
                connection,
                "SELECT count(*) FROM messages NOT INDEXED"
                " WHERE rowid NOT IN (SELECT id FROM messages_fts_docsize)",
            ),
            scalar(
                connection,
                "SELECT count(*) FROM messages_fts_docsize"
                " WHERE id NOT IN (SELECT rowid FROM messages)",
            ),
        )
    except sqlite3.OperationalError:
        return 0, 0  # There is no such index.
