"""Readers of SQLite databases: a legacy ARC SAGA `memory.db`, or a SagaStore server's file."""

from __future__ import annotations

import abc
import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from sagastore import Message, _json, legacy
from sagastore.cli.failures import CommandError
from sagastore.cli.times import from_micros
from sagastore.importers.base import Position, Problem, Row, counted, file_identity
from sagastore.legacy.database import (
    RECOVERY,
    FileState,
    Kind,
    ReadOnlyConnection,
    UnreadableFileError,
    damage,
    error_name,
    open_read_only,
    quoted,
    scalar,
    state_of,
    state_of_error,
)
from sagastore.legacy.table import (
    LegacyRow,
    LegacyTable,
    LegacyTableError,
    RowJudge,
    source_key,
)
from sagastore.legacy.values import MAX_MICROS, MIN_MICROS

__all__ = ["Database", "LegacyDatabase", "StoreDatabase", "open_database"]

_FIRST_ROWID: Final = -(1 << 63)
_LAST_ROWID: Final = (1 << 63) - 1
_PAGE: Final = 200
_BUSY_SECONDS: Final = 30.0
# Ctrl+C has no effect while SQLite waits for a lock, so each wait is short.
_BUSY_SLICE_MS: Final = 100
_SOME_TIME: Final = legacy.Text(b"1970-01-01")
_SHOWN_COLUMNS: Final = 5
_READABLE: Final = (
    "import reads a memory.db of ARC SAGA, the file of a SagaStore server, and JSON Lines"
)

T = TypeVar("T")


class _File:
    """A database that is read without creating or changing files; see `open_read_only`.

    A database in WAL mode that no process has open is read without locks. If another process opens
    it later, the read is repeated with locks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading = threading.Lock()
        self._closing = False
        self._stack = contextlib.ExitStack()
        self._connection = self._open()

    def _open(self) -> ReadOnlyConnection:
        connection = self._stack.enter_context(open_read_only(self._path, check_same_thread=False))
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_SLICE_MS}")
        return connection

    @property
    def copied(self) -> bool:
        """True if a temporary copy is read."""
        return self._connection.copied

    def read(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of `job`, which is repeated while the database is locked."""
        with self._reading:
            end = time.monotonic() + _BUSY_SECONDS
            while True:
                try:
                    result = job(self._connection)
                except sqlite3.OperationalError as exc:
                    locked = error_name(exc).startswith("SQLITE_BUSY")
                    if not locked or self._closing or time.monotonic() > end:
                        raise
                    continue
                wal = self._path.with_name(self._path.name + "-wal")
                if not self._connection.immutable or not wal.exists():
                    return result
                self._stack.close()
                self._connection = self._open()

    def close(self) -> bool:
        """Close the database and remove the copy; return False if another thread is reading."""
        # That thread may be waiting for a lock; the end of the process closes the file.
        self._closing = True
        if not self._reading.acquire(blocking=False):
            return False
        try:
            self._stack.close()
        finally:
            self._reading.release()
        return True


class Database(abc.ABC):
    """Base class of the readers; reads rows by rowid in pages.

    Each page is a separate statement, so no lock is held while rows are sent, and
    rows that are added during the import are read too.
    """

    kind = "database"

    def __init__(self, name: str, identity: Path | None, file: _File) -> None:
        self.name = name
        self.notes: list[str] = []
        self.left_behind = 0
        self.on_close: Callable[[], None] | None = None
        self._identity = identity
        self._file = file
        self._table = file.read(LegacyTable)
        # What the reading thread uses besides the file.
        self._used = contextlib.ExitStack()
        if file.copied:
            self.notes.append(f"{name} has an interrupted write; reading a copy")

    def identity(self) -> dict[str, Any] | None:
        """Return values that change when the file changes; None if it cannot be resumed.

        They also change on VACUUM, which renumbers the rows.
        """
        return None if self._identity is None else file_identity(self._identity)

    def total(self, start: Position | None) -> int | None:
        """Return the number of rows, including those before `start`."""
        offset, number = start or (_FIRST_ROWID, 0)
        with _named(self.name):
            return self._file.read(lambda found: self._table.count(found, offset)) + number

    def rows(self, start: Position | None) -> Iterator[Row]:
        """Yield the rows from a position on."""
        offset, number = start or (_FIRST_ROWID, 0)
        for row in self._pages(offset):
            message, problems = self._read(row)
            number += 1
            yield Row(
                source_key(row.rowid),
                row.values,
                message,
                tuple(problems),
                Position(row.rowid + 1, number),
                number,
            )

    def _pages(self, offset: int) -> Iterator[LegacyRow]:
        while offset <= _LAST_ROWID:
            with _named(self.name):
                page = self._file.read(partial(self._table.page, first=offset, limit=_PAGE))
            yield from page
            if not page:
                return
            offset = page[-1].rowid + 1

    @abc.abstractmethod
    def _read(self, row: LegacyRow) -> tuple[Message | None, list[Problem]]:
        """Return the message of a row, or its problems."""

    def raw_json(self, raw: Any) -> str:
        """Return a row's raw values as a JSON object."""
        return legacy.raw_row_as_json(self._table.columns, raw)

    def _leave_behind(self, count: int, what: str) -> None:
        """Note rows that an import does not take."""
        if count:
            self.left_behind += count
            are = "is" if count == 1 else "are"
            found = counted(count, what)
            self.notes.append(f"{self.name} also contains {found}, which {are} not imported")

    def close(self) -> None:
        """Close the file."""
        if self._file.close():
            self._used.close()
        if self.on_close is not None:
            self.on_close()


class LegacyDatabase(Database):
    """Reader of a `memory.db` of ARC SAGA; `sagastore.legacy` judges the rows."""

    kind = "ARC SAGA database"

    def __init__(self, name: str, identity: Path | None, file: _File) -> None:
        super().__init__(name, identity, file)
        self._judge = file.read(partial(RowJudge, self._table))
        self._used.callback(self._judge.close)
        self._leave_behind(file.read(_count_files), "file")
        if extra := self._table.extra:
            shown = ", ".join(extra[:_SHOWN_COLUMNS]) + (", …" if extra[_SHOWN_COLUMNS:] else "")
            self.notes.append(f"{name} also has columns that are not imported: {shown}")

    def _pages(self, offset: int) -> Iterator[LegacyRow]:
        if offset == _FIRST_ROWID or not self._judge.needs_all_rows:
            yield from super()._pages(offset)
            return
        # Resumed: an id may be that of a row before the position.
        for row in super()._pages(_FIRST_ROWID):
            if row.rowid >= offset:
                yield row
            else:
                self._judge.verdict(row)

    def _read(self, row: LegacyRow) -> tuple[Message | None, list[Problem]]:
        _, found, problems = self._judge.verdict(row)
        if problems:
            return None, [Problem(*problem) for problem in problems]
        return _message(found, from_micros(found.timestamp_us), found.created_at_us), []


class StoreDatabase(Database):
    """Reader of the file of a SagaStore server, which may be running."""

    kind = "SagaStore database"

    def __init__(self, name: str, identity: Path | None, file: _File) -> None:
        super().__init__(name, identity, file)
        missing = set(legacy.COLUMNS) - set(self._table.columns)
        if missing:
            raise CommandError(
                f"{name} belongs to an unsupported version of SagaStore "
                f"(no column {min(missing)}); use a newer sagastore, or export from the server"
            )
        self._leave_behind(file.read(partial(_count, table="quarantine")), "quarantined row")
        self._leave_behind(file.read(_count_files), "file")
        titled = partial(_count, table="sessions", where="title <> ''")
        self._leave_behind(file.read(titled), "session title")

    def _read(self, row: LegacyRow) -> tuple[Message | None, list[Problem]]:
        *texts, timestamp, metadata, session_id, created_at = self._table.known(row)
        # Only the times have another form than those of a legacy file.
        found, problems = legacy.judge_row(
            (*texts, _SOME_TIME, metadata, session_id, None), row.unreadable
        )
        times = {"timestamp": timestamp, "created_at": created_at}
        for field, value in times.items():
            if not _is_time(value) and (value is not None or field == "timestamp"):
                problems.append(legacy.Problem(field, "is not a time in microseconds"))
        if problems:
            return None, [Problem(*problem) for problem in problems]
        return _message(found, from_micros(int(timestamp or 0)), created_at), []


def _is_time(value: object) -> bool:
    return isinstance(value, int) and MIN_MICROS <= value <= MAX_MICROS


def _message(found: legacy.LegacyMessage, timestamp: datetime, created_at: Any) -> Message:
    return Message(
        found.provider,
        found.role,
        found.content,
        id=found.id,
        tags=found.tags,
        timestamp=timestamp,
        metadata=_json.loads_as_written(found.metadata),
        session_id=found.session_id,
        created_at=None if created_at is None else from_micros(created_at),
    )


def _has_messages(connection: sqlite3.Connection) -> bool:
    sql = "SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = 'messages'"
    return connection.execute(sql).fetchone() is not None


def _count_files(connection: sqlite3.Connection) -> int:
    return _count(connection, "files")


def _count(connection: sqlite3.Connection, table: str, where: str = "1") -> int:
    """Return the number of rows of a table; 0 if there is no such table."""
    found = connection.execute(
        "SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND lower(name) = ?", (table,)
    )
    if found.fetchone() is None:
        return 0
    return scalar(connection, f"SELECT count(*) FROM main.{quoted(table)} WHERE {where}")  # noqa: S608 - quoted


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Convert an error of SQLite to a CommandError with the name of the file."""
    try:
        yield
    except (sqlite3.Error, UnicodeError) as exc:
        try:
            state = state_of_error(name, exc)
        except UnreadableFileError as unreadable:
            raise CommandError(str(unreadable)) from None
        raise _refusal(name, state) from None
    except LegacyTableError as exc:
        raise CommandError(f"cannot read {name}: {exc}") from None
    except OSError as exc:
        raise CommandError(f"cannot read {name}: {exc.strerror or exc}") from None


def open_database(name: str, path: Path, identity: Path | None) -> Database:
    """Open a legacy database or a SagaStore database.

    A legacy database is checked page by page first, as the server does before it takes a file over.

    Args:
        name: The name for messages to the user.
        path: The database.
        identity: The file that identifies the source; None if the import cannot be
            resumed.

    Raises:
        CommandError: The file is another database, damaged, or cannot be read.
    """
    with _named(name):
        file = _File(path)
        try:
            return _reader_of(name, identity, file)
        except BaseException:
            file.close()
            raise


def _reader_of(name: str, identity: Path | None, file: _File) -> Database:
    state = file.read(state_of)
    if state.kind is Kind.SAGASTORE:
        if not file.read(_has_messages):
            raise CommandError(
                f"cannot read {name}: it is marked as a file of a SagaStore server, but has no "
                f"table messages; {RECOVERY}"
            )
        return StoreDatabase(name, identity, file)
    if state.kind is Kind.LEGACY:
        damaged = file.read(partial(damage, full=True))
        if not damaged:
            return LegacyDatabase(name, identity, file)
        state = FileState(Kind.CORRUPT, detail=f"is damaged: {damaged}")
    raise _refusal(name, state)


def _refusal(name: str, state: FileState) -> CommandError:
    detail = state.detail or "is an empty database"
    advice = RECOVERY if state.kind is Kind.CORRUPT else _READABLE
    return CommandError(f"cannot read {name}: it {detail}; {advice}")
