"""Resident memory of processes over time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

_EVERY = 0.1
"""Seconds between two samples."""
_MIB = 1024 * 1024


class Memory:
    """Resident memory of a process and its children over time."""

    def __init__(self) -> None:
        """Start without samples."""
        self.seen: list[float] = []
        """MiB, one sample every tenth of a second."""

    @property
    def peak(self) -> float:
        """Maximum in MiB."""
        return max(self.seen, default=0.0)

    @property
    def growth(self) -> float:
        """Difference between the peaks of the second and the first half in MiB."""
        half = len(self.seen) // 2
        return max(self.seen[half:], default=0.0) - max(self.seen[:half], default=0.0)


@contextmanager
def memory_of(pid: int) -> Iterator[Memory]:
    """Sample a process and its children for the duration of the context.

    Shared memory counts for each process.
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
