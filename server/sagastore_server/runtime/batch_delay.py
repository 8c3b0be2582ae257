"""BatchDelay: how long to wait for more calls before the next batch begins.

Callers that were answered send their next call a moment later, most of them together. A batch
that begins at once holds only the few calls that have arrived by then, and every batch costs a
thread hop or a round trip regardless of its size. So there is a pause that grows with the number
of callers. It is short compared with the time to serve them all, and zero for a few callers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PER_CALL = 75e-6
"""Seconds of pause per concurrent call: about a third of the event loop time of a call."""

LONGEST = 0.005
"""Seconds of a pause at most."""

FEW = 8
"""Concurrent calls up to which there is no pause: so few callers come back sooner."""

TICK = 0.001
"""Resolution of the event loop's timers in seconds: a timer of half of it fires at once."""


class BatchDelay:
    """Computes the pause before the next batch. Belongs to one event loop."""

    def __init__(self) -> None:
        """Start without a pause."""
        self._until = 0.0

    def answered(self, calls: int, now: float) -> None:
        """Record the end of a batch.

        Args:
            calls: Calls in the batch, plus those that are waiting already.
            now: Time of the event loop.

        """
        self._until = now + min(LONGEST, calls * PER_CALL) if calls > FEW else now

    def pause(self, now: float) -> float:
        """Return the seconds to wait before the next batch begins; 0: none."""
        return max(0.0, self._until - now)

    def call(self, loop: asyncio.AbstractEventLoop, begin: Callable[[], None]) -> asyncio.Handle:
        """Call ``begin`` after the pause, or in the next iteration of the loop."""
        pause = self.pause(loop.time())
        return loop.call_later(max(pause, TICK), begin) if pause else loop.call_soon(begin)
