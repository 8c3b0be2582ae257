"""A copy of a store while a server serves it: of one moment, verified, one file.

The copy is read through SQLite in a read transaction of its own. In WAL mode that neither
waits for the server nor makes it wait; the log cannot be emptied until it ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

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
from sagastore_server.storage.errors import CannotOpenError, CorruptStoreError
from sagastore_server.storage.phase import Phase

PARTIAL = ".partial"
"""``FILE.partial`` becomes ``FILE`` once it is complete and verified."""

PAGES_AT_ONCE = 1024
"""Pages between two moments at which the copy can be interrupted: 4 MiB, some milliseconds."""

_STEPS_AT_ONCE = 100_000
_SPARE_BYTES = 1024 * 1024
_SIDE_FILES = ("-wal", "-shm", "-journal")
_FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNLINKABLE = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much is done, and how much there is (0: not known).

Called often, and never once the work can be seen: what it raises leaves nothing behind.
"""


class BackupError(Exception):
    """A backup was not made, or not restored; nothing was changed. The line says why."""


class Contents(NamedTuple):
    """What a store holds, told of one moment."""

    store_id: str
    messages: int
    quarantined: int
    tombstones: int
    revision: int
    """The last one given out."""
    schema_version: int
    phase: Phase
    """Of the migration; SQLITE_ONLY where there is none."""
    epoch: int
    restored: int
    """See ``MigrationState``."""

    def matches(self, other: Contents) -> bool:
        """Tell whether ``other`` is a copy of this."""
        return self._replace(restored=0) == other._replace(restored=0)


class BackupReport(NamedTuple):
    """What a backup is of."""

    file: Path
    bytes: int
    contents: Contents
    seconds: float


def back_up(path: Path, target: Path, progress: Progress) -> BackupReport:
    """Copy the store at ``path`` to the new file ``target``.

    A server may serve the store, in any phase of a migration. The copy is of the moment at
    which this begins. It has all that the store has in one file, with the store's
    permissions or fewer, and is checked page by page, with its search index, before it gets
    its name. It also notes that it is a backup: see ``MigrationState.restored``.

    Raises:
        BackupError: It cannot be made; ``target`` is as it was.
        KeyboardInterrupt: As raised by ``progress``; the same holds.

    """
    began = time.monotonic()
    if target.exists() or target.is_symlink():
        raise BackupError(f"{target} exists already; a backup never replaces a file")
    with telling(f"cannot back up {path}"), _reading(path) as source:
        require_store(source, path)
        source.execute("BEGIN")  # What is read from here on is of one moment.
        contents = contents_of(source)
        if contents.phase is Phase.POSTGRES_ONLY:
            raise BackupError(
                f"cannot back up {path}: its messages have moved to PostgreSQL, and it is an "
                "archive that does not change any more; copy it as it is, with its receipt"
            )
        partial = target.with_name(target.name + PARTIAL)
        mode = stat.S_IMODE(path.stat().st_mode) & 0o777
        with telling(f"cannot write {partial}"), new_file(partial, mode):
            size = copy_store(source, partial, contents, progress)
            source.execute("ROLLBACK")  # The server may empty its log again.
            _give_name(partial, target)
    return BackupReport(target, size, contents, time.monotonic() - began)


def copy_store(
    source: sqlite3.Connection, partial: Path, contents: Contents, progress: Progress
) -> int:
    """Copy a store into the empty file ``partial``; return how many bytes that are.

    The file is verified, synced, and no longer in WAL mode: nothing belongs to it but itself.

    Raises:
        BackupError: There is no room, or the copy is not what ``contents`` says.
        sqlite3.Error, OSError: It cannot be read or written.

    """
    needed = scalar(source, "PRAGMA page_count") * scalar(source, "PRAGMA page_size")
    _require_room(partial, needed + _SPARE_BYTES)
    uri = f"{partial.resolve().as_uri()}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as copy:
        # Until it has its name it is nothing that a crash could spoil.
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
    """Tell what a store holds, in the caller's transaction.

    Raises:
        CorruptStoreError: What it remembers of a migration cannot be read.
        sqlite3.Error: It cannot be read.

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
    """Refuse what is not a store that this version can serve.

    Raises:
        BackupError: It is not.
        sqlite3.Error: It cannot be read.

    """
    found = state_of(connection)
    if found.kind is Kind.LEGACY:
        raise BackupError(
            f"{path} is a legacy memory.db, not a SagaStore file; the server keeps a copy of it "
            "when it takes it over"
        )
    if found.kind is not Kind.SAGASTORE:
        raise BackupError(f"{path} is not a SagaStore file: it {found.detail or 'is empty'}")
    if found.schema_version > SCHEMA_VERSION:
        raise BackupError(
            f"{path} has schema version {found.schema_version}, this program knows up to "
            f"{SCHEMA_VERSION}; use the newer one that wrote it"
        )


def note_backup(connection: sqlite3.Connection) -> None:
    """Note in a copy which revision it ends at, unless an earlier backup has."""
    state = load_state(connection)
    if state.restored < 0:
        last = scalar(connection, "SELECT value FROM store_state WHERE name = 'revision'")
        connection.execute("BEGIN IMMEDIATE")
        save_state(connection, state._replace(restored=last))
        connection.execute("COMMIT")


@contextlib.contextmanager
def new_file(path: Path, mode: int) -> Iterator[None]:
    """Make an empty file, and remove it unless the context ends well.

    Raises:
        FileExistsError: It is there already.

    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    try:
        yield
    except BaseException:
        for suffix in ("", *_SIDE_FILES):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        raise


def explained(error: sqlite3.Error | OSError) -> str:
    """Say what an error of SQLite or of the system means, for a person."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name in FULL or getattr(error, "errno", None) in _FULL_DISK:
        return "the disk is full; make room, or choose another disk"
    if isinstance(error, FileExistsError):
        return "it exists; another backup is writing it, or one was killed: then remove it"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return "it is damaged, or not a SQLite database"
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
        return (
            "it cannot be opened; run this as the user of the server, who may write to the file "
            "and its folder"
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "another program keeps it locked; end that one, or try again"
    return getattr(error, "strerror", None) or " ".join(str(error).split())


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Turn what may go wrong with files into a BackupError that begins with ``what``."""
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
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a store beside its server. Not immutable: the locks of a reader are the point."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise BackupError(f"{path} is not a SQLite database")
    with contextlib.closing(connect(path.resolve(), "mode=rw")) as connection:
        yield connection


def _verify(copy: sqlite3.Connection, path: Path, wanted: Contents, progress: Progress) -> None:
    step = "verifying"
    # SQLite turns what its handler raises into a statement that was interrupted.
    copy.set_progress_handler(lambda: progress(step, 0, 0), _STEPS_AT_ONCE)
    damaged = damage(copy, full=True)
    if damaged:
        raise BackupError(
            f"the copy {path.name} is damaged ({damaged}), and so is the store, or a disk; check "
            "the store with: sagastore-server inspect"
        )
    step = "verifying the search index"
    progress(step, 0, 0)
    # Compares what the index keeps with its own checksums; it has no table to compare with.
    copy.execute("INSERT INTO messages_fts (messages_fts) VALUES ('integrity-check')")
    found = contents_of(copy)
    if not wanted.matches(found):
        raise BackupError(f"the copy {path.name} does not hold what the store does; a disk fails")


def _require_room(path: Path, needed: int) -> None:
    if not hasattr(os, "statvfs"):
        return
    found = os.statvfs(path.parent)
    free = found.f_bavail * found.f_frsize
    if free < needed:
        raise BackupError(
            f"the disk of {path.parent} has {free / 1e6:,.1f} MB free, and {needed / 1e6:,.1f} MB "
            "are needed; make room, or choose another disk"
        )


def _give_name(partial: Path, target: Path) -> None:
    """Rename, but never over a file that came there meanwhile."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise BackupError(f"{target} exists already; a backup never replaces a file") from None
    except OSError as exc:
        if exc.errno not in _UNLINKABLE:
            raise
        # A file system without links.
        if target.exists():
            raise BackupError(f"{target} exists already; a backup never replaces a file") from None
        partial.rename(target)
    else:
        partial.unlink()
    sync_folder(target.parent)
