"""Archiving: turns the file of a store whose messages have moved into an archive with a receipt.

The steps, in order:

1. Record POSTGRES_ONLY in the file, so that no server serves it any more.
2. Merge the log into the file and make the file read-only.
3. Check the file.
4. Write the receipt.
5. Rename the file.

Each step can be interrupted. Until the rename the file keeps its name, and the next attempt
performs the missing steps.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from sagastore.receipt import (
    Receipt,
    ReceiptError,
    facts,
    read_receipt,
    receipt_path,
    sha256_of,
    write_receipt,
)
from sagastore_server import __version__
from sagastore_server.sqlite.connection import BUSY_TIMEOUT_MS
from sagastore_server.sqlite.errors import FULL
from sagastore_server.sqlite.files import connect, register_owner_function
from sagastore_server.sqlite.journal import change_state
from sagastore_server.sqlite.legacy.copy import sync_folder
from sagastore_server.sqlite.migration_state import ArchiveMark, load_moved, load_state, save_moved
from sagastore_server.storage.errors import (
    CorruptStoreError,
    StorageError,
    StorageFullError,
    UnavailableError,
)
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import Archive, MigrationState

SUFFIX = ".archive"
"""``messages.db`` becomes ``messages.db.archive``, or ``.archive-2`` if that is taken."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY = stat.S_IRUSR | stat.S_IRGRP
"""Permissions that an archive keeps; the store had none for other users."""


def archive_file(
    path: Path, report: dict[str, object], sealed: Callable[[MigrationState], None]
) -> Archive:
    """Archive the file at ``path``, or finish an interrupted attempt.

    Args:
        path: The file, without symbolic links. The caller owns it and has no connection to it.
        report: Goes into the receipt.
        sealed: Called with the final migration state as soon as it is recorded.

    Raises:
        StorageError: It is not possible now; the message says what to do. The file keeps its
            name, or has been archived.

    """
    receipt = receipt_path(path)
    try:
        if not path.exists():
            return _archived(path, receipt)
        at = _seal(path, sealed)
        found = _facts(path)
        path.chmod(path.stat().st_mode & _READ_ONLY)
        sync_folder(path)  # The same call as for a folder.
        return _finish(path, receipt, report, found, at)
    except sqlite3.Error as exc:
        raise _failed(path, exc, getattr(exc, "sqlite_errorname", "")) from exc
    except OSError as exc:
        name = "SQLITE_FULL" if exc.errno in _FULL else ""
        raise _failed(path, exc, name) from exc


def _archived(path: Path, receipt: Path) -> Archive:
    """Return the archive of an earlier attempt."""
    try:
        archive = receipt.with_name(read_receipt(receipt).archive)
    except ReceiptError as exc:
        raise UnavailableError(f"cannot archive {path}: it does not exist, and {exc}") from exc
    if not archive.exists():
        raise UnavailableError(
            f"cannot archive {path}: neither it nor {archive.name}, which its receipt names, "
            "exists; move the archive back"
        )
    return Archive(archive, receipt)


def _seal(path: Path, sealed: Callable[[MigrationState], None]) -> str:
    """Record POSTGRES_ONLY and merge the log into the file; return the time of the move.

    A file that was sealed before may already be read-only, and is not changed.
    """
    if not path.stat().st_mode & stat.S_IWUSR:
        with contextlib.closing(connect(path, "immutable=1")) as connection:
            state, moved = load_state(connection), load_moved(connection)
        if state.phase is Phase.POSTGRES_ONLY and moved is not None:
            sealed(state)
            return moved.at
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
    with contextlib.closing(_connection(path)) as connection:
        state, moved = _note_move(connection, path.name)
        sealed(state)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        # Fails while another program has the file open, because that program needs the log.
        connection.execute("PRAGMA journal_mode = DELETE")
    return moved.at


def _connection(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None)
    try:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA synchronous = EXTRA")
        register_owner_function(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _note_move(connection: sqlite3.Connection, name: str) -> tuple[MigrationState, ArchiveMark]:
    state, moved = load_state(connection), load_moved(connection)
    if state.phase is Phase.POSTGRES_ONLY and moved is not None:
        return state, moved
    connection.execute("BEGIN IMMEDIATE")
    try:
        last = _last(state)
        moved = ArchiveMark(datetime.now(UTC).isoformat(timespec="seconds"), name)
        change_state(connection, last, None)
        save_moved(connection, moved)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return last, moved


def _last(state: MigrationState) -> MigrationState:
    if state.phase is Phase.POSTGRES_ONLY:
        return state
    return state._replace(phase=Phase.POSTGRES_ONLY, epoch=state.epoch + 1, completing=False)


def _facts(path: Path) -> dict[str, object]:
    with contextlib.closing(connect(path, "immutable=1")) as connection:
        found = facts(connection)
    if found["integrity_check"] != "ok":
        raise CorruptStoreError(
            f"cannot archive {path}: it is damaged ({found['integrity_check']}); the messages are "
            "in PostgreSQL. Keep the file as it is, or restore a backup of it and archive that"
        )
    return found


def _finish(
    path: Path, receipt: Path, report: dict[str, object], found: dict[str, object], at: str
) -> Archive:
    archive = _free_name(path)
    said = Receipt(
        archived_at=at,
        file=path.name,
        archive=archive.name,
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
        facts=found,
        report=report,
        made_by=f"sagastore-server {__version__}",
    )
    _keep_earlier_receipt(receipt)
    write_receipt(receipt, said, mode=path.stat().st_mode & _READ_ONLY | stat.S_IWUSR)
    path.rename(archive)
    sync_folder(path.parent)
    return Archive(archive, receipt)


def _free_name(path: Path) -> Path:
    archive, number = path.with_name(path.name + SUFFIX), 1
    while archive.exists():
        number += 1
        archive = path.with_name(f"{path.name}{SUFFIX}-{number}")
    return archive


def _keep_earlier_receipt(receipt: Path) -> None:
    """Keep the receipt of an earlier archive under the name of that archive."""
    if not receipt.exists():
        return
    try:
        earlier = receipt.with_name(read_receipt(receipt).archive)
    except ReceiptError:
        receipt.replace(receipt.with_name(receipt.name + ".unreadable"))
        return
    if earlier.exists():
        receipt.replace(receipt_path(earlier))


def _failed(path: Path, error: Exception, name: str) -> StorageError:
    if name in FULL:
        return StorageFullError(f"cannot archive {path}: the disk is full; make room")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        why = "another program has it open; end that program"
    elif name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_CANTOPEN")):
        why = "the server has no permission to write to it or to its folder; grant it"
    elif name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return CorruptStoreError(
            f"cannot archive {path}: it is damaged; the messages are in PostgreSQL. Keep the file "
            "as it is, or restore a backup of it and archive that"
        )
    else:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        why = f"{reason}; the server must be able to write to it and to its folder"
    return UnavailableError(f"cannot archive {path}: {why}")
