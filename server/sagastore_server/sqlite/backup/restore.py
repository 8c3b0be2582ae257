"""Restore: replaces a store by a copy of a backup, atomically with respect to crashes.

SQLite applies a ``-wal`` file to the database of that name, whichever database it is, so the log
of the old file must never meet the new one. Before the new file gets the name, the old log is
merged into the old file, or renamed together with it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sagastore.receipt import receipt_path
from sagastore_server.runtime.file_rights import FileRights
from sagastore_server.sqlite.archived_store_guard import moved, remembered
from sagastore_server.sqlite.backup.create import (
    BackupError,
    Contents,
    Progress,
    contents_of,
    copy_store,
    file_errors,
    new_file,
    require_store,
)
from sagastore_server.sqlite.files import open_read_only
from sagastore_server.sqlite.legacy.copy import sync_folder
from sagastore_server.sqlite.ownership import Ownership
from sagastore_server.sqlite.privacy import SIDE_FILES
from sagastore_server.storage.errors import CannotOpenError
from sagastore_server.storage.phase import Phase

REPLACED = ".replaced"
"""``messages.db`` is kept as ``messages.db.replaced``, or ``.replaced-2`` if that exists."""

_RESTORING = ".restoring"
_BUSY_TIMEOUT_MS = 5000


class RestoreReport(NamedTuple):
    """Result of a restore."""

    file: Path
    contents: Contents
    """Contents of the restored file."""
    replaced: Path | None
    """The previous file under its new name; None if there was none."""
    seconds: float


def restore(backup: Path, path: Path, *, replace: bool, progress: Progress) -> RestoreReport:
    """Put a copy of the store in ``backup`` at ``path``.

    The copy is verified before any other file changes. ``replace`` allows ``path`` to exist; the
    existing file is kept under another name. The call can be interrupted and repeated.

    Root reads with the rights of the user who controls ``backup``, and writes with the rights of
    the one who controls ``path``, who then owns the files; see ``file_rights``.

    Raises:
        BackupError: It is not possible; ``path`` is as it was.
        KeyboardInterrupt: Raised by ``progress``; ``path`` is as it was.

    """
    began = time.monotonic()
    with file_errors(f"cannot restore {path}"):
        rights = FileRights(path)
        with rights.taken():
            real = path.resolve()
            before = real.stat() if real.exists() else None
    _require_other_file(backup, before)
    with file_errors(f"cannot restore {path}"), rights.taken(), _owned(path):
        _refuse_target(path, real, replace=replace)
        partial = real.with_name(real.name + _RESTORING)
        partial.unlink(missing_ok=True)  # Left by a killed restore.
        with _opened(backup) as (source, contents), new_file(partial, _previous(real)):
            copy_store(source, partial, contents, progress)
            restored = _final_contents(partial)
            replaced = _keep_replaced(real) if _anything_at(real) else None
            partial.replace(real)
            sync_folder(real.parent)
    return RestoreReport(path, restored, replaced, time.monotonic() - began)


@contextlib.contextmanager
def _owned(path: Path) -> Iterator[None]:
    """Lock the file against servers; the error of a locked file names the server."""
    ownership = Ownership(path)
    ownership.acquire()
    try:
        yield
    finally:
        ownership.release()


def _require_other_file(backup: Path, replaced: os.stat_result | None) -> None:
    with file_errors(f"cannot restore {backup}"), FileRights(backup).taken():
        found = backup.stat()
        if found.st_size == 0:
            raise BackupError(f"{backup} is empty, so it is not a backup")
        if replaced is not None and os.path.samestat(found, replaced):
            raise BackupError(f"{backup} is the file to be replaced; name the backup")
        if backup.with_name(backup.name + "-shm").exists():
            raise BackupError(
                f"{backup} is in use by a server, or was when that server was killed; make a "
                "backup of it first (sagastore-server backup), and restore that"
            )


def _refuse_target(path: Path, real: Path, *, replace: bool) -> None:
    if real.exists():
        if not replace:
            raise BackupError(
                f"{path} exists; --replace replaces it and keeps it under another name"
            )
        with contextlib.suppress(CannotOpenError):  # A damaged file may be replaced.
            found = remembered(real, recover=True)
            if found is not None and found.state.phase is Phase.POSTGRES_ONLY:
                raise BackupError(str(moved(path, found)))
    elif receipt_path(real).exists():
        raise BackupError(
            f"{path} was archived: its messages have moved to PostgreSQL, which may have newer "
            f"ones; start with --postgres alone, or move {receipt_path(real).name} away to restore "
            "the backup regardless"
        )


def _refuse_archive(backup: Path, contents: Contents) -> None:
    if contents.phase is Phase.POSTGRES_ONLY:
        raise BackupError(
            f"{backup} is the archive of a store whose messages have moved to PostgreSQL; start "
            "with --postgres alone"
        )


@contextlib.contextmanager
def _opened(backup: Path) -> Iterator[tuple[sqlite3.Connection, Contents]]:
    """Open a backup, with a transaction that has begun, so that later reads open no file."""
    with file_errors(f"cannot restore {backup}"), contextlib.ExitStack() as stack:
        rights = FileRights(backup)
        with rights.taken():
            connection = stack.enter_context(open_read_only(backup))
            require_store(connection, backup)
            connection.execute("BEGIN")
            contents = contents_of(connection)
        try:
            _refuse_archive(backup, contents)
            yield connection, contents
        finally:
            with rights.taken():
                stack.close()


def _final_contents(partial: Path) -> Contents:
    with open_read_only(partial) as connection:
        return contents_of(connection)


def _previous(real: Path) -> os.stat_result | None:
    """Return the status of the file to be replaced; None if there is no regular file."""
    try:
        found = real.lstat()
    except FileNotFoundError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


# ------------------------------------------------------------------ the previous file


def _anything_at(real: Path) -> bool:
    return any(_beside(real, suffix).exists() for suffix in ("", *SIDE_FILES))


def _keep_replaced(real: Path) -> Path:
    """Keep the old file and its log under another name, and return that name.

    The old name remains until the new file replaces it, so a server that starts meanwhile finds
    the old store. A log that could not be merged is renamed, and the rename is synced, before the
    new file gets the name.
    """
    kept = _free_name(real)
    if real.exists():
        _complete(real)
        try:
            os.link(real, kept)
        except OSError:
            real.rename(kept)  # A file system without hard links.
    for suffix in SIDE_FILES:
        if _beside(real, suffix).exists():
            _beside(real, suffix).rename(_beside(kept, suffix))
    sync_folder(real.parent)
    return kept


def _complete(real: Path) -> None:
    """Merge the log into the old file, unless the file is too damaged.

    Raises:
        BackupError: Another program has the file open.

    """
    uri = f"{real.as_uri()}?mode=rw"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as old:
            old.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
            old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            old.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as exc:
        if exc.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise BackupError(f"another program has {real} open; end that program first") from exc


def _free_name(real: Path) -> Path:
    kept, number = real.with_name(real.name + REPLACED), 1
    while _anything_at(kept):
        number += 1
        kept = real.with_name(f"{real.name}{REPLACED}-{number}")
    return kept


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
