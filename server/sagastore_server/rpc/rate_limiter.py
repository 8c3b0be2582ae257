"""Rate limiter: a token bucket per caller, bounded in number."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

_MAX_CALLERS = 10_000
"""Buckets kept. The least recently used one is dropped, and its caller starts with a full bucket:
a caller with that many addresses gains no more than that many callers are allowed."""


class RateLimiter:
    """Allows each caller a number of calls per second, with a burst."""

    def __init__(
        self,
        rate: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        burst: float | None = None,
    ) -> None:
        """Allow ``rate`` calls per second, which is greater than 0.

        ``burst`` calls may come at once; by default those of one second.
        """
        self._rate = rate
        self._burst = max(1.0, rate) if burst is None else burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> float:
        """Take one call from the caller's bucket.

        Returns:
            0 if it was taken; otherwise the seconds until the bucket holds one.

        """
        now = self._clock()
        left, since = self._buckets.pop(caller, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._rate)
        wait = 0.0 if left >= 1 else (1 - left) / self._rate
        self._buckets[caller] = (left if wait else left - 1, now)
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        return wait
