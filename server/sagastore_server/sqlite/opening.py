"""Opening of a database file for writing: creates, imports or upgrades it, or refuses it.

The file is classified before anything is changed; see ``files``.
"""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from sagastore.legacy.database import RECOVERY
from sagastore_server.search.analysis import ANALYSIS_VERSION
from sagastore_server.sqlite.archived_store_guard import StoreRecord, remembered, remembered_by
from sagastore_server.sqlite.connection import writer_connection
from sagastore_server.sqlite.errors import translated
from sagastore_server.sqlite.files import (
    SCHEMA_VERSION,
    Kind,
    apply_step,
    classify,
    names_made_by,
    register_owner_function,
)
from sagastore_server.sqlite.legacy.file_conversion import drop_objects_of_files, upgrade_files
from sagastore_server.sqlite.legacy.importer import take_over
from sagastore_server.sqlite.privacy import make_private
from sagastore_server.sqlite.queries import QUERIES
from sagastore_server.sqlite.reanalysis import begin as begin_reanalysis
from sagastore_server.storage.errors import CannotOpenError, CorruptStoreError
from sagastore_server.storage.reanalysis import ANALYSIS_STATE

Progress = Callable[[str, int, int], None]
"""Called with the name of the step, the rows done and the total rows (0: unknown)."""

_OLDEST_SQLITE = (3, 37, 0)
"""First version with STRICT tables (release history, 2021-11-27)."""

_SESSIONS = 5
"""Schema step that adds sessions."""

_FILES = 6
"""Schema step that replaces the table ``files``."""

_ANOTHER = "nothing was changed in it; give the server another file with --sqlite"

_SMALL = 64 * 1024 * 1024
"""Bytes up to which every page of a file is checked when it is opened. The check takes about 6 ms
per MiB, and a server with a large file should start within a second."""


def open_for_writing(
    path: Path, progress: Progress, admit: Callable[[Path, StoreRecord], None] | None = None
) -> sqlite3.Connection:
    """Return the writing connection to a file that is ready for use.

    It creates a missing file, imports a legacy one, upgrades an older schema, and prepares the
    search index of an older analysis version to be made anew (``reanalysis``), each in one
    transaction. The file is made private.

    Args:
        path: The file; the caller owns it.
        progress: Called during long work.
        admit: Called with the migration state of a SagaStore file before anything is changed. It
            may raise an error to refuse the file.

    Raises:
        CannotOpenError: The file cannot be used; it is as it was.

    """
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise CannotOpenError(
            f"this Python has SQLite {sqlite3.sqlite_version}; SagaStore needs 3.37 or newer"
        )
    admit = admit or _admit_all
    found = remembered(path, recover=True)
    if found is not None:
        admit(path, found)
    _check_kind(path, progress)
    make_private(path)
    connection: sqlite3.Connection | None = None
    try:
        connection = writer_connection(path)
        register_owner_function(connection)
        # Again: it may have been unreadable before SQLite recovered it.
        found = remembered_by(connection)
        if found is not None:
            admit(path, found)
        _upgrade(connection, path)
        with _transaction(connection):
            begin_reanalysis(connection, path)
    except BaseException as exc:
        if connection is not None:
            connection.close()
        if isinstance(exc, sqlite3.Error | OSError | CorruptStoreError):
            raise _cannot(path, exc) from exc
        raise
    return connection


def _check_kind(path: Path, progress: Progress) -> None:
    """Refuse a foreign file; import a legacy one."""
    found = classify(path, check=_is_small(path), recover=True)
    if found.kind in {Kind.MISSING, Kind.EMPTY}:
        if not path.parent.is_dir():
            raise CannotOpenError(f"cannot create {path}: its folder does not exist")
    elif found.kind is Kind.LEGACY:
        take_over(path, progress=lambda done, total: progress("importing", done, total))
    elif found.kind is not Kind.SAGASTORE:
        advice = RECOVERY if found.kind is Kind.CORRUPT else _ANOTHER
        raise CannotOpenError(f"cannot use {path}: it {found.detail}; {advice}")
    elif found.schema_version > SCHEMA_VERSION:
        raise CannotOpenError(
            f"cannot use {path}: its schema version {found.schema_version} is newer than "
            f"{SCHEMA_VERSION}, the newest that this server supports; run the server that wrote it"
        )


def _admit_all(path: Path, found: StoreRecord) -> None:
    """Admit the file."""


def _is_small(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= _SMALL


def _upgrade(connection: sqlite3.Connection, path: Path) -> None:
    """Apply the missing schema steps, each in one transaction."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number in range(version + 1, SCHEMA_VERSION + 1):
        with _transaction(connection), _renaming(connection):
            if number == _FILES:
                drop_objects_of_files(connection)
            _require_free_names(connection, path, number)
            apply_step(connection, number)
            if number == 1:
                _set_state(connection, "revision", 0)
                _set_state(connection, ANALYSIS_STATE, ANALYSIS_VERSION)
                _set_state(connection, "store_id", str(uuid.uuid4()))
            elif number == _SESSIONS:
                connection.execute(QUERIES["fill_sessions"])
            elif number == _FILES:
                upgrade_files(connection)


@contextlib.contextmanager
def _renaming(connection: sqlite3.Connection) -> Iterator[None]:
    """Let a renamed table keep its name in views and triggers that the file has besides ours."""
    connection.execute("PRAGMA legacy_alter_table = ON")
    try:
        yield
    finally:
        connection.execute("PRAGMA legacy_alter_table = OFF")


def _require_free_names(connection: sqlite3.Connection, path: Path, number: int) -> None:
    """Refuse a file with a foreign schema object whose name the step needs.

    A legacy import keeps unknown objects, for example. Step 1 creates ``files`` only if it is
    missing.
    """
    if number == 1:
        return
    needed = names_made_by(number, number)
    for kind, name in connection.execute("SELECT type, name FROM sqlite_master"):
        if name.lower() in needed:
            raise CannotOpenError(
                f"cannot use {path}: its {kind} {name} has a name that this version of SagaStore "
                "needs; rename it first"
            )


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _set_state(connection: sqlite3.Connection, name: str, value: object) -> None:
    connection.execute(QUERIES["set_state"], (name, value))


def _cannot(path: Path, error: Exception) -> CannotOpenError:
    if isinstance(error, sqlite3.Error):
        return CannotOpenError(f"cannot use {path}: {translated(error)}")
    return CannotOpenError(f"cannot use {path}: {getattr(error, 'strerror', None) or error}")
