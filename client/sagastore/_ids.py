"""New message ids: UUIDv7 (RFC 9562)."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator

__all__ = ["new_id"]

# RFC 9562: 48 bits of milliseconds, then 12 and 62 bits that are random here.
_LOW_BITS = 62
_LOW_LIMIT = 1 << _LOW_BITS
_STEPS = 1024


class _Source:
    """Generates ids in strictly ascending order."""

    __slots__ = ("_head", "_lock", "_low", "_millis", "_steps")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._millis = -1
        self._head = ""
        self._low = 0
        self._steps: Iterator[int] = iter(())

    def next(self) -> str:
        """Return the next id; greater than every id before it."""
        with self._lock:
            now = time.time_ns() // 1_000_000
            if now > self._millis:
                self._begin(now)
            else:
                # The same millisecond, or the clock was set back: add a random
                # step, which keeps the order and makes the next id unpredictable
                # (RFC 9562, section 6.2, method 2).
                self._low += self._step()
                if self._low >= _LOW_LIMIT:
                    self._begin(self._millis + 1)
            low = f"{0x8000_0000_0000_0000 | self._low:016x}"
            return f"{self._head}-{low[:4]}-{low[4:]}"

    def _begin(self, millis: int) -> None:
        """Start a millisecond; within it, only the last 62 bits change."""
        random = int.from_bytes(os.urandom(10)) >> 6
        self._millis = millis
        self._low = random & (_LOW_LIMIT - 1)
        time_text = f"{millis:012x}"
        self._head = f"{time_text[:8]}-{time_text[8:]}-7{random >> _LOW_BITS:03x}"

    def _step(self) -> int:
        for step in self._steps:
            return step + 1
        # Fetched in blocks: each fetch of random bytes is a system call.
        self._steps = iter(struct.unpack(f"={_STEPS}I", os.urandom(4 * _STEPS)))
        return next(self._steps) + 1


_source = _Source()


def _after_fork() -> None:
    # Otherwise a child would repeat its parent's ids, and the lock may be held by a
    # thread that does not exist in the child.
    global _source  # noqa: PLW0603 - one per process
    _source = _Source()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def new_id() -> str:
    """Return a new message id: a UUIDv7 in its usual text form.

    The ids of one process sort in the order of their creation, also as text, also
    within a millisecond, and also when the clock is set back. Thread safe.
    """
    return _source.next()
