"""What a SQLite file is, and how it is opened without changing it or its folder.

While a connection of this process has a file open, open the file through SQLite only. POSIX
drops all locks of a process on a file as soon as the process closes any descriptor of it
(SQLite's "How To Corrupt", 2.2).
"""

from __future__ import annotations

import contextlib
import enum
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sagastore.legacy.values import REQUIRED

__all__ = [
    "APPLICATION_ID",
    "MAGIC",
    "RECOVERY",
    "VALUE_COMPLAINTS",
    "VIRTUAL_COLUMN",
    "FileState",
    "Kind",
    "ReadOnlyConnection",
    "UnreadableFileError",
    "classify",
    "concerns_one_row",
    "connect",
    "damage",
    "error_name",
    "not_a_table",
    "one_line",
    "open_read_only",
    "quoted",
    "scalar",
    "state_of",
    "state_of_error",
    "stored_columns",
]

APPLICATION_ID = 0x53414741
"""``SAGA``: the application id of SagaStore files (header offset 68, big-endian)."""

MAGIC = b"SQLite format 3\x00"

VALUE_COMPLAINTS = (
    # Full-text indexes that do not match their table, which legacy files have. SQLite
    # 3.44 and later check them.
    "malformed inverted index",
    "unable to validate the inverted index",
    # Values of rows, not damage of the file.
    "NULL value in ",
    "NUMERIC value in ",
    "TEXT value in ",
    "non-TEXT value in ",
    "non-NUMERIC value in ",
    "CHECK constraint failed in ",
)
"""Prefixes of the lines of ``integrity_check`` that report unusual values, which a legacy
table may contain, rather than damage."""

_WAL_FORMAT = 2
"""Bytes 18 and 19 of the header in a file whose journal mode is WAL."""

VIRTUAL_COLUMN = 2
"""Value of ``hidden`` in ``PRAGMA table_xinfo`` for a generated column that is not stored."""

RECOVERY = "restore a backup, or recover what can be read (sqlite3 OLD .recover | sqlite3 NEW)"
"""What to do about a damaged file."""

_IMMUTABLE = "immutable=1"
BUSY_TIMEOUT_MS = 5000
"""Milliseconds that a connection waits for a lock."""

_SHOWN_TABLES = 5
_OF_ONE_ROW = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH})
_ANY_CODE = 0xFF
"""Mask of the primary code in an extended result code (sqlite.org/rescode.html)."""


class UnreadableFileError(Exception):
    """The file cannot be read; the text is one line that names it."""


class Kind(enum.Enum):
    """Kind of a file given to the server or to an import."""

    MISSING = "missing"
    EMPTY = "empty"
    SAGASTORE = "sagastore"
    LEGACY = "legacy"
    FOREIGN = "foreign"
    NOT_A_DATABASE = "not-a-database"
    CORRUPT = "corrupt"


class FileState(NamedTuple):
    """Kind and schema version of a file."""

    kind: Kind
    schema_version: int = 0
    """Schema version of a SagaStore file; 0 for every other kind."""
    detail: str = ""
    """Why the kind cannot be used, as a predicate of the file's name."""


class ReadOnlyConnection(sqlite3.Connection):
    """A connection of `open_read_only`."""

    immutable = False
    """True if it takes no locks: another program may write to the file unnoticed."""
    copied = False
    """True if it reads a temporary copy, because the last write was interrupted."""


def classify(path: Path, *, check: bool = False, recover: bool = False) -> FileState:
    """Classify the file at ``path`` without changing it or its folder.

    Args:
        path: The file; it need not exist.
        check: Also check every page (``quick_check``), in time proportional to the size. A
            damaged file is then CORRUPT even if its schema is readable.
        recover: Set only by the owner of the file. If the last writer was killed, SQLite rolls
            the unfinished transaction back in place instead of in a temporary copy.

    Raises:
        UnreadableFileError: The file is unreadable: no permission, a folder, or locked.

    """
    try:
        header = _start_of(path)
    except OSError as exc:
        raise UnreadableFileError(f"{path} cannot be read: {exc.strerror}") from exc
    if header is None:
        return FileState(Kind.MISSING)
    if not header:
        return FileState(Kind.EMPTY)
    if header != MAGIC:
        return FileState(Kind.NOT_A_DATABASE, detail="is not a SQLite database")
    try:
        with open_read_only(path, recover=recover) as connection:
            return state_of(connection, check=check)
    except (sqlite3.Error, UnicodeError) as exc:
        return state_of_error(str(path), exc)
    except OSError as exc:
        raise UnreadableFileError(f"{path} cannot be read: {exc.strerror}") from exc


def _start_of(path: Path) -> bytes | None:
    """Return the first bytes of a regular file; None if there is no file."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        # Opening a named pipe would wait for a writer.
        raise UnreadableFileError(f"{path} cannot be read: it is not a regular file")
    with path.open("rb") as file:
        return file.read(len(MAGIC))


@contextlib.contextmanager
def open_read_only(
    path: Path, *, recover: bool = False, check_same_thread: bool = True
) -> Iterator[ReadOnlyConnection]:
    """Open a database for reading without side effects: no ``-wal``, ``-shm`` or new mtime.

    If SQLite must write before it can read, because a writer was killed, the context uses a
    temporary copy, or the file itself with ``recover``.

    Raises:
        sqlite3.Error: It is not a database, damaged, or locked.
        OSError: It cannot be read or copied.

    """
    real = path.resolve()
    with contextlib.ExitStack() as stack:
        try:
            options = _read_only_options(real)
            connection = connect(real, options, check_same_thread=check_same_thread)
            connection.immutable = options == _IMMUTABLE
        except sqlite3.OperationalError as exc:
            if not _needs_recovery(exc):
                raise
            if not recover:
                real = _scratch_copy(real, stack)
            connection = connect(real, "mode=rw", check_same_thread=check_same_thread)
            connection.copied = not recover
        stack.callback(connection.close)
        yield connection


def damage(connection: sqlite3.Connection, *, full: bool) -> str | None:
    """Return the first damage that SQLite reports, or None.

    ``full`` also compares every index with its table. Full-text indexes and the values in rows
    are not checked.
    """
    check = "integrity_check" if full else "quick_check"
    try:
        # Without a limit: complaints about a hundred values must not hide a damaged page.
        for (line,) in connection.execute(f"PRAGMA {check}(2147483647)"):
            text = line.decode(errors="replace") if isinstance(line, bytes) else str(line)
            if text != "ok" and not text.startswith(VALUE_COMPLAINTS):
                return one_line(text)
        return None
    except sqlite3.DatabaseError as exc:
        if concerns_one_row(exc):
            # The check computes generated columns, and one of them fails.
            return _unreadable_page(connection)
        if not error_name(exc).startswith("SQLITE_CORRUPT"):
            raise
        return str(exc)  # The damage ends the check itself.


def _unreadable_page(connection: sqlite3.Connection) -> str | None:
    """Read all stored values of all ordinary tables; return the first damage, or None."""
    tables = connection.execute(
        "SELECT name FROM main.sqlite_master WHERE type = 'table'"
        " AND sql IS NOT NULL AND lower(ltrim(sql)) NOT LIKE 'create virtual%'"
    ).fetchall()
    try:
        for (table,) in tables:
            columns = stored_columns(connection, table)
            sizes = [f"sum(length(CAST({column} AS BLOB)))" for column in columns]
            sql = f"SELECT {', '.join(sizes) or '1'} FROM main.{quoted(table)} NOT INDEXED"  # noqa: S608 - quoted
            connection.execute(sql).fetchall()
    except sqlite3.DatabaseError as exc:
        if not error_name(exc).startswith("SQLITE_CORRUPT"):
            raise
        return str(exc)
    return None


def stored_columns(connection: sqlite3.Connection, table: str) -> list[str]:
    """Return the quoted names of the columns of a table that are not computed when read."""
    listed = connection.execute(f"PRAGMA main.table_xinfo({quoted(table)})")
    return [quoted(column[1]) for column in listed if column[6] != VIRTUAL_COLUMN]


def scalar(connection: sqlite3.Connection, sql: str) -> int:
    """Return the one integer that ``sql`` selects."""
    (value,) = connection.execute(sql).fetchone()
    return int(value)


def quoted(name: str) -> str:
    """Return ``name`` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _read_only_options(path: Path) -> str:
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size:
        # Reads the log while a writer runs; if the writer was killed, builds a private index of
        # the log (SQLite's src/os_unix.c). Writes to neither file.
        return "mode=ro&readonly_shm=1"
    with path.open("rb") as file:
        header = file.read(20)
    # A WAL database without a log has no writer, and a normal open would create the side files.
    # In every other journal mode the open locks the file itself, as required.
    return _IMMUTABLE if header[18:20] == bytes([_WAL_FORMAT] * 2) else "mode=ro"


def connect(path: Path, options: str, *, check_same_thread: bool = True) -> ReadOnlyConnection:
    """Open a database for queries only, through SQLite, with the options of a SQLite URI.

    Raises:
        sqlite3.Error: It is not a database, damaged, or locked.

    """
    connection = sqlite3.connect(
        f"{path.as_uri()}?{options}",
        uri=True,
        isolation_level=None,
        check_same_thread=check_same_thread,
        factory=ReadOnlyConnection,
    )
    try:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA query_only = ON")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def error_name(error: Exception) -> str:
    """Return the name of SQLite's result code; empty for an error of Python's module."""
    return getattr(error, "sqlite_errorname", None) or ""


def concerns_one_row(error: sqlite3.Error) -> bool:
    """Tell whether a query failed because of the values of one row, not because of the file.

    A generated column fails to compute, for example ``json_extract`` of text that is not JSON.
    """
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & _ANY_CODE in _OF_ONE_ROW


def _needs_recovery(error: sqlite3.OperationalError) -> bool:
    return error_name(error).startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN"))


def _scratch_copy(path: Path, stack: contextlib.ExitStack) -> Path:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sagastore-"))
    copy = Path(folder) / path.name
    for suffix in ("", "-journal", "-wal"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            copy_private(source, copy.with_name(copy.name + suffix))
    return copy


def copy_private(source: Path, target: Path) -> None:
    """Copy a file to the new file `target`, for its owner only.

    Raises:
        OSError: It is not possible.

    """
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with source.open("rb") as read, os.fdopen(descriptor, "wb") as written:
        shutil.copyfileobj(read, written)


def state_of(connection: sqlite3.Connection, *, check: bool = False) -> FileState:
    """Classify an open database; see ``classify``.

    Raises:
        sqlite3.Error: The database is unreadable.

    """
    if check:
        damaged = damage(connection, full=False)
        if damaged:
            return FileState(Kind.CORRUPT, detail=f"is damaged: {damaged}")
    application = scalar(connection, "PRAGMA application_id")
    version = scalar(connection, "PRAGMA user_version")
    if application == APPLICATION_ID:
        return FileState(Kind.SAGASTORE, version)
    if application:
        return FileState(
            Kind.FOREIGN, detail=f"belongs to another application (its id is {application:#x})"
        )
    return _judged_by_tables(connection, version)


def _judged_by_tables(connection: sqlite3.Connection, version: int) -> FileState:
    tables = [
        str(name)
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
            " AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name"
        )
    ]
    if not tables and not version:
        return _in_utf8(connection, Kind.EMPTY)
    other = not_a_table(connection)
    if other:
        return FileState(Kind.FOREIGN, detail=f"has no table of messages {other}")
    if not any(name.lower() == "messages" for name in tables):
        return FileState(Kind.FOREIGN, detail=f"has no table of messages {_named(tables)}")
    columns = {row[1].lower() for row in connection.execute("PRAGMA main.table_xinfo(messages)")}
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        return FileState(
            Kind.FOREIGN, detail=f"has a table messages without the columns {', '.join(missing)}"
        )
    return _in_utf8(connection, Kind.LEGACY)


def not_a_table(connection: sqlite3.Connection) -> str:
    """Return what ``messages`` is and what to do if it is a view or a virtual table; else empty."""
    row = connection.execute(
        "SELECT type, name, sql FROM sqlite_master"
        " WHERE type IN ('table', 'view') AND lower(name) = 'messages'"
    ).fetchone()
    if row is None:
        return ""
    kind, name, sql = row
    if kind == "table" and not str(sql).lstrip().lower().startswith("create virtual"):
        return ""
    if kind == "table":
        kind = "virtual table"
    drop = "VIEW" if kind == "view" else "TABLE"
    return (
        f"(its {name} is a {kind}; replace it by a table: CREATE TABLE messages_copy AS SELECT *"  # noqa: S608 - advice
        f" FROM messages; DROP {drop} messages; ALTER TABLE messages_copy RENAME TO messages)"
    )


def _in_utf8(connection: sqlite3.Connection, kind: Kind) -> FileState:
    (encoding,) = connection.execute("PRAGMA encoding").fetchone()
    if encoding == "UTF-8":
        return FileState(kind)
    # The encoding of a file cannot be changed, and UTF-16 orders ids differently.
    return FileState(
        Kind.FOREIGN,
        detail=f"stores its text as {encoding}; make a copy in UTF-8 "
        "(sqlite3 OLD .dump | sqlite3 NEW) and use that",
    )


def state_of_error(name: str, error: sqlite3.Error | UnicodeError) -> FileState:
    """Return the state of a file whose reading raised ``error``.

    Args:
        name: The name of the file, for the error.
        error: The error of SQLite or, for a name that is not UTF-8, of Python.

    Raises:
        UnreadableFileError: The file may be sound, but cannot be read.

    """
    code = error_name(error)
    if code.startswith("SQLITE_NOTADB"):
        return FileState(Kind.NOT_A_DATABASE, detail="is not a SQLite database, or is encrypted")
    if not code or code.startswith(("SQLITE_CORRUPT", "SQLITE_ERROR")):
        # Only the schema was read, so SQLITE_ERROR means that it does not parse. An error of
        # Python's module, without a name, means a name that is not UTF-8.
        return FileState(Kind.CORRUPT, detail=f"is damaged: {one_line(str(error))}")
    if code.startswith("SQLITE_BUSY"):
        raise UnreadableFileError(
            f"{name} is being written by another program; stop that program first"
        ) from error
    raise UnreadableFileError(f"{name} cannot be read: {one_line(str(error))}") from error


def _named(tables: list[str]) -> str:
    shown = ", ".join(tables[:_SHOWN_TABLES]) + (", …" if len(tables) > _SHOWN_TABLES else "")
    return f"(its tables: {shown})" if tables else "(nor any other table)"


def one_line(text: str) -> str:
    """Return ``text`` with all white space as single spaces."""
    return " ".join(text.split())
