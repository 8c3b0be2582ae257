"""SQLite databases: a legacy ARC SAGA `memory.db`, or the file of a SagaStore server."""

from __future__ import annotations

import abc
import json
import shutil
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

__all__ = ["APPLICATION_ID", "Database", "LegacyDatabase", "StoreDatabase", "open_database"]

APPLICATION_ID: Final = 0x53414741
"""`SAGA`: what marks the file of a SagaStore server."""

_FIRST_ROWID: Final = -(1 << 63)
_LAST_ROWID: Final = (1 << 63) - 1
_PAGE: Final = 200
_BUSY_SECONDS: Final = 30.0
# SQLite waits for locks where Ctrl+C is not heard: we come back from there often.
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
)


class _File:
    """A database opened so that reading leaves no trace.

    Opening a file in WAL mode makes two more beside it, which a reader that may
    not write cannot take away again. Where nobody has the file open, so that they
    are not there, it is therefore opened as immutable, without locks; should
    somebody open it later, the reading since is repeated in the ordinary way.
    What was left in the middle of a write is read from a copy.
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
        """Copy the file and what SQLite needs to finish or undo the write."""
        self.copied = True
        self._copy = tempfile.TemporaryDirectory(prefix="sagastore-")
        for suffix in ("", "-wal", "-journal"):
            part = self._beside(suffix)
            if part.exists():
                shutil.copyfile(part, Path(self._copy.name) / part.name)
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
        """Return the names of a table's columns, by their lower case."""
        found = self.fetch("SELECT name FROM pragma_table_info(?)", (table,))
        return {name.lower(): name for (name,) in found}

    def close(self) -> None:
        """Close it, and remove the copy, if one was made; not while another thread reads."""
        # That may be waiting for a lock, and ends soon. The end of the process does the rest.
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
    # Python's own errors, about text that it cannot decode, have no code.
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_BUSY


class Database(abc.ABC):
    """What both kinds have in common: rows by rowid, a page at a time.

    Each page is a statement of its own: no lock is held while rows are on their
    way, and rows that are added meanwhile are read, too.
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
            self.notes.append(f"{name} was left in the middle of a write; reading a copy of it")

    def identity(self) -> dict[str, Any] | None:
        """Return what tells whether it is still the same; None: it cannot be resumed.

        VACUUM gives rowids anew, and changes this.
        """
        return None if self._identity is None else file_identity(self._identity)

    def total(self, start: Position | None) -> int | None:
        """Return the number of rows, those before `start` included."""
        offset, number = start or (_FIRST_ROWID, 0)
        where = "SELECT count(*) FROM messages WHERE rowid >= ?"
        with _named(self.name):
            ((count,),) = self._file.fetch(where, (offset,))
        return int(count) + number

    def rows(self, start: Position | None) -> Iterator[Row]:
        """Yield the rows from a place on."""
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
        """Return the statement for the rows, up to its conditions."""

    @abc.abstractmethod
    def _read(self, values: list[Any]) -> tuple[Message | None, list[Problem]]:
        """Return the message of a row, or what stands in its way."""

    @abc.abstractmethod
    def raw_json(self, raw: Any) -> str:
        """Return a row's raw values as a JSON object."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        if self.on_close is not None:
            self.on_close()


class LegacyDatabase(Database):
    """A `memory.db` of ARC SAGA; rows mean what `sagastore.legacy` says."""

    kind = "ARC SAGA database"
    _text_factory = legacy.Text

    def __init__(self, name: str, identity: Path | None, file: _File) -> None:
        super().__init__(name, identity, file)
        self._columns = file.columns("messages")
        if file.columns("files"):
            ((files,),) = file.fetch("SELECT count(*) FROM files")
            if files:
                self.notes.append(f"import takes messages; {name} also holds {files:,} files")

    def _select(self) -> str:
        # Optional columns may be missing, which is the same as NULL.
        names = [
            f'"{self._columns[name]}"' if name in self._columns else "NULL"
            for name in legacy.COLUMNS
        ]
        return f"SELECT rowid, {', '.join(names)} FROM messages"  # noqa: S608 - names of the list

    def _read(self, values: list[Any]) -> tuple[Message | None, list[Problem]]:
        row, found = legacy.read_row(values)
        problems = [Problem(*problem) for problem in found]
        metadata: dict[str, Any] = {}
        try:
            metadata = _json.loads_as_written(row.metadata)
        except ValueError as exc:
            problems.append(Problem("metadata", str(exc)))
        if not row.id and not any(problem.field == "id" for problem in problems):
            # The library would make one up, and another one the next time.
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
        )
        return message, []

    def raw_json(self, raw: Any) -> str:
        """Return a row's raw values as a JSON object."""
        return legacy.raw_row_as_json(legacy.COLUMNS, raw)


class StoreDatabase(Database):
    """The file of a SagaStore server, which may run or not."""

    kind = "SagaStore database"

    def __init__(self, name: str, identity: Path | None, file: _File) -> None:
        super().__init__(name, identity, file)
        missing = set(_STORE_COLUMNS) - set(file.columns("messages"))
        if missing:
            raise CommandError(
                f"{name} is of a SagaStore version that this one does not know "
                f"(no column {min(missing)}); import it with a newer sagastore, or export it"
            )
        ((quarantined,),) = file.fetch("SELECT count(*) FROM quarantine")
        if quarantined:
            self.notes.append(
                f"{quarantined:,} rows in the quarantine of {name} are no messages, and stay there"
            )

    def _select(self) -> str:
        return f"SELECT rowid, {', '.join(_STORE_COLUMNS)} FROM messages"  # noqa: S608 - no input

    def _read(self, values: list[Any]) -> tuple[Message | None, list[Problem]]:
        id, provider, role, content, tags, timestamp, metadata, session_id = values
        message = Message(
            provider,
            role,
            content,
            id=id,
            tags=json.loads(tags),
            timestamp=from_micros(timestamp),
            metadata=_json.loads_as_written(metadata),
            session_id=session_id,
        )
        return message, []

    def raw_json(self, raw: Any) -> str:
        """Return a row's raw values as a JSON object."""
        return json.dumps(dict(zip(_STORE_COLUMNS, raw, strict=True)), ensure_ascii=False)


class _named:  # noqa: N801 - reads as a function
    """Say of which file an error of SQLite speaks."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            text = str(error)
            if "locked" in text:
                text = f"{text}; another program keeps it to itself, try again when that has ended"
            raise CommandError(f"cannot read {self._name}: {text}") from None


def open_database(name: str, path: Path, identity: Path | None) -> Database:
    """Open a database of either kind.

    Args:
        name: What people know it by.
        path: The database.
        identity: The file that tells whether it is still the same; None where it
            cannot be resumed.

    Raises:
        CommandError: It is neither, or cannot be read.
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
    raise CommandError(f"{name} is a SQLite database, but not of ARC SAGA or SagaStore: {what}")
