"""Legacy import: converts an ARC SAGA ``memory.db`` into a SagaStore file, in place.

* A verified copy is made first.
* The import is one transaction. If the process is killed, the file is either the legacy file
  (SQLite rolls back when the file is next opened) or the imported one.
* Memory use does not depend on the number of rows.
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

from sagastore.legacy import reason_of
from sagastore.legacy.database import RECOVERY, UnreadableFileError, error_name, state_of_error
from sagastore.legacy.table import RowJudge, source_key
from sagastore_server import __version__
from sagastore_server.search.analysis import ANALYSIS_VERSION
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
from sagastore_server.sqlite.legacy.copy import sync_folder, verified_copy
from sagastore_server.sqlite.legacy.file_conversion import ConvertedFiles, convert_files
from sagastore_server.sqlite.legacy.plan import Plan, make_plan
from sagastore_server.sqlite.legacy.report import RowProgress
from sagastore_server.sqlite.legacy.rows import ReadyRow, ReadyRows
from sagastore_server.sqlite.legacy.table import LegacyTable
from sagastore_server.sqlite.queries import QUERIES, insert_all
from sagastore_server.storage.errors import CannotOpenError
from sagastore_server.storage.reanalysis import ANALYSIS_STATE

_ASIDE = "messages_before_sagastore"
_CACHE_KIB = 64 * 1024
_BUSY_TIMEOUT_MS = 10_000


class TakeoverReport(NamedTuple):
    """Result of a legacy import."""

    rows: int
    """Rows of the legacy table: served and quarantined."""
    served: int
    quarantined: int
    files: int
    """Rows of the legacy table ``files``: served and quarantined."""
    files_quarantined: int
    copy: Path
    """Verified copy of the original file."""
    seconds: float


def take_over(path: Path, *, progress: RowProgress | None = None) -> TakeoverReport:
    """Convert the legacy file at ``path`` into a SagaStore file.

    The caller holds the lock against other servers; SQLite's lock excludes other programs.

    * The rows of ``messages`` are converted in the order of their rowids. A row that cannot be
      read without loss goes to quarantine with its raw values.
    * The legacy full-text indexes are dropped, because nothing kept them up to date.
    * The rows of ``files`` become file records in the same way.
    * All unknown tables stay.

    Raises:
        CannotOpenError: It is not possible; the message says why. The file is as it was. A
            completed copy stays.

    """
    began = time.monotonic()
    real = path.resolve()
    try:
        with contextlib.closing(_connect(real)) as connection:
            report = _Takeover(connection, real, progress or _ignore).run(began)
        sync_folder(real.parent)
    except (sqlite3.Error, UnicodeError) as exc:
        raise CannotOpenError(f"cannot import {path}: {_explained(exc)}") from exc
    except OSError as exc:
        raise CannotOpenError(f"cannot import {path}: {exc.strerror or exc}") from exc
    return report


class _Takeover:
    """One import, from the lock to the commit."""

    def __init__(self, connection: sqlite3.Connection, path: Path, progress: RowProgress) -> None:
        self._connection = connection
        self._path = path
        self._progress = progress
        self._served = 0
        self._quarantined = 0

    def run(self, began: float) -> TakeoverReport:
        """Run the import; roll it back if it raises."""
        execute = self._connection.execute
        # From here on no other program writes, so the copy equals what is imported.
        execute("BEGIN IMMEDIATE")
        try:
            self._require_sound_legacy_file()
            plan = self._plan()
            copy = verified_copy(self._path, self._connection)
            report = self._convert(plan, copy, began)
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        return report

    def _plan(self) -> Plan:
        try:
            return make_plan(self._connection)
        except CannotOpenError as exc:
            raise CannotOpenError(f"{self._path} cannot be imported: {exc}") from exc

    def _require_sound_legacy_file(self) -> None:
        state = state_of(self._connection)
        if state.kind is not Kind.LEGACY:
            raise CannotOpenError(
                f"cannot import {self._path}: it {state.detail or f'is {state.kind.value}'}"
            )
        damaged = damage(self._connection, full=True)
        if damaged:
            raise CannotOpenError(
                f"cannot import {self._path}: it is damaged: {damaged}; {RECOVERY}"
            )

    def _convert(self, plan: Plan, copy: Path, began: float) -> TakeoverReport:
        files = scalar(self._connection, "SELECT count(*) FROM main.files") if plan.has_files else 0
        rows = scalar(self._connection, "SELECT count(*) FROM main.messages NOT INDEXED")
        plan.apply(self._connection, _ASIDE)
        for number in schema_steps():
            apply_step(self._connection, number)
        self._convert_rows(LegacyTable(self._connection, _ASIDE), copy, rows)
        self._connection.execute(QUERIES["fill_sessions"])
        self._connection.execute(f"DROP TABLE main.{_ASIDE}")
        done = convert_files(self._connection, self._served)
        self._require_nothing_lost(rows, files, done)
        report = TakeoverReport(
            rows,
            self._served,
            self._quarantined,
            files,
            done.quarantined,
            copy,
            time.monotonic() - began,
        )
        self._write_state(plan, report, done.revision)
        return report

    def _convert_rows(self, table: LegacyTable, copy: Path, total: int) -> None:
        done = 0
        self._progress(0, total)
        with contextlib.closing(RowJudge(table, self._connection)) as judge:
            for rows in ReadyRows(self._connection, table, copy).batches():
                for row in rows:
                    judge.check_unique_id(row.id, row.rowid, row.problems)
                self._serve([row for row in rows if not row.problems], table)
                self._quarantine([row for row in rows if row.problems], table)
                done += len(rows)
                self._progress(done, total)

    def _serve(self, served: list[ReadyRow], table: LegacyTable) -> None:
        numbered = list(enumerate(served, self._served + 1))
        self._served += len(served)
        # The revision equals the sequence, and both follow the order of insertion.
        messages = [(*row.columns, number, number) for number, row in numbered]
        insert_all(self._connection, "insert", messages)
        terms = [(number, *row.terms) for number, row in numbered if row.terms is not None]
        insert_all(self._connection, "index", terms)
        for column in table.extra:
            # SQLite copies the values, because Python cannot bind text that is not UTF-8.
            self._connection.executemany(
                f"INSERT INTO main.legacy_extra SELECT ?, ?, {quoted(column)}"  # noqa: S608 - quoted
                f" FROM main.{quoted(table.name)} NOT INDEXED"
                f" WHERE {table.rowid} = ? AND {quoted(column)} IS NOT NULL",
                ((row.id, column, row.rowid) for row in served),
            )

    def _quarantine(self, rows: list[ReadyRow], table: LegacyTable) -> None:
        self._quarantined += len(rows)
        for row in rows:
            (raw,) = table.between(self._connection, row.rowid, row.rowid)
            self._connection.execute(
                "INSERT INTO main.quarantine (source_key, reason, field, row) VALUES (?, ?, ?, ?)",
                (source_key(row.rowid), reason_of(row.problems), row.problems[0].field,
                 table.raw_json(raw)),
            )  # fmt: skip

    def _require_nothing_lost(self, rows: int, files: int, converted: ConvertedFiles) -> None:
        """Count the rows of the new tables.

        Raises:
            CannotOpenError: Rows are missing, which indicates a bug.

        """
        served = scalar(self._connection, "SELECT count(*) FROM main.messages NOT INDEXED")
        records = scalar(self._connection, "SELECT count(*) FROM main.files NOT INDEXED")
        quarantined = scalar(self._connection, "SELECT count(*) FROM main.quarantine NOT INDEXED")
        found = (served, records, quarantined)
        expected = (self._served, converted.served, self._quarantined + converted.quarantined)
        if found != expected or sum(found) != rows + files:
            raise CannotOpenError(
                f"cannot import {self._path}: of {rows:,} messages and {files:,} files {served:,} "
                f"and {records:,} would be served and {quarantined:,} quarantined, which does not "
                "add up; report this bug"
            )

    def _write_state(self, plan: Plan, report: TakeoverReport, revision: int) -> None:
        takeover = {
            "taken_over_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": report.rows,
            "served": report.served,
            "quarantined": report.quarantined,
            "files": report.files,
            "files_quarantined": report.files_quarantined,
            "copy": report.copy.name,
            **plan.as_json(),
            "server_version": __version__,
            "sqlite_version": sqlite3.sqlite_version,
        }
        self._connection.executemany(
            QUERIES["set_state"],
            [
                ("revision", revision),
                ("messages", report.served),
                (ANALYSIS_STATE, ANALYSIS_VERSION),
                ("store_id", str(uuid.uuid4())),
                ("takeover", json.dumps(takeover, ensure_ascii=False)),
            ],
        )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None)
    try:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        # EXTRA: the deletion of the rollback journal, which is the commit, is synced as well.
        connection.execute("PRAGMA synchronous = EXTRA")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute("PRAGMA trusted_schema = ON")
        # Other tables, views and triggers keep their references to ``messages`` while the table
        # has another name, and dropping it deletes no rows elsewhere.
        connection.execute("PRAGMA legacy_alter_table = ON")
        connection.execute("PRAGMA foreign_keys = OFF")
        # ON would make the drop of the old table journal and overwrite all its pages.
        connection.execute("PRAGMA secure_delete = OFF")
        register_owner_function(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _explained(error: sqlite3.Error | UnicodeError) -> str:
    name = error_name(error)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "another program uses it; stop the legacy application first"
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        return f"the disk is full or faulty ({error}); free space or check the disk"
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_CANTOPEN")):
        return "the server has no permission to write to it or to its folder; grant it"
    try:
        return f"it {state_of_error('it', error).detail}; {RECOVERY}"
    except UnreadableFileError as exc:
        return str(exc)


def _ignore(done: int, total: int) -> None:
    """Ignore the progress."""
