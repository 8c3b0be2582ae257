"""Ids for messages that come without one: UUIDv7, growing within a process."""

from __future__ import annotations

import os
import time
import uuid

_COUNTER_BITS = 42
_TAIL_BITS = 32
_MAX_COUNTER = (1 << _COUNTER_BITS) - 1
_FRESH_COUNTER = (1 << (_COUNTER_BITS - 1)) - 1
"""A new millisecond begins in the lower half, which leaves 2**41 ids to count up to."""


class IdSource:
    """Makes UUIDv7s, each greater than the one before (RFC 9562, 6.2, method 1).

    48 bits of Unix time in milliseconds, then a 42-bit counter that begins at
    random in each millisecond, then 32 random bits. A clock that is set back
    does not take the ids back: they go on from the last time seen.
    """

    def __init__(self) -> None:
        """Begin before every possible moment."""
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
    """Put the parts into the layout of RFC 9562, 5.7, around version and variant."""
    value = (millis & 0xFFFF_FFFF_FFFF) << 80
    value |= 0x7 << 76
    value |= (counter >> 30) << 64
    value |= 0b10 << 62
    value |= (counter & 0x3FFF_FFFF) << 32
    return uuid.UUID(int=value | tail)
