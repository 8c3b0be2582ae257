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
    """The resident memory of one process while something lasted."""

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
    """Look at a process for as long as the context lasts, or the process."""
    memory, over = Memory(), threading.Event()

    def look() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            while not over.wait(_EVERY):
                memory.seen.append(process.memory_info().rss / _MIB)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        over.set()
        thread.join()
