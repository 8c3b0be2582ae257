"""Puts a backup in the place of a store, so that a crash leaves the one or the other.

What must never happen is that SQLite applies the log of the old file to the new one: a
``-wal`` is applied to whatever database has its name. So the old log is brought into the
old file, or moved away with it, before the new file gets the name.
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
from sagastore_server.sqlite.archived_store_guard import moved, remembered
from sagastore_server.sqlite.backup.backup import (
    BackupError,
    Contents,
    Progress,
    contents_of,
    copy_store,
    new_file,
    require_store,
    telling,
)
from sagastore_server.sqlite.files import open_read_only
from sagastore_server.sqlite.legacy.copy import sync_folder
from sagastore_server.sqlite.ownership import Ownership
from sagastore_server.storage.errors import CannotOpenError
from sagastore_server.storage.phase import Phase

REPLACED = ".replaced"
"""``messages.db`` is kept as ``messages.db.replaced``, or ``.replaced-2`` if that is taken."""

_RESTORING = ".restoring"
_SIDE_FILES = ("-wal", "-shm", "-journal")
_BUSY_TIMEOUT_MS = 5000


class RestoreReport(NamedTuple):
    """What was restored."""

    file: Path
    contents: Contents
    """Of the file as it is now."""
    replaced: Path | None
    """Where the file that was there is now; None: there was none."""
    seconds: float


def restore(backup: Path, path: Path, *, replace: bool, progress: Progress) -> RestoreReport:
    """Make a copy of the store in ``backup`` the store at ``path``.

    The copy is verified before anything else is touched. With ``replace`` a file that is
    there is kept under another name. May be interrupted anywhere, and called again.

    Raises:
        BackupError: It cannot be done; ``path`` is as it was.
        KeyboardInterrupt: As raised by ``progress``; the same holds.

    """
    began = time.monotonic()
    real = path.resolve()
    _require_other_file(backup, real)
    with telling(f"cannot restore {path}"), _owned(path):
        _refuse_target(path, real, replace=replace)
        partial = real.with_name(real.name + _RESTORING)
        partial.unlink(missing_ok=True)  # Of a restore that was killed: the file is ours.
        with _opened(backup) as source, new_file(partial, _mode(backup, real)):
            contents = contents_of(source)
            _refuse_archive(backup, contents)
            copy_store(source, partial, contents, progress)
            _give_to_the_owner(partial, real)
            restored = _final_contents(partial)
            replaced = _set_aside(real) if _anything_at(real) else None
            partial.replace(real)
            sync_folder(real.parent)
    return RestoreReport(path, restored, replaced, time.monotonic() - began)


@contextlib.contextmanager
def _owned(path: Path) -> Iterator[None]:
    """Keep servers out; fails with the line that names the one that has the file."""
    ownership = Ownership(path)
    ownership.acquire()
    try:
        real = path.resolve()
        _give_to_the_owner(real.with_name(real.name + ".lock"), real)
        yield
    finally:
        ownership.release()


def _require_other_file(backup: Path, real: Path) -> None:
    with telling(f"cannot restore {backup}"):
        if backup.stat().st_size == 0:
            raise BackupError(f"{backup} is empty; it is not a backup")
        if real.exists() and backup.samefile(real):
            raise BackupError(f"{backup} is the very file that is to be replaced")
    if backup.with_name(backup.name + "-shm").exists():
        raise BackupError(
            f"{backup} is in use, or was when its server was killed; make a backup of it first "
            "(sagastore-server backup), and restore that"
        )


def _refuse_target(path: Path, real: Path, *, replace: bool) -> None:
    if real.exists():
        if not replace:
            raise BackupError(
                f"{path} exists; --replace puts the backup in its place, and keeps it beside"
            )
        with contextlib.suppress(CannotOpenError):  # Damaged, which is a reason to restore.
            found = remembered(real, recover=True)
            if found is not None and found.state.phase is Phase.POSTGRES_ONLY:
                raise BackupError(str(moved(path, found)))
    elif receipt_path(real).exists():
        raise BackupError(
            f"{path} was archived: its messages have moved to PostgreSQL, which may have later "
            f"ones; start with --postgres alone, or move {receipt_path(real).name} away to go on "
            "from the backup regardless"
        )


def _refuse_archive(backup: Path, contents: Contents) -> None:
    if contents.phase is Phase.POSTGRES_ONLY:
        raise BackupError(
            f"{backup} is the archive of a store whose messages have moved to PostgreSQL; start "
            "with --postgres alone"
        )


@contextlib.contextmanager
def _opened(backup: Path) -> Iterator[sqlite3.Connection]:
    with telling(f"cannot restore {backup}"), open_read_only(backup) as connection:
        require_store(connection, backup)
        connection.execute("BEGIN")
        yield connection


def _final_contents(partial: Path) -> Contents:
    with open_read_only(partial) as connection:
        return contents_of(connection)


def _mode(backup: Path, real: Path) -> int:
    like = real if real.exists() else backup
    return stat.S_IMODE(like.stat().st_mode) & 0o777 | stat.S_IWUSR


def _give_to_the_owner(path: Path, real: Path) -> None:
    """For root: whose the old file, or the folder, is shall be able to use the new one."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        like = (real if real.exists() else real.parent).stat()
        os.chown(path, like.st_uid, like.st_gid)


# ------------------------------------------------------------------ the old file


def _anything_at(real: Path) -> bool:
    return any(_beside(real, suffix).exists() for suffix in ("", *_SIDE_FILES))


def _set_aside(real: Path) -> Path:
    """Keep the old file, complete, under another name; return that.

    It keeps its old name as well until the new file takes it: a server that starts in
    between finds the old store, not an empty place. Its log, where that could not be
    brought into it, goes first, and on disk, before the new file can get the name.
    """
    aside = _free_name(real)
    if real.exists():
        _complete(real)
        try:
            os.link(real, aside)
        except OSError:
            real.rename(aside)  # A file system without links.
    for suffix in _SIDE_FILES:
        if _beside(real, suffix).exists():
            _beside(real, suffix).rename(_beside(aside, suffix))
    sync_folder(real.parent)
    return aside


def _complete(real: Path) -> None:
    """Bring the log of the old file into it, unless it is too damaged for that.

    Raises:
        BackupError: Another program has it open.

    """
    uri = f"{real.as_uri()}?mode=rw"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as old:
            old.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
            old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            old.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as exc:
        if exc.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise BackupError(f"another program has {real} open; end that one first") from exc


def _free_name(real: Path) -> Path:
    aside, number = real.with_name(real.name + REPLACED), 1
    while _anything_at(aside):
        number += 1
        aside = real.with_name(f"{real.name}{REPLACED}-{number}")
    return aside


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
