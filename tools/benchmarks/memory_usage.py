"""Resident memory of processes over time, and whether it stays flat."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

_EVERY = 0.1
"""Seconds between two looks."""
_MIB = 1024 * 1024


class Memory:
    """The resident memory of a process and of those that it has started, over some time."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.seen: list[float] = []
        """MiB, one every tenth of a second."""

    @property
    def peak(self) -> float:
        """The greatest, in MiB."""
        return max(self.seen, default=0.0)

    @property
    def growth(self) -> float:
        """How much greater the peak of the second half is than that of the first, in MiB."""
        half = len(self.seen) // 2
        return max(self.seen[half:], default=0.0) - max(self.seen[:half], default=0.0)


@contextmanager
def memory_of(pid: int) -> Iterator[Memory]:
    """Look at a process, and those that it has started, for as long as the context lasts.

    What they share is counted for each of them.
    """
    memory, over = Memory(), threading.Event()

    def look() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            while not over.wait(_EVERY):
                them = [process, *process.children(recursive=True)]
                memory.seen.append(sum(map(_resident, them)) / _MIB)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        over.set()
        thread.join()


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
