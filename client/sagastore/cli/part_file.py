"""A file that appears only when complete and can be resumed after an interruption."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import IO, Any

from sagastore.cli.failures import CommandError, complain
from sagastore.cli.output_folder import OutputFolder
from sagastore.cli.raw_export import Batch
from sagastore.commandline.text import counted

__all__ = ["PartFile", "State"]

_VERSION = 2
"""Files of version 1 are ordered by id, and their lines have no `created_at`."""
_SAVE_SECONDS = 1.0
_TAIL = 65_536


@dataclass(frozen=True, slots=True)
class State:
    """A position in an export.

    Attributes:
        messages: Messages before it.
        bytes: Bytes before it.
        tail: Digest of the last bytes, to detect a changed file.
        resume_token: Token for the messages after it.
    """

    messages: int = 0
    bytes: int = 0
    tail: str = ""
    resume_token: str = ""


class PartFile:
    """Writes `FILE.part`, which is renamed to `FILE` when it is complete.

    `FILE.part.state` has the position up to which the data is durable. A later run with
    the same target truncates the file to that position and continues.

    A new file can be read by its owner only. A file that replaces an earlier one of this user has
    the permissions of that.

    Args:
        name: The name for messages to the user.
        folder: The folder of the file, which is closed with it.
        target: The server; an export from another server is not resumed.
        restart: Start from the beginning.
    """

    def __init__(self, name: str, folder: OutputFolder, target: str, *, restart: bool) -> None:
        self.name = name
        self._folder = folder
        self._part = folder.path.with_name(folder.name + ".part")
        self._state_name = folder.name + ".part.state"
        self._target = target
        self._restart = restart
        self._file: IO[bytes] | None = None
        self._state = State()
        self._saved_at = -math.inf

    def begin(self) -> State:
        """Return the state of an earlier run.

        Raises:
            CommandError: The file cannot be written, or another process is writing it.
        """
        try:
            # Without O_TRUNC: another process may be writing it.
            self._file = os.fdopen(self._folder.open_own(self._part.name), "r+b")
            _lock(self._file, self.name)
            named = self._folder.status(self._part.name)
            if named is None or os.fstat(self._file.fileno()).st_ino != named.st_ino:
                # Another export has finished in the meantime; this is its result.
                raise CommandError(f"another export has just written {self.name}; try again")
            if not self._restart:
                self._state = self._usable_state(self._file)
            self._file.truncate(self._state.bytes)
            self._file.seek(self._state.bytes)
        except OSError as exc:
            raise CommandError(f"cannot write {self._part}: {exc.strerror}") from None
        return self._state

    def _usable_state(self, file: IO[bytes]) -> State:
        try:
            values = json.loads(self._folder.read(self._state_name))
            state = State(**values["state"])
            target = values["target"]
            if values["version"] != _VERSION:
                return State()
        except (OSError, ValueError, KeyError, TypeError):
            return State()
        if target != self._target:
            complain(f"{self._part} is from {target}; starting from the beginning")
            return State()
        if _tail(file, state.bytes) != state.tail:
            complain(
                f"{self._part} has changed since the interrupted run; starting from the beginning"
            )
            return State()
        return state

    async def write(self, batch: Batch) -> None:
        """Append a batch; save the state periodically."""
        file = self._open_file()
        file.write(batch.lines)
        state = self._state
        self._state = State(
            state.messages + batch.messages,
            state.bytes + len(batch.lines),
            "",
            batch.resume_token,
        )
        if time.monotonic() - self._saved_at >= _SAVE_SECONDS:
            self._save()

    def _open_file(self) -> IO[bytes]:
        if self._file is None:
            raise ValueError("`begin` was not called")
        return self._file

    def _save(self) -> None:
        """Sync the file first, then write the state."""
        self._saved_at = time.monotonic()
        file = self._open_file()
        file.flush()
        os.fsync(file.fileno())
        state = asdict(self._state) | {"tail": _tail(file, self._state.bytes)}
        file.seek(self._state.bytes)
        values: dict[str, Any] = {"version": _VERSION, "target": self._target, "state": state}
        self._folder.write(self._state_name, json.dumps(values).encode())

    def pause(self) -> str:
        """Save the state for the next run; return how to resume."""
        try:
            self._save()
        except OSError:
            return "run the same command again when the problem is solved"
        return (
            f"{counted(self._state.messages, 'message')} in {self.name}.part; "
            "run the same command again to resume"
        )

    async def finish(self) -> None:
        """Sync the file and rename it to its final name."""
        file = self._open_file()
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
        self._keep_permissions(file.fileno())
        self._folder.rename(self._part.name, self._folder.name)
        file.close()
        self._folder.remove(self._state_name)
        self._folder.sync()
        self._folder.close()

    def _keep_permissions(self, descriptor: int) -> None:
        """Give the file the permissions of an earlier one of this user and group."""
        before, now = self._folder.status(self._folder.name), os.fstat(descriptor)
        if before is None or not hasattr(os, "fchmod"):
            return
        if (before.st_uid, before.st_gid) == (now.st_uid, now.st_gid):
            os.fchmod(descriptor, before.st_mode & 0o777)


def _tail(file: IO[bytes], end: int) -> str:
    """Return a digest of the last bytes before a position."""
    start = max(0, end - _TAIL)
    file.seek(start)
    data = file.read(end - start)
    return f"{len(data)}:{hashlib.sha256(data).hexdigest()}"


def _lock(file: IO[bytes], name: str) -> None:
    """Lock the file against other exports while it is open.

    Raises:
        CommandError: Another export has locked it.
    """
    try:
        import fcntl
    except ImportError:  # Windows.
        return
    flock: Callable[[int, int], None] = fcntl.flock
    try:
        flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise CommandError(f"another export is writing {name}; wait for it or stop it") from None
