"""Files that are read again when they change, while the server runs.

They are read and compared, not looked up by their times: a clock that is coarse would
hide a change, and a link that is moved elsewhere (as Kubernetes does with secrets) has
the times of its old self. They are small, so that costs nothing.

A change counts once two looks have found the same: between the two files of a pair, or
in the middle of a file that is written in place, nothing is taken over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

MAX_BYTES = 1024 * 1024
"""A file may be as large; what is larger is not what it should be."""

_EVERY = 1.0
"""Seconds between two looks."""
_SOON = 0.2
"""Seconds until the second look at what has changed."""


class FileError(Exception):
    """A file cannot be used; the line says which, why, and what to do. It quotes no secret."""


class Content(NamedTuple):
    """A file, as it was found."""

    data: bytes
    mode: int
    """Its permissions."""
    problem: str = ""
    """Why it could not be read; ends a line that begins with its name."""


class WatchedFiles:
    """Finds out whether any of some files has changed. Not safe for several threads at once."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Watch ``paths``."""
        self._paths = tuple(paths)
        self._seen: tuple[Content, ...] = ()
        self._judged: tuple[Content, ...] = ()

    @property
    def is_changing(self) -> bool:
        """Whether the last look found a change that has to be confirmed by another."""
        return self._seen != self._judged

    def read(self) -> tuple[Content, ...]:
        """Return the files as they are now, as the first to compare with."""
        self._seen = self._judged = tuple(map(_read, self._paths))
        return self._judged

    def look(self) -> tuple[Content, ...] | None:
        """Return the files if they have changed, and are the same as at the last look."""
        found = tuple(map(_read, self._paths))
        settled, self._seen = found == self._seen, found
        if not settled or found == self._judged:
            return None
        self._judged = found
        return found


class Watched(Protocol):
    """Something that follows files."""

    def look(self) -> bool:
        """Look at the files, in any thread; tell whether to look again soon."""

    def tell(self) -> None:
        """Pass on what the look found, on the event loop."""


@asynccontextmanager
async def watching(things: Sequence[Watched]) -> AsyncIterator[None]:
    """Look at the files of ``things`` every second for as long as the context lasts."""
    task = asyncio.create_task(_watch(things))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _watch(things: Sequence[Watched]) -> None:
    pause = _EVERY
    while things:
        await asyncio.sleep(pause)
        # In a thread: the files may be on a disk that is elsewhere, and slow.
        changing = [await asyncio.to_thread(thing.look) for thing in things]
        for thing in things:
            thing.tell()
        pause = _SOON if any(changing) else _EVERY


def _read(path: Path) -> Content:
    try:
        # Asked first: to open a pipe would wait for whoever writes into it.
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
