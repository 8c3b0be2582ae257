"""Readers of SQLite databases: a legacy ARC SAGA `memory.db`, or a SagaStore server's file."""

from __future__ import annotations

import abc
import json
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from sagastore import Message, _json, legacy
from sagastore.cli.failures import CommandError
from sagastore.cli.times import from_micros
from sagastore.importers.base import Position, Problem, Row, file_identity
from sagastore.importers.spool import copy_private

__all__ = ["APPLICATION_ID", "Database", "LegacyDatabase", "StoreDatabase", "open_database"]

APPLICATION_ID: Final = 0x53414741
"""`SAGA`, the application id of a SagaStore server's file."""

_FIRST_ROWID: Final = -(1 << 63)
_LAST_ROWID: Final = (1 << 63) - 1
_PAGE: Final = 200
_BUSY_SECONDS: Final = 30.0
# Ctrl+C has no effect while SQLite waits for a lock, so each wait is short.
_BUSY_SLICE_SECONDS: Final = 0.1
_STORE_COLUMNS: Final = (
    "id",
    "provider",
    "role",
    "content",
    "tags",
    "timestamp",
    "metadata",
    "session_id",
    "created_at",
)


class _File:
    """A database opened so that reading does not create or change files.

    - A database in WAL mode that no process has open is opened as immutable,
      without locks. Otherwise SQLite would create two files beside it, which a
      reader without write access cannot remove. If another process opens the
      database later, the read is repeated in the normal mode.
    - A database with an interrupted write is read from a copy.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._immutable = False
        self.copied = False
        self._reading = threading.Lock()
        self._closing = False
        self._connection = self._open()

    def _beside(self, suffix: str) -> Path:
        return self._path.with_name(self._path.name + suffix)

    def _open(self) -> sqlite3.Connection:
        wal, shm, journal = map(self._beside, ("-wal", "-shm", "-journal"))
        if wal.exists() and shm.exists():
            return self._connect(self._path, "mode=ro")
        if wal.exists() or (journal.exists() and journal.stat().st_size):
            return self._connect(self._make_copy(), "mode=rw")
        with self._path.open("rb") as file:
            is_wal = file.read(20)[18:19] == b"\x02"
        self._immutable = is_wal
        return self._connect(self._path, "mode=ro&immutable=1" if is_wal else "mode=ro")

    def _make_copy(self) -> Path:
        """Copy the database and the log that SQLite needs to finish or undo the write."""
        self.copied = True
        self._copy = tempfile.TemporaryDirectory(prefix="sagastore-")
        for suffix in ("", "-wal", "-journal"):
            part = self._beside(suffix)
            if part.exists():
                copy_private(part, Path(self._copy.name) / part.name)
        return Path(self._copy.name) / self._path.name

    @staticmethod
    def _connect(path: Path, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{path.as_uri()}?{mode}",
            uri=True,
            timeout=_BUSY_SLICE_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )

    def fetch(
        self, sql: str, parameters: Sequence[Any] = (), text_factory: Any = str
    ) -> list[tuple[Any, ...]]:
        """Return all rows of a statement."""
        with self._reading:
            return self._fetch(sql, parameters, text_factory)

    def _fetch(
        self, sql: str, parameters: Sequence[Any], text_factory: Any
    ) -> list[tuple[Any, ...]]:
        end = time.monotonic() + _BUSY_SECONDS
        while True:
            self._connection.text_factory = text_factory
            try:
                rows: list[tuple[Any, ...]] = self._connection.execute(sql, parameters).fetchall()
            except sqlite3.OperationalError as exc:
                if not _is_busy(exc) or self._closing or time.monotonic() > end:
                    raise
                continue
            if not self._immutable or not self._beside("-wal").exists():
                return rows
            self._connection.close()
            self._immutable = False
            self._connection = self._open()

    def columns(self, table: str) -> dict[str, str]:
        """Return the names of a table's columns by their lower-case form."""
        found = self.fetch("SELECT name FROM pragma_table_info(?)", (table,))
        return {name.lower(): name for (name,) in found}

    def close(self) -> None:
        """Close the database and remove the copy, unless another thread is reading."""
        # That thread may be waiting for a lock; the end of the process closes the file.
        self._closing = True
        if not self._reading.acquire(blocking=False):
            return
        try:
            self._connection.close()
            if self._copy is not None:
                self._copy.cleanup()
        finally:
            self._reading.release()


def _is_busy(error: sqlite3.Error) -> bool:
    # Errors of the Python module, such as undecodable text, have no code.
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_BUSY


class Database(abc.ABC):
    """Base class of the readers; reads rows by rowid in pages.

    Each page is a separate statement, so no lock is held while rows are sent, and
    rows that are added during the import are read too.
    """

    kind = "database"
    _text_factory: Any = str

    def __init__(self, name: str, identity: Path | None, file: _File) -> None:
        self.name = name
        self.notes: list[str] = []
        self.on_close: Callable[[], None] | None = None
        self._identity = identity
        self._file = file
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
        where = "SELECT count(*) FROM messages WHERE rowid >= ?"
        with _named(self.name):
            ((count,),) = self._file.fetch(where, (offset,))
        return int(count) + number

    def rows(self, start: Position | None) -> Iterator[Row]:
        """Yield the rows from a position on."""
        offset, number = start or (_FIRST_ROWID, 0)
        sql = f"{self._select()} WHERE rowid >= ? ORDER BY rowid LIMIT {_PAGE}"
        while offset <= _LAST_ROWID:
            with _named(self.name):
                page = self._file.fetch(sql, (offset,), self._text_factory)
            for rowid, *values in page:
                offset, number = rowid + 1, number + 1
                message, problems = self._read(values)
                yield Row(
                    f"messages/rowid={rowid}",
                    values,
                    message,
                    tuple(problems),
                    Position(offset, number),
                    number,
                )
            if not page:
                return

    @abc.abstractmethod
    def _select(self) -> str:
        """Return the SELECT statement without its WHERE clause."""

    @abc.abstractmethod
    def _read(self, values: list[Any]) -> tuple[Message | None, list[Problem]]:
        """Return the message of a row, or its problems."""

    @abc.abstractmethod
    def raw_json(self, raw: Any) -> str:
        """Return a row's raw values as a JSON object."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        if self.on_close is not None:
            self.on_close()


class LegacyDatabase(Database):
    """Reader of a `memory.db` of ARC SAGA; `sagastore.legacy` interprets the rows."""

    kind = "ARC SAGA database"
    _text_factory = legacy.Text

    def __init__(self, name: str, identity: Path | None, file: _File) -> None:
        super().__init__(name, identity, file)
        self._columns = file.columns("messages")
        if file.columns("files"):
            ((files,),) = file.fetch("SELECT count(*) FROM files")
            if files:
                self.notes.append(f"{name} also contains {files:,} files, which are not imported")

    def _select(self) -> str:
        # A missing optional column means NULL.
        names = [
            f'"{self._columns[name]}"' if name in self._columns else "NULL"
            for name in legacy.COLUMNS
        ]
        return f"SELECT rowid, {', '.join(names)} FROM messages"  # noqa: S608 - names from a constant

    def _read(self, values: list[Any]) -> tuple[Message | None, list[Problem]]:
        row, found = legacy.read_row(values)
        problems = [Problem(*problem) for problem in found]
        metadata: dict[str, Any] = {}
        try:
            metadata = _json.loads_as_written(row.metadata)
        except ValueError as exc:
            problems.append(Problem("metadata", str(exc)))
        if not row.id and not any(problem.field == "id" for problem in problems):
            # The client would assign a different id on every import.
            problems.append(Problem("id", "is empty"))
        if problems:
            return None, problems
        message = Message(
            row.provider,
            row.role,
            row.content,
            id=row.id,
            tags=row.tags,
            timestamp=from_micros(row.timestamp_us),
            metadata=metadata,
            session_id=row.session_id,
            created_at=None if row.created_at_us is None else from_micros(row.created_at_us),
        )
        return message, []

    def raw_json(self, raw: Any) -> str:
        """Return a row's raw values as a JSON object."""
        return legacy.raw_row_as_json(legacy.COLUMNS, raw)


class StoreDatabase(Database):
    """Reader of the file of a SagaStore server, which may be running."""

    kind = "SagaStore database"

    def __init__(self, name: str, identity: Path | None, file: _File) -> None:
        super().__init__(name, identity, file)
        missing = set(_STORE_COLUMNS) - set(file.columns("messages"))
        if missing:
            raise CommandError(
                f"{name} belongs to an unsupported version of SagaStore "
                f"(no column {min(missing)}); use a newer sagastore, or export from the server"
            )
        ((quarantined,),) = file.fetch("SELECT count(*) FROM quarantine")
        if quarantined:
            self.notes.append(f"{quarantined:,} quarantined rows of {name} are not imported")

    def _select(self) -> str:
        return f"SELECT rowid, {', '.join(_STORE_COLUMNS)} FROM messages"  # noqa: S608 - names from a constant

    def _read(self, values: list[Any]) -> tuple[Message | None, list[Problem]]:
        id, provider, role, content, tags, timestamp, metadata, session_id, created_at = values
        message = Message(
            provider,
            role,
            content,
            id=id,
            tags=json.loads(tags),
            timestamp=from_micros(timestamp),
            metadata=_json.loads_as_written(metadata),
            session_id=session_id,
            created_at=None if created_at is None else from_micros(created_at),
        )
        return message, []

    def raw_json(self, raw: Any) -> str:
        """Return a row's raw values as a JSON object."""
        return json.dumps(dict(zip(_STORE_COLUMNS, raw, strict=True)), ensure_ascii=False)


class _named:  # noqa: N801 - reads as a function
    """Convert an error of SQLite to a CommandError with the name of the file."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            text = str(error)
            if "locked" in text:
                text = f"{text}; another program has locked it; try again later"
            raise CommandError(f"cannot read {self._name}: {text}") from None


def open_database(name: str, path: Path, identity: Path | None) -> Database:
    """Open a legacy database or a SagaStore database.

    Args:
        name: The name for messages to the user.
        path: The database.
        identity: The file that identifies the source; None if the import cannot be
            resumed.

    Raises:
        CommandError: The file is another database, or cannot be read.
    """
    with _named(name):
        file = _File(path)
        try:
            ((mark,),) = file.fetch("PRAGMA application_id")
            columns = file.columns("messages")
            if mark == APPLICATION_ID:
                return StoreDatabase(name, identity, file)
            if columns.keys() >= set(legacy.REQUIRED):
                return LegacyDatabase(name, identity, file)
        except BaseException:
            file.close()
            raise
        file.close()
    lacking = ", ".join(sorted(set(legacy.REQUIRED) - columns.keys()))
    what = f"its table messages has no {lacking}" if columns else "it has no table messages"
    raise CommandError(f"{name} is a SQLite database, but not one of ARC SAGA or SagaStore: {what}")
