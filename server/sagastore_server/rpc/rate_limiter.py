"""How often each caller may call: a token bucket for each."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

_MAX_CALLERS = 10_000
"""Callers remembered. Who was forgotten longest ago begins with a full bucket, so a
stranger with many addresses gains nothing that many strangers would not have."""


class RateLimiter:
    """Allows each caller so many calls a second, and a second's worth at once."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Allow ``rate`` calls a second, which is greater than 0."""
        self._rate = rate
        self._burst = max(1.0, rate)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> float:
        """Take one call out of the caller's bucket.

        Returns:
            0 when there was one; otherwise the seconds until there is, and none is taken.

        """
        now = self._clock()
        left, since = self._buckets.pop(caller, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._rate)
        wait = 0.0 if left >= 1 else (1 - left) / self._rate
        self._buckets[caller] = (left if wait else left - 1, now)
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        return wait
