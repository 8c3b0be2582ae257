"""When to begin the next of what is done together, as questions to a database are.

Callers who were answered come back a moment later, most of them together. To begin at once with
the few that are there by then makes groups small, and a group costs a turn of a thread or a
round trip, however small it is. So there is a pause, the longer the more callers there are; it
is short beside the time that it takes to serve them all, and none for a few.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PER_CALL = 75e-6
"""Seconds of the pause for each call at hand: about a third of what it takes of the event loop."""

LONGEST = 0.005
"""Seconds of a pause at most."""

FEW = 8
"""Calls at hand for which there is no pause: few callers come back sooner than it would be over."""

TICK = 0.001
"""Seconds that the timers of the event loop count in: half of one is nothing to them."""


class BatchDelay:
    """Remembers how long to wait for callers to come back. Belongs to one event loop."""

    def __init__(self) -> None:
        """Begin without a pause."""
        self._until = 0.0

    def answered(self, calls: int, now: float) -> None:
        """Take note that a group ends; ``calls`` are its own and those that wait already.

        ``now`` is the time of the event loop.
        """
        self._until = now + min(LONGEST, calls * PER_CALL) if calls > FEW else now

    def pause(self, now: float) -> float:
        """Return the seconds to wait before the next group begins; 0: none."""
        return max(0.0, self._until - now)

    def call(self, loop: asyncio.AbstractEventLoop, begin: Callable[[], None]) -> asyncio.Handle:
        """Call ``begin`` after the pause, or as soon as this turn of the loop is over."""
        pause = self.pause(loop.time())
        return loop.call_later(max(pause, TICK), begin) if pause else loop.call_soon(begin)
