"""Exclusive ownership of a database file by one server process.

SQLite would let several processes write. SagaStore must not: a server keeps the next revision
and the migration phase in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from sagastore_server.runtime.file_rights import RightsError, refuse_other_users
from sagastore_server.runtime.private_files import PRIVATE, read_plain, write_new
from sagastore_server.storage.errors import CannotOpenError

_MAX_RECORD = 4096
"""Bytes read of the record of the owner; it has about a hundred."""


class Ownership:
    """Lock on a database file, held from ``acquire`` to ``release``.

    The operating system releases it when the process ends for any reason. The file
    ``NAME.owner`` names the owner for error messages only; the lock does not depend on it.
    """

    def __init__(self, path: Path) -> None:
        """Create the lock of the database at ``path`` without acquiring it."""
        self._path = path
        # Lock the target of symbolic links, so that every path to the file has one lock.
        real = path.resolve()
        self._lock = FileLock(
            real.with_name(real.name + ".lock"), timeout=0, thread_local=False, mode=PRIVATE
        )
        self._owner = real.with_name(real.name + ".owner")

    def acquire(self) -> None:
        """Acquire the lock; does nothing if it is held.

        Raises:
            CannotOpenError: Another process holds it, or the folder is not writable.

        """
        if self._lock.is_locked:
            return
        # FileLock would create the folder, which for a mistyped path is wrong.
        if not self._owner.parent.is_dir():
            raise CannotOpenError(f"cannot create {self._path}: its folder does not exist")
        try:
            refuse_other_users(self._path)
            self._lock.acquire()
        except RightsError as exc:
            raise CannotOpenError(f"cannot use {self._path}: {exc.strerror}") from exc
        except Timeout:
            raise CannotOpenError(
                f"{self._path} is in use by another SagaStore server ({self._named_owner()}); "
                "stop that server first, or use another file"
            ) from None
        except OSError as exc:
            raise CannotOpenError(
                f"cannot lock {self._path}: {exc.strerror}; "
                "the server must be able to write in the file's folder"
            ) from exc
        with contextlib.suppress(OSError):
            write_new(self._owner, json.dumps(_this_process()).encode())

    def release(self) -> None:
        """Release the lock; does nothing if it is not held."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self._owner.unlink()
            self._lock.release()

    def _named_owner(self) -> str:
        try:
            owner = json.loads(read_plain(self._owner, _MAX_RECORD))
            return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "which is starting or stopping"


def _this_process() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
