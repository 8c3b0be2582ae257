"""Takes a legacy ARC SAGA file over in place: all of it in one transaction, or nothing.

A verified copy is made first. Killed at any instant, the process leaves either the
legacy file (SQLite rolls the transaction back when the file is next opened) or the
taken-over one. Memory stays flat however many rows there are.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from sagastore_server import __version__
from sagastore_server.search.analysis import FINGERPRINT
from sagastore_server.sqlite.files import (
    Kind,
    apply_step,
    damage,
    quoted,
    register_owner_function,
    scalar,
    schema_steps,
    state_of,
)
from sagastore_server.sqlite.legacy.copy import fingerprint, sync_folder, verified_copy
from sagastore_server.sqlite.legacy.plan import Plan, make_plan
from sagastore_server.sqlite.legacy.report import RowProgress
from sagastore_server.sqlite.legacy.rows import ReadyRow, ReadyRows
from sagastore_server.sqlite.legacy.table import LegacyTable, RowJudge, reason_of, source_key
from sagastore_server.sqlite.queries import insert_all
from sagastore_server.storage.errors import CannotOpenError

_ASIDE = "messages_before_sagastore"
_CACHE_KIB = 64 * 1024
_BUSY_TIMEOUT_MS = 10_000


class TakeoverReport(NamedTuple):
    """What a takeover did."""

    rows: int
    """Rows of the legacy table: those served and those set aside."""
    served: int
    quarantined: int
    files: int
    """Rows of the legacy files table, which stays as it is."""
    copy: Path
    """The verified copy of the file as it was."""
    seconds: float


def take_over(path: Path, *, progress: RowProgress | None = None) -> TakeoverReport:
    """Turn the legacy file at ``path`` into a SagaStore file.

    The caller keeps other SagaStore servers out; SQLite's own lock keeps out
    everyone else. ``messages`` becomes ours, row by row in the order of rowids; a
    row without a faithful reading goes to quarantine, raw. The legacy full-text
    indexes are dropped: nothing kept them in step, and nothing could. ``files`` and
    every table that we do not know stay.

    Raises:
        CannotOpenError: It cannot be done, in one line that says why; the file is as
            it was. A copy that was complete by then stays.

    """
    began = time.monotonic()
    real = path.resolve()
    try:
        with contextlib.closing(_connect(real)) as connection:
            report = _Takeover(connection, real, progress or _ignore).run(began)
        sync_folder(real.parent)
    except sqlite3.Error as exc:
        raise CannotOpenError(f"cannot take over {path}: {_explained(exc)}") from exc
    except OSError as exc:
        raise CannotOpenError(f"cannot take over {path}: {exc.strerror or exc}") from exc
    return report


class _Takeover:
    """One takeover, from the lock to the commit."""

    def __init__(self, connection: sqlite3.Connection, path: Path, progress: RowProgress) -> None:
        self._connection = connection
        self._path = path
        self._progress = progress
        self._served = 0
        self._quarantined = 0

    def run(self, began: float) -> TakeoverReport:
        """Do it, or roll back and raise."""
        execute = self._connection.execute
        # From here on nobody else writes, so the copy is of what is taken over.
        execute("BEGIN IMMEDIATE")
        try:
            self._require_sound_legacy_file()
            plan = make_plan(self._connection)
            copy = verified_copy(self._path, self._connection)
            report = self._convert(plan, copy, began)
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        return report

    def _require_sound_legacy_file(self) -> None:
        state = state_of(self._connection)
        if state.kind is not Kind.LEGACY:
            raise CannotOpenError(
                f"cannot take over {self._path}: {state.detail or f'it is {state.kind.value}'}"
            )
        damaged = damage(self._connection, full=True)
        if damaged:
            raise CannotOpenError(
                f"cannot take over {self._path}: SQLite finds it damaged "
                f"({damaged}); restore a backup, or recover it into a new file "
                "(sqlite3 OLD .recover | sqlite3 NEW)"
            )

    def _convert(self, plan: Plan, copy: Path, began: float) -> TakeoverReport:
        files = fingerprint(self._connection, "files") if plan.has_files else None
        rows = scalar(self._connection, "SELECT count(*) FROM main.messages NOT INDEXED")
        plan.clear_the_way(self._connection, _ASIDE)
        for number in schema_steps():
            apply_step(self._connection, number)
        self._carry_rows(LegacyTable(self._connection, _ASIDE), copy, rows)
        self._connection.execute(f"DROP TABLE main.{_ASIDE}")
        self._require_nothing_lost(rows, files)
        report = TakeoverReport(
            rows,
            self._served,
            self._quarantined,
            scalar(self._connection, "SELECT count(*) FROM main.files"),
            copy,
            time.monotonic() - began,
        )
        self._write_state(plan, report)
        return report

    def _carry_rows(self, table: LegacyTable, copy: Path, total: int) -> None:
        done = 0
        self._progress(0, total)
        with contextlib.closing(RowJudge(table, self._connection)) as judge:
            for rows in ReadyRows(self._connection, table, copy).batches():
                for row in rows:
                    judge.look_for_twins(row.id, row.rowid, row.problems)
                self._serve([row for row in rows if not row.problems], table)
                self._set_aside([row for row in rows if row.problems], table)
                done += len(rows)
                self._progress(done, total)

    def _serve(self, served: list[ReadyRow], table: LegacyTable) -> None:
        numbered = list(enumerate(served, self._served + 1))
        self._served += len(served)
        # The revision is the number: rows get theirs in the order in which they were written.
        messages = [(*row.columns, number, number) for number, row in numbered]
        insert_all(self._connection, "insert", messages)
        terms = [(number, *row.terms) for number, row in numbered if row.terms is not None]
        insert_all(self._connection, "index", terms)
        for column in table.extra:
            # Copied by SQLite itself: Python could not bind text that is not UTF-8.
            self._connection.executemany(
                f"INSERT INTO main.legacy_extra SELECT ?, ?, {quoted(column)}"  # noqa: S608 - quoted
                f" FROM main.{quoted(table.name)} NOT INDEXED"
                f" WHERE {table.rowid} = ? AND {quoted(column)} IS NOT NULL",
                ((row.id, column, row.rowid) for row in served),
            )

    def _set_aside(self, rows: list[ReadyRow], table: LegacyTable) -> None:
        self._quarantined += len(rows)
        for row in rows:
            (raw,) = table.between(self._connection, row.rowid, row.rowid)
            self._connection.execute(
                "INSERT INTO main.quarantine (source_key, reason, field, row) VALUES (?, ?, ?, ?)",
                (source_key(row.rowid), reason_of(row.problems), row.problems[0].field,
                 table.raw_json(raw)),
            )  # fmt: skip

    def _require_nothing_lost(self, rows: int, files: bytes | None) -> None:
        """Count again in the new tables, and compare the files with what they were.

        Raises:
            CannotOpenError: Something is missing, which only a bug could bring about.

        """
        served = scalar(self._connection, "SELECT count(*) FROM main.messages NOT INDEXED")
        aside = scalar(self._connection, "SELECT count(*) FROM main.quarantine NOT INDEXED")
        if served + aside != rows or (served, aside) != (self._served, self._quarantined):
            raise CannotOpenError(
                f"cannot take over {self._path}: of {rows:,} rows {served:,} would be served and "
                f"{aside:,} set aside, which does not add up; please report this"
            )
        if files is not None and fingerprint(self._connection, "files") != files:
            raise CannotOpenError(
                f"cannot take over {self._path}: its files table would not stay as it is; "
                "please report this"
            )

    def _write_state(self, plan: Plan, report: TakeoverReport) -> None:
        takeover = {
            "taken_over_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": report.rows,
            "served": report.served,
            "quarantined": report.quarantined,
            "files": report.files,
            "copy": report.copy.name,
            **plan.as_json(),
            "server_version": __version__,
            "sqlite_version": sqlite3.sqlite_version,
        }
        self._connection.executemany(
            "INSERT INTO main.store_state (name, value) VALUES (?, ?)",
            [
                ("revision", report.served),
                ("analysis", FINGERPRINT),
                ("store_id", str(uuid.uuid4())),
                ("takeover", json.dumps(takeover, ensure_ascii=False)),
            ],
        )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None)
    try:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        # The deletion of the journal, which is the commit, must be on disk as well.
        connection.execute("PRAGMA synchronous = EXTRA")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute("PRAGMA trusted_schema = ON")
        # References of other tables, views and triggers to messages stay as they are
        # while the table is set aside, and dropping it deletes nothing elsewhere.
        connection.execute("PRAGMA legacy_alter_table = ON")
        connection.execute("PRAGMA foreign_keys = OFF")
        # Else dropping the old table would overwrite, and first journal, all of it.
        connection.execute("PRAGMA secure_delete = OFF")
        register_owner_function(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _explained(error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", None) or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "another program is using it; stop the legacy application first"
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        return f"the disk is full or fails ({error})"
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_CANTOPEN")):
        return "the server may not write to it or to its folder"
    return " ".join(str(error).split())


def _ignore(done: int, total: int) -> None:
    """Take the place of a progress callback that nobody gave."""
