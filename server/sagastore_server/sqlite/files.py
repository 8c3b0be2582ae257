"""What a database file is, told without touching it; and the schema of our own.

Nothing here, and nothing that looks at a file before it is ours, may open it in
any way but through SQLite while a connection of this process has it open: POSIX
drops all of a process's locks on a file as soon as the process closes any
descriptor of it (SQLite's "How To Corrupt", 2.2).
"""

from __future__ import annotations

import contextlib
import enum
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
from sagastore_server.storage.errors import CannotOpenError

APPLICATION_ID = 0x53414741
"""``SAGA`` in the header of every file that is ours (offset 68, big-endian)."""

MAGIC = b"SQLite format 3\x00"

_WAL_FORMAT = 2
"""Bytes 18 and 19 of the header in a file whose journal mode is WAL."""

_SHOWN_TABLES = 5


class Kind(enum.Enum):
    """The kinds of file that a server may be given."""

    MISSING = "missing"
    EMPTY = "empty"
    SAGASTORE = "sagastore"
    LEGACY = "legacy"
    FOREIGN = "foreign"
    NOT_A_DATABASE = "not-a-database"
    CORRUPT = "corrupt"


class FileState(NamedTuple):
    """What a file is."""

    kind: Kind
    schema_version: int = 0
    """Of a file that is ours; 0 for every other kind."""
    detail: str = ""
    """For a kind that cannot be used: why, to follow the file's name in a sentence."""


# ------------------------------------------------------------------ our schema


@cache
def schema_steps() -> dict[int, str]:
    """Return the schema's steps by number: the SQL of ``schema/NNNN_*.sql``, in order."""
    folder = resources.files(__package__) / "schema"
    steps = {
        int(file.name[:4]): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    }
    return dict(sorted(steps.items()))


SCHEMA_VERSION = max(schema_steps())
"""The schema that this server writes; ``user_version`` of its files."""


def apply_step(connection: sqlite3.Connection, number: int) -> None:
    """Run one step of the schema inside the caller's transaction.

    Also marks the file as ours, at this version; SQLite rolls both back with the
    transaction. The connection needs ``register_owner_function``.
    """
    for statement in _statements(schema_steps()[number]):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {number}")


@cache
def names_made_by(first: int, last: int) -> frozenset[str]:
    """Return the names, in lower case, of what the steps from ``first`` to ``last`` make."""
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
    """Let ``connection`` through the guard triggers that shut out other writers."""
    connection.create_function("sagastore_server_owns_this_file", 0, lambda: 1, deterministic=True)


def _statements(script: str) -> Iterator[str]:
    """Split a script: ``executescript`` would commit the caller's transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        # Knows that the statements inside of a trigger do not end it.
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        raise AssertionError("a schema step ends inside of a statement")


# ------------------------------------------------------------------ what a file is


def classify(path: Path, *, check: bool = False, recover: bool = False) -> FileState:
    """Tell what the file at ``path`` is, changing neither it nor its folder.

    Args:
        path: The file; it need not exist.
        check: Also look at every page (``quick_check``), in time proportional to the
            file; what is damaged is then CORRUPT even where its schema is readable.
        recover: For the one who owns the file: if its last writer was killed, let
            SQLite roll the unfinished transaction back in place, rather than in a
            temporary copy.

    Raises:
        CannotOpenError: It cannot be read: no permission, a folder, locked.

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
    """Open a database for reading, leaving no trace: no ``-wal``, ``-shm`` or new time.

    Where SQLite would have to write to read (a writer was killed), the database is
    read from a temporary copy, or with ``recover`` in place.

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
    """Return the first damage of the database, in SQLite's words, or None.

    ``full`` also compares every index with its table. Neither full-text indexes nor
    the values in rows count.
    """
    check = "integrity_check" if full else "quick_check"
    # Without a limit: a hundred odd values must not hide a damaged page.
    lines = connection.execute(f"PRAGMA {check}(2147483647)")
    try:
        for (line,) in lines:
            text = line.decode(errors="replace") if isinstance(line, bytes) else str(line)
            if text != "ok" and not text.startswith(VALUE_COMPLAINTS):
                return _one_line(text)
    except sqlite3.DatabaseError as exc:
        if not exc.sqlite_errorname.startswith("SQLITE_CORRUPT"):
            raise
        return str(exc)  # Damaged so badly that the check itself stops.
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
        # Reads the log beside a living writer, and builds its own index of the log
        # beside a dead one (SQLite's src/os_unix.c); never writes to either.
        return "mode=ro&readonly_shm=1"
    with path.open("rb") as file:
        header = file.read(20)
    # A WAL database without a log has no writer; opening it in the usual way would
    # make the side files. Any other mode locks the file itself, as it should.
    return "immutable=1" if header[18:20] == bytes([_WAL_FORMAT] * 2) else "mode=ro"


def connect(path: Path, options: str) -> sqlite3.Connection:
    """Open a database for queries only, with options of a SQLite URI; touches it by SQLite alone.

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
            shutil.copyfile(source, copy.with_name(copy.name + suffix))
    return copy


def state_of(connection: sqlite3.Connection, *, check: bool = False) -> FileState:
    """Tell what an open database is; see ``classify``.

    Raises:
        sqlite3.Error: It cannot be read.

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
    """Return which columns keep ``messages`` from being legacy; None: no such table."""
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
    # The encoding of a file cannot be changed, and it orders ids by other bytes.
    return FileState(
        Kind.FOREIGN,
        detail=f"keeps its text as {encoding}; make a copy in UTF-8 "
        "(sqlite3 OLD .dump | sqlite3 NEW) and use that",
    )


def _judged_by_error(path: Path, error: sqlite3.DatabaseError) -> FileState:
    name = error.sqlite_errorname
    if name.startswith("SQLITE_NOTADB"):
        return FileState(Kind.NOT_A_DATABASE, detail="is not a SQLite database, or is encrypted")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_ERROR")):
        # Of reading the schema alone, SQLITE_ERROR means that it does not parse.
        return FileState(Kind.CORRUPT, detail=f"is damaged: {_one_line(str(error))}")
    if name.startswith("SQLITE_BUSY"):
        raise CannotOpenError(
            f"{path} is being written by another program; stop that first"
        ) from error
    raise CannotOpenError(f"{path} cannot be read: {_one_line(str(error))}") from error


def _named(tables: list[str]) -> str:
    shown = ", ".join(tables[:_SHOWN_TABLES]) + (", …" if len(tables) > _SHOWN_TABLES else "")
    return f"(its tables: {shown})" if tables else "(nor any other table)"


def _one_line(text: str) -> str:
    return " ".join(text.split())
