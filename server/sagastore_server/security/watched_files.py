"""Watcher for files that may change while the server runs: detects stable changes.

The content is read and compared, not the modification time: a coarse clock would hide a change,
and a symbolic link that is moved (as Kubernetes does with secrets) keeps its own time. The files
are small, so reading them costs little.

A change counts once two reads in a row return the same content. So neither a file that is being
written in place nor one half of a replaced pair is accepted.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from sagastore_server.runtime.supervisor import Supervisor

MAX_BYTES = 1024 * 1024
"""Largest accepted file, in bytes. Certificates and access files have a few kilobytes."""

_POLL_SECONDS = 1.0
"""Time between two polls."""
_CONFIRM_SECONDS = 0.2
"""Time until the poll that confirms a change."""


class FileError(Exception):
    """A file cannot be used.

    The message is one line: the file, the reason and the remedy. It quotes no secret.
    """


class Content(NamedTuple):
    """Content and permissions of a file at one time."""

    data: bytes
    mode: int
    """Permission bits."""
    problem: str = ""
    """Why it could not be read, as the predicate of a sentence; empty if it was read."""


class WatchedFiles:
    """Detects changes of a set of files. Not safe for concurrent use."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Watch ``paths``."""
        self._paths = tuple(paths)
        self._latest: tuple[Content, ...] = ()
        self._reported: tuple[Content, ...] = ()

    @property
    def is_changing(self) -> bool:
        """Whether the last poll found a change that another poll has to confirm."""
        return self._latest != self._reported

    def read(self) -> tuple[Content, ...]:
        """Return the files as they are now; later polls compare with them."""
        self._latest = self._reported = tuple(map(_read, self._paths))
        return self._reported

    def poll(self) -> tuple[Content, ...] | None:
        """Return the files if they have changed and two polls have found the same content."""
        found = tuple(map(_read, self._paths))
        settled, self._latest = found == self._latest, found
        if not settled or found == self._reported:
            return None
        self._reported = found
        return found


class Watched(Protocol):
    """A component that reloads its files when they change."""

    def poll(self) -> bool:
        """Check the files, in any thread. Return whether a change has to be confirmed soon."""

    def apply(self) -> None:
        """Use what the last poll found. Runs on the event loop."""


@asynccontextmanager
async def watching(
    components: Mapping[str, Watched], supervisor: Supervisor | None = None
) -> AsyncIterator[None]:
    """Poll the files of ``components`` every second while the context lasts.

    Each has a separate task, named for example ``access-watcher``, so that the failure of one
    does not keep another from reloading.
    """
    supervisor = supervisor or Supervisor()
    tasks = [
        supervisor.start(f"{name}-watcher", partial(_watch, component))
        for name, component in components.items()
    ]
    try:
        yield
    finally:
        await asyncio.gather(*(task.stop() for task in tasks))


async def _watch(component: Watched) -> None:
    pause = _POLL_SECONDS
    while True:
        await asyncio.sleep(pause)
        # In a thread, because the files may be on a slow network file system.
        changing = await asyncio.to_thread(component.poll)
        component.apply()
        pause = _CONFIRM_SECONDS if changing else _POLL_SECONDS


def _read(path: Path) -> Content:
    try:
        # Checked before opening, because opening a pipe blocks until it has a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            return Content(b"", 0, "is not a file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except OSError as exc:
        return Content(b"", 0, f"cannot be read: {exc.strerror}")
    if len(data) > MAX_BYTES:
        return Content(b"", mode, f"is larger than {MAX_BYTES:,} bytes")
    return Content(data, mode)
