"""Rotated backups: a folder with the newest backups of a store.

* A backup has its name only once it is verified and synced (`create.back_up`). Older ones are
  removed after that, so a failed backup removes nothing.
* Only backups of the same store are removed. The name has a part of the id of the store: if a
  store was lost and an empty one was created in its place, the backups of the lost one stay.
* Names sort in the order of writing, also if the clock was set back.
* A killed process leaves a partial file at most, which the next run removes.
* One process at a time: a lock in the folder, which the operating system releases.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from datetime import MAXYEAR, UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from sagastore_server.runtime.file_rights import FileRights
from sagastore_server.runtime.folders import Folder
from sagastore_server.sqlite.backup.create import (
    PARTIAL,
    BackupError,
    BackupReport,
    Progress,
    back_up,
    file_errors,
    identity,
)
from sagastore_server.sqlite.privacy import SIDE_FILES

LOCK = ".sagastore-backup.lock"
"""The lock file; it stays in the folder."""

_TIME = "%Y%m%dT%H%M%SZ"
_ENDING = ".db"
_ID_DIGITS = 8
"""Digits of the store's id in a name: enough to tell the stores of one path apart."""


class Rotated(NamedTuple):
    """Result of a rotated backup."""

    report: BackupReport
    removed: tuple[Path, ...]
    """Older backups that were removed."""
    kept: int
    """Backups of this store in the folder."""
    problem: str
    """Why an older backup could not be removed; empty if none had to stay."""


def default_folder(path: Path) -> Path:
    """Return the folder for rotated backups of the store at ``path``: beside it."""
    return path.with_name(path.name + ".backups")


class _Backup(NamedTuple):
    """A backup in the folder, with the time in its name."""

    began: datetime
    file: Path


class Rotation:
    """Rotated backups of one store in one folder. Created by `locked`."""

    def __init__(self, path: Path, folder: Path) -> None:
        """Use ``folder``, which this process has locked, for the store at ``path``."""
        self._path = path
        self._folder = folder

    def newest(self) -> float | None:
        """Return when the newest backup of the store was begun, in seconds since 1970.

        None if there is none.

        Raises:
            BackupError: The store or the folder cannot be read.

        """
        found = self._found(identity(self._path))
        return found[-1].began.timestamp() if found else None

    def make(self, keep: int, progress: Progress) -> Rotated:
        """Make a backup, and then remove all but the ``keep`` newest ones of this store.

        Raises:
            BackupError: It cannot be made; no backup was removed.
            KeyboardInterrupt: Raised by ``progress``; no backup was removed.

        """
        store = identity(self._path)
        earlier = self._found(store)
        with file_errors(f"cannot use {self._folder}"), self._rights().taken():
            self._remove_partial()
        report = back_up(self._path, self._next_name(store, earlier), progress)
        if report.contents.store_id != store:
            raise BackupError(
                f"{self._path} was replaced by another store during the backup, which is "
                f"{report.file}; no other backup was removed"
            )
        surplus = [one.file for one in earlier[: max(0, len(earlier) + 1 - keep)]]
        removed, problem = self._remove(surplus)
        return Rotated(report, removed, len(earlier) + 1 - len(removed), problem)

    def _found(self, store: str) -> list[_Backup]:
        """Return the backups of a store, oldest first."""
        found = []
        with file_errors(f"cannot use {self._folder}"), self._rights().taken():
            for one in self._folder.iterdir():
                began = _time_in(one.name, self._prefix(store))
                if began is not None and one.is_file() and not one.is_symlink():
                    found.append(_Backup(began, one))
        return sorted(found)

    def _prefix(self, store: str) -> str:
        return f"{self._path.stem}-{store[:_ID_DIGITS]}-"

    def _next_name(self, store: str, earlier: list[_Backup]) -> Path:
        began = datetime.now(UTC).replace(microsecond=0)
        if earlier:
            began = max(began, earlier[-1].began + timedelta(seconds=1))
        return self._folder / f"{self._prefix(store)}{began.strftime(_TIME)}{_ENDING}"

    def _remove_partial(self) -> None:
        """Remove what a killed process left; the lock excludes a running one."""
        endings = "|".join(map(re.escape, ("", *SIDE_FILES)))
        pattern = re.compile(
            rf"{re.escape(self._path.stem)}-[0-9a-f]{{{_ID_DIGITS}}}-\d{{8}}T\d{{6}}Z\.db"
            rf"{re.escape(PARTIAL)}(?:{endings})"
        )
        for one in self._folder.iterdir():
            if pattern.fullmatch(one.name):
                one.unlink(missing_ok=True)

    def _remove(self, surplus: list[Path]) -> tuple[tuple[Path, ...], str]:
        removed = []
        try:
            with file_errors("cannot remove an older backup"), self._rights().taken():
                for one in surplus:
                    one.unlink(missing_ok=True)
                    removed.append(one)
        except BackupError as exc:
            return tuple(removed), str(exc)
        return tuple(removed), ""

    def _rights(self) -> FileRights:
        return FileRights(self._folder / LOCK)


@contextlib.contextmanager
def locked(path: Path, folder: Path) -> Iterator[Rotation]:
    """Lock ``folder`` for rotated backups of the store at ``path``; create it with mode 0700.

    Raises:
        BackupError: Another process has locked it, or it cannot be used.

    """
    with contextlib.ExitStack() as stack:
        with file_errors(f"cannot use {folder}"), FileRights(folder / LOCK).taken():
            folder.mkdir(mode=0o700, exist_ok=True)
            opened = stack.enter_context(Folder(folder.resolve()))
            try:
                stack.enter_context(opened.locked(LOCK, seconds=0))
            except TimeoutError:
                raise BackupError(
                    f"another backup command is writing to {folder}; stop it, or use another folder"
                ) from None
        yield Rotation(path, folder)


def due(newest: float | None, every: float, now: float | None = None) -> float:
    """Return the seconds until the next backup is due; 0 if it is due now.

    A command that is restarted again and again makes no additional backups, which would displace
    older ones. A newest backup from the future (the clock was set back) counts as made now.
    """
    if newest is None:
        return 0.0
    current = time.time() if now is None else now
    return max(0.0, min(newest, current) + every - current)


def _time_in(name: str, prefix: str) -> datetime | None:
    """Return the time in the name of a backup; None for other names."""
    if not name.startswith(prefix) or not name.endswith(_ENDING):
        return None
    try:
        found = datetime.strptime(name[len(prefix) : -len(_ENDING)], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    if found.year == MAXYEAR:
        return None  # The next name has a later time.
    # `strptime` also accepts times with fewer digits.
    return found if name == f"{prefix}{found.strftime(_TIME)}{_ENDING}" else None
