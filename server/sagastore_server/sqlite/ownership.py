"""One process owns a file: a second one is told which.

SQLite itself would let several processes write. The server must not: the numbers
that it gives out, and later the phase of a migration, live in its memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from sagastore_server.storage.errors import CannotOpenError


class Ownership:
    """The lock on a database file, held from ``acquire`` to ``release``.

    The operating system drops it when the process ends, however it ends. Beside
    the lock a small file names the owner; it is a hint for people, never trusted.
    """

    def __init__(self, path: Path) -> None:
        """Prepare to own the database at ``path``."""
        self._path = path
        # The file that links lead to is the one that is owned.
        real = path.resolve()
        self._lock = FileLock(real.with_name(real.name + ".lock"), timeout=0, thread_local=False)
        self._owner = real.with_name(real.name + ".owner")

    def acquire(self) -> None:
        """Take the file; harmless if it is held.

        Raises:
            CannotOpenError: Another process has it, or its folder cannot be written.

        """
        if self._lock.is_locked:
            return
        # The lock would create it; a mistyped path is not an order to do so.
        if not self._owner.parent.is_dir():
            raise CannotOpenError(f"cannot create {self._path}: its folder does not exist")
        try:
            self._lock.acquire()
        except Timeout:
            raise CannotOpenError(
                f"{self._path} is in use by another SagaStore server ({self._named_owner()}); "
                "stop that one first, or give this one another file"
            ) from None
        except OSError as exc:
            raise CannotOpenError(
                f"cannot lock {self._path}: {exc.strerror}; "
                "the server must be able to write in the file's folder"
            ) from exc
        with contextlib.suppress(OSError):
            self._owner.write_text(json.dumps(_this_process()), encoding="utf-8")

    def release(self) -> None:
        """Give the file free; harmless if it is not held."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self._owner.unlink()
            self._lock.release()

    def _named_owner(self) -> str:
        try:
            owner = json.loads(self._owner.read_text(encoding="utf-8"))
            return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "it is just starting or stopping"


def _this_process() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
