"""Online backup: a verified copy of a store in one file, made while a server serves the store.

The copy is read in one read transaction. In WAL mode it does not wait for the server, nor the
server for it; the server cannot restart its log until the transaction ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from sagastore.receipt import receipt_path
from sagastore_server.runtime.file_rights import FileRights
from sagastore_server.runtime.private_files import create
from sagastore_server.sqlite.errors import FULL
from sagastore_server.sqlite.files import (
    MAGIC,
    SCHEMA_VERSION,
    Kind,
    connect,
    damage,
    scalar,
    state_of,
)
from sagastore_server.sqlite.legacy.copy import sync_folder
from sagastore_server.sqlite.migration_state import load_state, read_value, save_state
from sagastore_server.sqlite.privacy import SIDE_FILES
from sagastore_server.storage.errors import CannotOpenError, CorruptStoreError
from sagastore_server.storage.phase import Phase

PARTIAL = ".partial"
"""``FILE.partial`` becomes ``FILE`` once it is complete and verified."""

PAGES_AT_ONCE = 1024
"""Pages copied between two calls of ``progress``, which can interrupt: 4 MiB, some milliseconds."""

_STEPS_AT_ONCE = 100_000
_SPARE_BYTES = 1024 * 1024
_FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNLINKABLE = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})

Progress = Callable[[str, int, int], None]
"""Called with the step, the amount done and the total amount (0: unknown).

It is called often, but not after the result is visible. An exception from it leaves no files.
"""


class BackupError(Exception):
    """A backup was not made, or not restored. Nothing was changed. The message says why."""


class StoreMovedError(BackupError):
    """The messages of the store are in PostgreSQL, so its file needs no further backups."""


class Contents(NamedTuple):
    """Contents of a store, read in one transaction."""

    store_id: str
    messages: int
    quarantined: int
    tombstones: int
    revision: int
    """The last revision assigned."""
    schema_version: int
    phase: Phase
    """Phase of the migration; SQLITE_ONLY without one."""
    epoch: int
    restored: int
    """See ``MigrationState``."""

    def matches(self, other: Contents) -> bool:
        """Return whether ``other`` is a copy of this."""
        return self._replace(restored=0) == other._replace(restored=0)


class BackupReport(NamedTuple):
    """Result of a backup."""

    file: Path
    bytes: int
    contents: Contents
    seconds: float


def back_up(path: Path, target: Path, progress: Progress) -> BackupReport:
    """Copy the store at ``path`` to the new file ``target``.

    A server may serve the store, in any phase of a migration.

    * The copy has the state of the store at the start of the call, in one file.
    * It has the permissions of the store, or fewer, and none for other users.
    * Root reads with the rights of the user who controls ``path``, and writes with the rights of
      the one who controls ``target``; see ``file_rights``.
    * Its pages and its search index are verified before it gets its name.
    * It is marked as a backup: see ``MigrationState.restored``.

    Raises:
        BackupError: It cannot be made; ``target`` is as it was.
        KeyboardInterrupt: Raised by ``progress``; ``target`` is as it was.

    """
    began = time.monotonic()
    with file_errors(f"cannot write {target}"):
        writing = FileRights(target)
        with writing.taken():
            if target.exists() or target.is_symlink():
                raise BackupError(f"{target} already exists; a backup never replaces a file")
    with file_errors(f"cannot back up {path}"), _reading(path) as store:
        source, like, contents = store
        if contents.phase is Phase.POSTGRES_ONLY:
            raise StoreMovedError(
                f"cannot back up {path}: it is an archive, since its messages have moved to "
                "PostgreSQL; copy the file and its receipt"
            )
        partial = target.with_name(target.name + PARTIAL)
        with (
            file_errors(f"cannot write {partial}"),
            writing.taken(),
            new_file(partial, like),
        ):
            size = copy_store(source, partial, contents, progress)
            source.execute("ROLLBACK")  # Now the server can restart its log.
            _give_name(partial, target)
    return BackupReport(target, size, contents, time.monotonic() - began)


def identity(path: Path) -> str:
    """Return the id of the store at ``path``, which a server may serve.

    Raises:
        BackupError: It is no store, or cannot be read.
        StoreMovedError: Its file was archived.

    """
    with file_errors(f"cannot back up {path}"), FileRights(path).taken():
        _refuse_missing(path)
        _status_of_database(path)
        with contextlib.closing(connect(path.resolve(), "mode=rw")) as connection:
            require_store(connection, path)
            return str(read_value(connection, "store_id"))


def copy_store(
    source: sqlite3.Connection, partial: Path, contents: Contents, progress: Progress
) -> int:
    """Copy a store into the empty file ``partial``; return the size of the copy in bytes.

    The copy is verified, synced, and not in WAL mode, so that it is a single file.

    Raises:
        BackupError: The disk has too little space, or the copy differs from ``contents``.
        sqlite3.Error, OSError: A file cannot be read or written.

    """
    needed = scalar(source, "PRAGMA page_count") * scalar(source, "PRAGMA page_size")
    _require_room(partial, needed + _SPARE_BYTES)
    uri = f"{partial.resolve().as_uri()}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as copy:
        # No durability needed: after a crash the file without its final name is discarded.
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        source.backup(
            copy,
            pages=PAGES_AT_ONCE,
            progress=lambda _, left, total: progress("copying", total - left, total),
        )
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as copy:
        copy.execute("PRAGMA journal_mode = DELETE")
        note_backup(copy)
        progress("verifying", 0, 0)
        _verify(copy, partial, contents, progress)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def contents_of(connection: sqlite3.Connection) -> Contents:
    """Return the contents of a store, in the caller's transaction.

    Raises:
        CorruptStoreError: The migration state is unreadable.
        sqlite3.Error: The database is unreadable.

    """
    state = load_state(connection)
    return Contents(
        str(read_value(connection, "store_id")),
        scalar(connection, "SELECT count(*) FROM messages"),
        scalar(connection, "SELECT count(*) FROM quarantine"),
        scalar(connection, "SELECT count(*) FROM tombstones"),
        scalar(connection, "SELECT value FROM store_state WHERE name = 'revision'"),
        scalar(connection, "PRAGMA user_version"),
        state.phase,
        state.epoch,
        state.restored,
    )


def require_store(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that is no store of a supported version.

    Raises:
        BackupError: The file is refused.
        sqlite3.Error: The database is unreadable.

    """
    found = state_of(connection)
    if found.kind is Kind.LEGACY:
        raise BackupError(
            f"{path} is a legacy memory.db, not a SagaStore file; the server makes a copy of it "
            "when it imports the file"
        )
    if found.kind is not Kind.SAGASTORE:
        raise BackupError(f"{path} is not a SagaStore file: it {found.detail or 'is empty'}")
    if found.schema_version > SCHEMA_VERSION:
        raise BackupError(
            f"{path} has schema version {found.schema_version}, and this program supports up to "
            f"{SCHEMA_VERSION}; use the newer program that wrote it"
        )


def note_backup(connection: sqlite3.Connection) -> None:
    """Record in a copy its last revision, unless an earlier backup recorded one."""
    state = load_state(connection)
    if state.restored < 0:
        last = scalar(connection, "SELECT value FROM store_state WHERE name = 'revision'")
        connection.execute("BEGIN IMMEDIATE")
        save_state(connection, state._replace(restored=last))
        connection.execute("COMMIT")


@contextlib.contextmanager
def new_file(path: Path, like: os.stat_result | None) -> Iterator[None]:
    """Create an empty file, and remove it if the context raises; see ``private_files.create``.

    Raises:
        FileExistsError: The file exists.

    """
    os.close(create(path, like))
    try:
        yield
    except BaseException:
        for suffix in ("", *SIDE_FILES):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        raise


def explained(error: sqlite3.Error | OSError) -> str:
    """Return the meaning of an error of SQLite or of the operating system."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name in FULL or getattr(error, "errno", None) in _FULL_DISK:
        return "the disk is full; free space or choose another disk"
    if isinstance(error, FileExistsError):
        return "it exists: another backup is writing it, or was killed; in that case remove it"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return "it is damaged, or not a SQLite database"
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
        return (
            "it cannot be opened; run this as the user of the server, which needs write permission "
            "for the file and its folder"
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "another program has locked it; end that program, or try again"
    return getattr(error, "strerror", None) or " ".join(str(error).split())


@contextlib.contextmanager
def file_errors(what: str) -> Iterator[None]:
    """Turn errors of files into a BackupError that begins with ``what``."""
    try:
        yield
    except CorruptStoreError as exc:
        raise BackupError(f"{what}: {exc}") from exc
    except CannotOpenError as exc:
        raise BackupError(str(exc)) from exc
    except (sqlite3.Error, OSError) as exc:
        if getattr(exc, "sqlite_errorname", "") == "SQLITE_INTERRUPT":
            raise KeyboardInterrupt from exc  # See ``_verify``.
        raise BackupError(f"{what}: {explained(exc)}") from exc


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[tuple[sqlite3.Connection, os.stat_result, Contents]]:
    """Open a store that a server may serve, in a started transaction.

    Not immutable, because a reader's locks are needed. All reads in the transaction see the same
    state, and open no other file.
    """
    rights = FileRights(path)
    with contextlib.ExitStack() as stack:
        with rights.taken():
            _refuse_missing(path)
            like = _status_of_database(path)
            connection = stack.enter_context(contextlib.closing(connect(path.resolve(), "mode=rw")))
            require_store(connection, path)
            connection.execute("BEGIN")
            contents = contents_of(connection)
        try:
            yield connection, like, contents
        finally:
            with rights.taken():  # The last connection to a store removes its log.
                stack.close()


def _refuse_missing(path: Path) -> None:
    """Raise StoreMovedError if the file is missing because it was archived."""
    receipt = receipt_path(path.resolve())
    if not path.exists() and receipt.exists():
        raise StoreMovedError(
            f"cannot back up {path}: its messages have moved to PostgreSQL ({receipt.name}); back "
            "up the database with the tools of PostgreSQL, and copy the archive and its receipt"
        )


def _status_of_database(path: Path) -> os.stat_result:
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise BackupError(f"{path} is not a SQLite database")
        return os.fstat(file.fileno())


def _verify(copy: sqlite3.Connection, path: Path, wanted: Contents, progress: Progress) -> None:
    step = "verifying"
    # SQLite turns an exception of its progress handler into an interrupted statement.
    copy.set_progress_handler(lambda: progress(step, 0, 0), _STEPS_AT_ONCE)
    damaged = damage(copy, full=True)
    if damaged:
        raise BackupError(
            f"the copy {path.name} is damaged ({damaged}), so the store or a disk is damaged; "
            "check the store with: sagastore-server inspect"
        )
    step = "verifying the search index"
    progress(step, 0, 0)
    # The index has no content table; the check compares it with its own checksums.
    copy.execute("INSERT INTO messages_fts (messages_fts) VALUES ('integrity-check')")
    found = contents_of(copy)
    if not wanted.matches(found):
        raise BackupError(f"the copy {path.name} differs from the store; check the disks")


def _require_room(path: Path, needed: int) -> None:
    if not hasattr(os, "statvfs"):
        return
    found = os.statvfs(path.parent)
    free = found.f_bavail * found.f_frsize
    if free < needed:
        raise BackupError(
            f"the disk of {path.parent} has {free / 1e6:,.1f} MB free, and {needed / 1e6:,.1f} MB "
            "are needed; free space or choose another disk"
        )


def _give_name(partial: Path, target: Path) -> None:
    """Rename without replacing a file that was created meanwhile."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise BackupError(f"{target} already exists; a backup never replaces a file") from None
    except OSError as exc:
        if exc.errno not in _UNLINKABLE:
            raise
        # A file system without hard links.
        if target.exists():
            raise BackupError(f"{target} already exists; a backup never replaces a file") from None
        partial.rename(target)
    else:
        partial.unlink()
    sync_folder(target.parent)
