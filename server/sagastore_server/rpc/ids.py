"""UUIDv7 generator: ids for messages that are saved without one, increasing within a process."""

from __future__ import annotations

import os
import time
import uuid

_COUNTER_BITS = 42
_TAIL_BITS = 32
_MAX_COUNTER = (1 << _COUNTER_BITS) - 1
_FRESH_COUNTER = (1 << (_COUNTER_BITS - 1)) - 1
"""A millisecond starts in the lower half of the counter, which leaves 2**41 ids."""


class IdSource:
    """Generates UUIDv7s, each greater than the previous one (RFC 9562, 6.2, method 1).

    An id has 48 bits of Unix time in milliseconds, a 42-bit counter with a random start in each
    millisecond, and 32 random bits. If the clock is set back, ids continue from the latest time.
    """

    def __init__(self) -> None:
        """Create a generator that has generated no id."""
        self._millis = -1
        self._counter = 0

    def new(self) -> str:
        """Return an id in its usual text form (36 characters)."""
        now = time.time_ns() // 1_000_000
        random = int.from_bytes(os.urandom(10), "big")
        if now > self._millis:
            self._millis = now
            self._counter = (random >> _TAIL_BITS) & _FRESH_COUNTER
        elif self._counter < _MAX_COUNTER:
            self._counter += 1
        else:
            self._millis += 1
            self._counter = (random >> _TAIL_BITS) & _FRESH_COUNTER
        return str(_assemble(self._millis, self._counter, random & 0xFFFF_FFFF))


def _assemble(millis: int, counter: int, tail: int) -> uuid.UUID:
    """Return the UUID with the layout of RFC 9562, 5.7, which adds version and variant."""
    value = (millis & 0xFFFF_FFFF_FFFF) << 80
    value |= 0x7 << 76
    value |= (counter >> 30) << 64
    value |= 0b10 << 62
    value |= (counter & 0x3FFF_FFFF) << 32
    return uuid.UUID(int=value | tail)
