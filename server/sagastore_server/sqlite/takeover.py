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
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from sagastore.legacy import RawValue, Text
from sagastore_server import __version__
from sagastore_server.analysts import Analysts
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
from sagastore_server.sqlite.index_terms import Terms, fts_columns, searched_of
from sagastore_server.sqlite.legacy_copy import fingerprint, sync_folder, verified_copy
from sagastore_server.sqlite.legacy_plan import Plan, make_plan
from sagastore_server.sqlite.legacy_table import (
    Judge,
    LegacyRow,
    LegacyTable,
    Reading,
    Verdict,
    read,
)
from sagastore_server.sqlite.queries import insert_all
from sagastore_server.storage.errors import CannotOpenError
from sagastore_server.storage.jsontext import canonical_tags

Progress = Callable[[int, int], None]
"""Called with the rows done and all rows, at the start and after every thousand."""

_ASIDE = "messages_before_sagastore"
_CACHE_KIB = 64 * 1024
_BUSY_TIMEOUT_MS = 10_000
_AHEAD = 3
"""Batches beside those that other processes read, at most."""


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


def take_over(path: Path, *, progress: Progress | None = None) -> TakeoverReport:
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


class _Indexed(NamedTuple):
    """What a row says, and what the search index is to hold of it."""

    reading: Reading
    terms: Terms
    """Empty where the row has problems."""


class _Takeover:
    """One takeover, from the lock to the commit."""

    def __init__(self, connection: sqlite3.Connection, path: Path, progress: Progress) -> None:
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
        self._carry_rows(LegacyTable(self._connection, _ASIDE), rows)
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

    def _carry_rows(self, table: LegacyTable, total: int) -> None:
        done = 0
        self._progress(0, total)
        with contextlib.closing(Judge(table)) as judge:
            for rows, found in self._read(table):
                verdicts = [
                    judge.judge(row, one.reading) for row, one in zip(rows, found, strict=True)
                ]
                both = zip(verdicts, (one.terms for one in found), strict=True)
                self._serve([(one, terms) for one, terms in both if not one.problems], table)
                self._set_aside([one for one in verdicts if one.problems], table)
                done += len(rows)
                self._progress(done, total)

    def _read(self, table: LegacyTable) -> Iterator[tuple[list[LegacyRow], list[_Indexed]]]:
        """Read all rows, some batches ahead in other processes: it is most of the work."""
        analysts = Analysts()
        ahead: deque[tuple[list[LegacyRow], Future[list[_Indexed]]]] = deque()
        try:
            for rows in table.rows(self._connection):
                values = [(_packed(table.known(row)),) for row in rows]
                if sum(not reading.done() for _, reading in ahead) > analysts.at_once:
                    # They have enough to do: this one is read here.
                    reading = Future[list[_Indexed]]()
                    reading.set_result([_read_and_index(*one) for one in values])
                else:
                    reading = analysts.submit(_read_and_index, values)
                ahead.append((rows, reading))
                while ahead and (ahead[0][1].done() or len(ahead) > analysts.at_once + _AHEAD):
                    yield _result(*ahead.popleft())
            while ahead:
                yield _result(*ahead.popleft())
        finally:
            analysts.end()

    def _serve(self, served: list[tuple[Verdict, Terms]], table: LegacyTable) -> None:
        numbered = list(enumerate(served, self._served + 1))
        self._served += len(served)
        messages = [_message_row(number, verdict) for number, (verdict, _) in numbered]
        insert_all(self._connection, "insert", messages)
        insert_all(self._connection, "index", [(number, *terms) for number, (_, terms) in numbered])
        for column in table.extra:
            # Copied by SQLite itself: Python could not bind text that is not UTF-8.
            self._connection.executemany(
                f"INSERT INTO main.legacy_extra SELECT ?, ?, {quoted(column)}"  # noqa: S608 - quoted
                f" FROM main.{quoted(table.name)} NOT INDEXED"
                f" WHERE {table.rowid} = ? AND {quoted(column)} IS NOT NULL",
                ((verdict.draft.id, column, verdict.row.rowid) for verdict, _ in served),
            )

    def _set_aside(self, verdicts: list[Verdict], table: LegacyTable) -> None:
        self._quarantined += len(verdicts)
        self._connection.executemany(
            "INSERT INTO main.quarantine (source_key, reason, field, row) VALUES (?, ?, ?, ?)",
            (
                (verdict.source_key, verdict.reason, verdict.problems[0].field,
                 table.raw_json(verdict.row))
                for verdict in verdicts
            ),
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


def _result(
    rows: list[LegacyRow], reading: Future[list[_Indexed]]
) -> tuple[list[LegacyRow], list[_Indexed]]:
    return rows, reading.result()


def _packed(values: tuple[RawValue, ...]) -> tuple[object, ...]:
    """Return what goes to another process quickly: TEXT as bytes, and a BLOB in a tuple.

    ``Text`` itself is pickled value by value, by code of Python.
    """
    return tuple(
        value if not isinstance(value, bytes) else bytes(value) if type(value) is Text else (value,)
        for value in values
    )


def _unpacked(packed: tuple[Any, ...]) -> tuple[RawValue, ...]:
    return tuple(
        Text(value) if type(value) is bytes else value[0] if type(value) is tuple else value
        for value in packed
    )


def _read_and_index(packed: tuple[object, ...]) -> _Indexed:
    reading = read(_unpacked(packed))
    if reading.problems:
        return _Indexed(reading, ("", "", ""))
    return _Indexed(reading, fts_columns(*searched_of(reading.draft)))


def _message_row(number: int, verdict: Verdict) -> tuple[object, ...]:
    draft = verdict.draft
    return (
        draft.id,
        draft.provider,
        draft.role,
        draft.content,
        canonical_tags(draft.tags),
        draft.timestamp,
        draft.metadata,
        draft.session_id,
        verdict.created_at,
        number,  # The revision: rows get theirs in the order in which they were written.
        number,
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
