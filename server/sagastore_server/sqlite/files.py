"""Classification of database files without changing them, and the schema of SagaStore files.

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
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from sagastore.legacy import REQUIRED
from sagastore.receipt import VALUE_COMPLAINTS
from sagastore_server.runtime.private_files import create
from sagastore_server.storage.errors import CannotOpenError

APPLICATION_ID = 0x53414741
"""``SAGA``: the application id of SagaStore files (header offset 68, big-endian)."""

MAGIC = b"SQLite format 3\x00"

_WAL_FORMAT = 2
"""Bytes 18 and 19 of the header in a file whose journal mode is WAL."""

_SHOWN_TABLES = 5


class Kind(enum.Enum):
    """Kind of a file given to the server."""

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


# ------------------------------------------------------------------ schema


@cache
def schema_steps() -> dict[int, str]:
    """Return the SQL of the schema steps by number, in order: ``schema/NNNN_*.sql``."""
    folder = resources.files(__package__) / "schema"
    steps = {
        int(file.name[:4]): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    }
    return dict(sorted(steps.items()))


SCHEMA_VERSION = max(schema_steps())
"""Schema version of this server; ``user_version`` of its files."""


def apply_step(connection: sqlite3.Connection, number: int) -> None:
    """Run one schema step in the caller's transaction.

    It also sets the application id and the version, which SQLite rolls back with the
    transaction. The connection needs ``register_owner_function``.
    """
    for statement in _statements(schema_steps()[number]):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {number}")


@cache
def names_made_by(first: int, last: int) -> frozenset[str]:
    """Return the lower-case names of the schema objects of steps ``first`` to ``last``."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        register_owner_function(connection)
        before: set[str] = set()
        for number in range(1, last + 1):
            if number == first:
                before = _names(connection)
            apply_step(connection, number)
        return frozenset(_names(connection) - before)


def _names(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT lower(name) FROM sqlite_master")}


def register_owner_function(connection: sqlite3.Connection) -> None:
    """Let ``connection`` pass the guard triggers, which refuse all other writers."""
    connection.create_function("sagastore_server_owns_this_file", 0, lambda: 1, deterministic=True)


def _statements(script: str) -> Iterator[str]:
    """Split a script: ``executescript`` would commit the caller's transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        # complete_statement does not split at the statements inside a trigger.
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        raise AssertionError("a schema step ends inside of a statement")


# ------------------------------------------------------------------ what a file is


def classify(path: Path, *, check: bool = False, recover: bool = False) -> FileState:
    """Classify the file at ``path`` without changing it or its folder.

    Args:
        path: The file; it need not exist.
        check: Also check every page (``quick_check``), in time proportional to the size. A
            damaged file is then CORRUPT even if its schema is readable.
        recover: Set only by the owner of the file. If the last writer was killed, SQLite rolls
            the unfinished transaction back in place instead of in a temporary copy.

    Raises:
        CannotOpenError: The file is unreadable: no permission, a folder, or locked.

    """
    try:
        if not path.exists():
            return FileState(Kind.MISSING)
        with path.open("rb") as file:
            header = file.read(len(MAGIC))
    except OSError as exc:
        raise CannotOpenError(f"{path} cannot be read: {exc.strerror}") from exc
    if not header:
        return FileState(Kind.EMPTY)
    if header != MAGIC:
        return FileState(Kind.NOT_A_DATABASE, detail="is not a SQLite database")
    try:
        with open_read_only(path, recover=recover) as connection:
            return state_of(connection, check=check)
    except sqlite3.DatabaseError as exc:
        return _judged_by_error(path, exc)
    except OSError as exc:
        raise CannotOpenError(f"{path} cannot be read: {exc.strerror}") from exc


@contextlib.contextmanager
def open_read_only(path: Path, *, recover: bool = False) -> Iterator[sqlite3.Connection]:
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
            connection = connect(real, _read_only_options(real))
        except sqlite3.OperationalError as exc:
            if not _needs_recovery(exc):
                raise
            if not recover:
                real = _scratch_copy(real, stack)
            connection = connect(real, "mode=rw")
        stack.callback(connection.close)
        yield connection


def damage(connection: sqlite3.Connection, *, full: bool) -> str | None:
    """Return the first damage that SQLite reports, or None.

    ``full`` also compares every index with its table. Full-text indexes and the values in rows
    are not checked.
    """
    check = "integrity_check" if full else "quick_check"
    # Without a limit: complaints about a hundred values must not hide a damaged page.
    lines = connection.execute(f"PRAGMA {check}(2147483647)")
    try:
        for (line,) in lines:
            text = line.decode(errors="replace") if isinstance(line, bytes) else str(line)
            if text != "ok" and not text.startswith(VALUE_COMPLAINTS):
                return _one_line(text)
    except sqlite3.DatabaseError as exc:
        if not exc.sqlite_errorname.startswith("SQLITE_CORRUPT"):
            raise
        return str(exc)  # The damage ends the check itself.
    return None


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
    return "immutable=1" if header[18:20] == bytes([_WAL_FORMAT] * 2) else "mode=ro"


def connect(path: Path, options: str) -> sqlite3.Connection:
    """Open a database for queries only, through SQLite, with the options of a SQLite URI.

    Raises:
        sqlite3.Error: It is not a database, damaged, or locked.

    """
    connection = sqlite3.connect(f"{path.as_uri()}?{options}", uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA busy_timeout = 5000")
        connection.execute("PRAGMA query_only = ON")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _needs_recovery(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorname.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN"))


def _scratch_copy(path: Path, stack: contextlib.ExitStack) -> Path:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sagastore-"))
    copy = Path(folder) / path.name
    for suffix in ("", "-journal", "-wal"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            part = copy.with_name(copy.name + suffix)
            os.close(create(part))
            shutil.copyfile(source, part)
    return copy


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
        name
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
            " AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name"
        )
    ]
    if not tables and not version:
        return _in_utf8(connection, Kind.EMPTY)
    missing = _missing_columns(connection)
    if missing is None:
        return FileState(Kind.FOREIGN, detail=f"has no table of messages {_named(tables)}")
    if missing:
        return FileState(
            Kind.FOREIGN, detail=f"has a table messages without the columns {', '.join(missing)}"
        )
    return _in_utf8(connection, Kind.LEGACY)


def _missing_columns(connection: sqlite3.Connection) -> list[str] | None:
    """Return the columns that ``messages`` lacks as a legacy table; None if there is no table."""
    row = connection.execute(
        "SELECT sql FROM sqlite_master WHERE type = 'table' AND lower(name) = 'messages'"
    ).fetchone()
    if row is None or row[0].lstrip().lower().startswith("create virtual"):
        return None
    columns = {row[1].lower() for row in connection.execute("PRAGMA main.table_xinfo(messages)")}
    return [name for name in REQUIRED if name not in columns]


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


def _judged_by_error(path: Path, error: sqlite3.DatabaseError) -> FileState:
    name = error.sqlite_errorname
    if name.startswith("SQLITE_NOTADB"):
        return FileState(Kind.NOT_A_DATABASE, detail="is not a SQLite database, or is encrypted")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_ERROR")):
        # Only the schema was read, so SQLITE_ERROR means that it does not parse.
        return FileState(Kind.CORRUPT, detail=f"is damaged: {_one_line(str(error))}")
    if name.startswith("SQLITE_BUSY"):
        raise CannotOpenError(
            f"{path} is being written by another program; stop that program first"
        ) from error
    raise CannotOpenError(f"{path} cannot be read: {_one_line(str(error))}") from error


def _named(tables: list[str]) -> str:
    shown = ", ".join(tables[:_SHOWN_TABLES]) + (", …" if len(tables) > _SHOWN_TABLES else "")
    return f"(its tables: {shown})" if tables else "(nor any other table)"


def _one_line(text: str) -> str:
    return " ".join(text.split())
