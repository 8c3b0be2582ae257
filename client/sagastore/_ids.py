"""New message ids: UUIDv7 (RFC 9562)."""

from __future__ import annotations

import os
import threading
import time

__all__ = ["new_id"]

_RANDOM_BITS = 74
_RANDOM_LIMIT = 1 << _RANDOM_BITS
_POOL_BYTES = 4096


class _Clock:
    """Hands out (milliseconds, 74 random bits) in strictly rising order."""

    __slots__ = ("_lock", "_millis", "_pool", "_random", "_used")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._millis = -1
        self._random = 0
        # Random bytes fetched ahead: each fetch is a system call.
        self._pool = b""
        self._used = 0

    def _entropy(self, size: int) -> int:
        start = self._used
        self._used = end = start + size
        if end > len(self._pool):
            self._pool = os.urandom(_POOL_BYTES)
            start, self._used = 0, size
            end = size
        return int.from_bytes(self._pool[start:end])

    def next(self) -> tuple[int, int]:
        """Return the next pair; greater than every pair before it."""
        with self._lock:
            now = time.time_ns() // 1_000_000
            if now > self._millis:
                self._millis = now
                self._random = self._entropy(10) >> 6
            else:
                # The same millisecond, or a clock that was set back: count on
                # by a random step, so that order holds and the next id cannot
                # be guessed (RFC 9562, section 6.2, method 2).
                self._random += 1 + self._entropy(4)
                if self._random >= _RANDOM_LIMIT:
                    self._millis += 1
                    self._random = self._entropy(9)
            return self._millis, self._random


_clock = _Clock()


def _after_fork() -> None:
    # A child would otherwise continue from its parent's state, perhaps with
    # the lock held by a thread that does not exist in the child.
    global _clock  # noqa: PLW0603 - one for the process
    _clock = _Clock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def new_id() -> str:
    """Return a new message id: a UUIDv7 in its usual text form.

    Ids sort (as text too) in the order in which one process made them, even
    within a millisecond and when the clock is set back. Thread safe.
    """
    millis, random = _clock.next()
    high = random >> 62
    low = random & ((1 << 62) - 1)
    value = (millis << 80) | (0x7000 | high) << 64 | (1 << 63) | low
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
