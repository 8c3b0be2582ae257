"""Inspection of a database file, without changing it: what a server would do with the file."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sagastore.legacy.database import UnreadableFileError, state_of_error
from sagastore.legacy.table import RowJudge
from sagastore_server.sqlite.archived_store_guard import remembered_by, requires_postgresql
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
from sagastore_server.sqlite.legacy.files import LegacyFiles
from sagastore_server.sqlite.legacy.plan import Plan, make_plan
from sagastore_server.sqlite.legacy.table import LegacyTable
from sagastore_server.storage.errors import CannotOpenError, CorruptStoreError

RowProgress = Callable[[int, int], None]
"""Called with the rows done and the total rows, at the start and after each batch."""


class SetAside(NamedTuple):
    """A row that would go to quarantine."""

    source_key: str
    field: str
    reason: str


class LegacyReport(NamedTuple):
    """What an import would do to a legacy file."""

    rows: int
    served: int
    quarantined: int
    reasons: list[ReasonGroup]
    """Quarantine reasons. A row with two problems counts in two groups."""
    set_aside: list[SetAside]
    """Rows that would go to quarantine: all, or the first ones up to the caller's limit."""
    oddities: list[Anomaly]
    files: int | None
    """Rows of the table ``files``: served and quarantined; None without one."""
    files_quarantined: int
    files_set_aside: list[SetAside]
    """Rows of ``files`` that would go to quarantine, up to the caller's limit."""
    plan: Plan
    index_lacks: int
    """Messages that are missing from the legacy full-text index."""
    index_orphans: int
    """Entries of that index without a message."""
    bytes_needed: int
    bytes_free: int


class StoreReport(NamedTuple):
    """Contents of a SagaStore file."""

    messages: int
    quarantined: int
    revision: int
    store_id: str
    takeover: dict[str, Any] | None
    """Record of the legacy import; None if the file was not imported."""


class FileReport(NamedTuple):
    """Kind of a file, and whether this version can serve it."""

    path: Path
    size: int
    """Bytes of the main file."""
    state: FileState
    refusal: str | None
    """Why it cannot be served, as a predicate of the file's name; None if it can."""
    legacy: LegacyReport | None = None
    store: StoreReport | None = None


def look_into(
    path: Path, *, limit: int | None = None, progress: RowProgress | None = None
) -> FileReport:
    """Report on the file at ``path`` without changing it or its folder.

    A legacy file is read completely, which takes about as long as an import of its rows.

    Args:
        path: The file.
        limit: Number of rows listed of those that would go to quarantine; None for all.
        progress: Called for the rows of a legacy file.

    Raises:
        CannotOpenError: The file is unreadable.

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
                    store=_store(connection), refusal=found and requires_postgresql(found)
                )
            return _with_legacy(report, connection, limit, progress)
    except CorruptStoreError as exc:
        return report._replace(refusal=f"cannot be served: {exc}")
    except (sqlite3.Error, ValueError, TypeError) as exc:
        return _damaged(report, exc)
    except OSError as exc:
        raise CannotOpenError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def _damaged(report: FileReport, error: Exception) -> FileReport:
    """Return the report on a file whose reading raised ``error``.

    Raises:
        CannotOpenError: The file may be sound, but cannot be read.

    """
    if isinstance(error, sqlite3.Error | UnicodeError):
        try:
            state = state_of_error(str(report.path), error)
        except UnreadableFileError as exc:
            raise CannotOpenError(str(exc)) from error
    else:
        # Only the state of a SagaStore file is read without a judge of its values.
        state = FileState(Kind.CORRUPT, detail="is damaged: its state is not readable")
    return report._replace(state=state, refusal=state.detail)


def _refusal(state: FileState) -> str | None:
    if state.kind is Kind.MISSING:
        return "does not exist; a server would create it"
    if state.kind is Kind.SAGASTORE and state.schema_version > SCHEMA_VERSION:
        return (
            f"has schema version {state.schema_version}, and this server supports up to "
            f"{SCHEMA_VERSION}"
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
        return report._replace(refusal=f"cannot be imported: {exc}")
    legacy = _legacy(report.path, connection, plan, limit, progress)
    refusal = None
    rows, files = legacy.rows, legacy.files or 0
    if not legacy.served + files - legacy.files_quarantined:
        why = f"all would go to quarantine (messages: {rows:,}, files: {files:,})"
        refusal = f"has no row that can be served: {why if rows + files else 'it is empty'}"
    if legacy.bytes_free < legacy.bytes_needed:
        refusal = (
            f"cannot be imported: that needs up to {legacy.bytes_needed:,} bytes of disk space, "
            f"and {legacy.bytes_free:,} are free; free space or move the file"
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
    rows = table.count(connection)
    files = _files(connection, limit) if plan.has_files else _Files(None, 0, [])
    lacks, orphans = _drift(connection)
    anomalies = Anomalies(table)
    served, done = 0, 0
    set_aside: list[SetAside] = []
    with contextlib.closing(RowJudge(table, connection)) as judge:
        for batch in table.rows(connection):
            for row in batch:
                verdict = judge.verdict(row)
                anomalies.add(verdict)
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
        anomalies.reasons(),
        set_aside,
        anomalies.anomalies(),
        *files,
        plan,
        lacks,
        orphans,
        bytes_needed(connection),
        bytes_free(path.resolve()),
    )


class _Files(NamedTuple):
    """The fields of a LegacyReport about the table ``files``."""

    rows: int | None
    quarantined: int
    set_aside: list[SetAside]


def _files(connection: sqlite3.Connection, limit: int | None) -> _Files:
    rows = quarantined = 0
    set_aside: list[SetAside] = []
    for verdict in LegacyFiles(connection).verdicts():
        rows += 1
        if not verdict.problems:
            continue
        quarantined += 1
        if limit is None or len(set_aside) < limit:
            field = verdict.problems[0].field
            set_aside.append(SetAside(verdict.source_key, field, verdict.reason))
    return _Files(rows, quarantined, set_aside)


def _drift(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return the messages missing from the legacy full-text index, and its orphaned entries."""
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
