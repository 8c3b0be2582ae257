"""Audit writer: writes audit lines in a separate thread, from a bounded queue.

The event loop only appends to the queue, so a slow or full disk never delays a call. If the queue
is full, or the destination rejects a line, the line is lost and counted: the service does not stop
because its audit trail cannot be written. `lost` is a metric, `failure` a warning in readiness,
and a line with the number follows once lines are written again.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import structlog
from filelock import lock_descriptor, unlock_descriptor

from sagastore_server.runtime.file_rights import RightsError, refuse_other_users

MAX_QUEUED = 10_000
"""Lines that wait; each takes 0.3 to 4 kB. A busy server writes this many in some seconds."""

_COLLECT_SECONDS = 0.2
"""Seconds that the thread waits for more lines after the first. It wakes rarely, because it then
competes with the event loop for the interpreter."""
_TICK_SECONDS = 10.0
"""Seconds between two calls of ``tick``."""
_TOGETHER = 256
"""Lines per write."""
_CHECK_SECONDS = 1.0
"""Seconds between two checks whether the file was replaced."""
_CLOSE_SECONDS = 5.0
"""Seconds that `AuditWriter.close` waits for the remaining lines."""
_LOCK_SECONDS = 1.0
"""Seconds to wait for other processes that write to the file, which take milliseconds. After that,
lines are written without the lock: they are whole all the same, unless the disk is full."""
_LOCK_PAUSE = 0.005
"""Seconds between two attempts to get the lock."""
_ATOMIC = 4096
"""Bytes that a pipe accepts in one piece (POSIX: PIPE_BUF, 4096 on Linux)."""

Entry = TypeVar("Entry")

_log = structlog.get_logger(__name__)


class AuditFileError(Exception):
    """The audit file cannot be used. One line: the file, the reason and the remedy."""


class Destination(Protocol):
    """Where audit lines go. Used by one thread."""

    def write(self, lines: bytes) -> None:
        """Write complete lines.

        Raises:
            OSError: They were not written, or only some of them.

        """

    def close(self) -> None:
        """Release the destination."""


class StreamDestination:
    """An open file descriptor, such as standard error; it stays open."""

    def __init__(self, descriptor: int) -> None:
        """Write to ``descriptor``."""
        self._descriptor = descriptor

    def write(self, lines: bytes) -> None:
        """See the contract. Lines of other writers do not get in between the parts of a line."""
        part = bytearray()
        for line in lines.splitlines(keepends=True):
            if part and len(part) + len(line) > _ATOMIC:
                _write_all(self._descriptor, bytes(part))
                part.clear()
            part += line
        _write_all(self._descriptor, bytes(part))

    def close(self) -> None:
        """See the contract."""


class FileDestination:
    """A file that lines are appended to; created with mode 0600.

    If the file was moved or deleted, a new one is created within a second of the next line. So
    programs that rotate logs need not notify the server. Several processes may write to one file:
    each appends whole lines, and holds a lock meanwhile.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Open ``path``.

        Raises:
            AuditFileError: It cannot be opened, is not a regular file, or this process runs as
                root and another user controls the path.

        """
        self._path = path
        self._clock = clock
        self._next_check = clock() + _CHECK_SECONDS
        try:
            self._descriptor = _open(path)
        except RightsError as exc:
            raise AuditFileError(f"cannot use the audit file {path}: {exc.strerror}") from exc
        except OSError as exc:
            raise AuditFileError(
                f"cannot open the audit file {path}: {exc.strerror or exc}; make its folder "
                "writable for the server, or choose another file, log or off (audit)"
            ) from exc
        self._identity = _identity(os.fstat(self._descriptor))
        mode = stat.S_IMODE(os.fstat(self._descriptor).st_mode)
        if mode & 0o022:
            _log.warning("other users can change the audit file", file=str(path), do="chmod 600")
        elif mode & 0o004:
            _log.warning("other users can read the audit file", file=str(path), do="chmod 600")

    def write(self, lines: bytes) -> None:
        """See the contract."""
        if self._clock() >= self._next_check:
            self._reopen_if_replaced()
            self._next_check = self._clock() + _CHECK_SECONDS
        with _locked(self._descriptor):
            # After a line that was written in part, for example to a full disk, or before a kill.
            start = b"\n" if _ends_within_line(self._descriptor) else b""
            _write_all(self._descriptor, start + lines)

    def close(self) -> None:
        """See the contract."""
        os.close(self._descriptor)

    def _reopen_if_replaced(self) -> None:
        try:
            if _identity(self._path.lstat()) == self._identity:
                return
        except FileNotFoundError:
            pass
        fresh = _open(self._path)
        os.close(self._descriptor)
        self._descriptor = fresh
        self._identity = _identity(os.fstat(fresh))


class AuditWriter(Generic[Entry]):
    """Queue and thread of the audit trail. `put` belongs to one thread, the event loop's."""

    def __init__(
        self,
        destination: Destination,
        render: Callable[[Entry], str],
        report_lost: Callable[[int], str],
        tick: Callable[[], list[str]],
    ) -> None:
        """Start the thread.

        Args:
            destination: Receives the lines.
            render: Returns the line of an entry, with a newline. Called in the thread, for many
                entries in a row, which takes a tenth of the time of single calls.
            report_lost: Returns the line that says how many lines were lost.
            tick: Returns more lines. Called in the thread, every ten seconds and at the end.

        """
        self.failure = ""
        """Why the latest lines could not be written; empty if they were."""
        self._destination = destination
        self._render = render
        self._report_lost = report_lost
        self._tick = tick
        self._queue: deque[Entry] = deque()
        self._wake = threading.Event()
        self._is_awake = False
        self._closing = threading.Event()
        self._dropped = 0
        self._rejected = 0
        self._reported = 0
        self._thread = threading.Thread(target=self._run, name="audit-writer", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Lines lost since the start."""
        return self._dropped + self._rejected

    def put(self, entry: Entry) -> None:
        """Append an entry; count its line as lost if the queue is full."""
        if len(self._queue) >= MAX_QUEUED:
            self._dropped += 1
            return
        self._queue.append(entry)
        if not self._is_awake:
            self._is_awake = True
            self._wake.set()

    def close(self) -> None:
        """Write the remaining lines, for at most five seconds, and end the thread."""
        self._closing.set()
        self._wake.set()
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            _log.error("audit lines lost at the end: the destination hangs", lines=len(self._queue))

    def _run(self) -> None:
        next_tick = time.monotonic() + _TICK_SECONDS
        while not self._closing.is_set():
            if self._wake.wait(_TICK_SECONDS):
                self._closing.wait(_COLLECT_SECONDS)
            self._write_queue()
            if time.monotonic() >= next_tick:
                self._write(self._tick())
                next_tick = time.monotonic() + _TICK_SECONDS
        self._write_queue()
        self._write(self._tick())
        self._destination.close()

    def _write_queue(self) -> None:
        # In this order: an entry that is added from now on wakes the thread again.
        self._wake.clear()
        self._is_awake = False
        queue = self._queue
        while queue:
            count = min(len(queue), _TOGETHER)
            lines = [self._rendered(queue.popleft()) for _ in range(count)]
            self._write([line for line in lines if line])

    def _rendered(self, entry: Entry) -> str:
        """Return the line of an entry; empty if a defect prevents that, and the line is lost."""
        try:
            return self._render(entry)
        except Exception as exc:  # noqa: BLE001 - the thread continues with the other lines
            self._rejected += 1
            _log.error("an audit line cannot be rendered", exc_info=exc)
            return ""

    def _write(self, lines: list[str]) -> None:
        lost = self.lost - self._reported
        if lost:
            lines = [*lines, self._report_lost(lost)]
        if not lines:
            return
        try:
            self._destination.write("".join(lines).encode("utf-8", "backslashreplace"))
        except OSError as exc:
            reason, is_new = exc.strerror or str(exc), not self.failure
            # Before the count, so that a reader of the count finds the reason.
            self.failure = reason
            self._rejected += len(lines) - bool(lost)
            if is_new:
                _log.error("audit lines cannot be written", reason=reason)
            return
        self._reported += lost
        if self.failure:
            self.failure = ""
            _log.warning("audit lines are written again", lost=lost)


def _open(path: Path) -> int:
    refuse_other_users(path)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
    # Without a link of another user, and without waiting for the reader of a pipe.
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return descriptor


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Exclude other processes that write to the file, which they do for milliseconds."""
    end = time.monotonic() + _LOCK_SECONDS
    held = False
    with suppress(OSError):  # The file system has no locks.
        while not (held := lock_descriptor(descriptor, blocking=False)):
            if time.monotonic() > end:
                break
            time.sleep(_LOCK_PAUSE)
    try:
        yield
    finally:
        if held:
            with suppress(OSError):
                unlock_descriptor(descriptor)


def _ends_within_line(descriptor: int) -> bool:
    if not os.fstat(descriptor).st_size:
        return False
    os.lseek(descriptor, -1, os.SEEK_END)
    return os.read(descriptor, 1) != b"\n"


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
