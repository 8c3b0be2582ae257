"""When a failed call is repeated, and after how long."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass

from sagastore._status import is_transient
from sagastore.errors import SagaStoreError

__all__ = ["Deadline", "RetryPolicy", "delay_before_retry"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how patiently, a call is repeated.

    Only UNAVAILABLE and RESOURCE_EXHAUSTED are retried, only where repeating is
    safe, and only within the call's timeout. The wait before attempt n is
    random between 0 and `initial_backoff * multiplier ** (n - 2)`, at most
    `max_backoff`, so that many clients do not come back at once. Where the
    server says how long to wait, it is at least that.

    Attributes:
        max_attempts: Attempts in all, the first included; 1 means no retries.
        initial_backoff: Longest wait before the second attempt, in seconds.
        max_backoff: Longest wait before any attempt, in seconds.
        multiplier: Growth of the longest wait from one attempt to the next.
    """

    max_attempts: int = 6
    initial_backoff: float = 0.1
    max_backoff: float = 2.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if self.max_attempts < 1:
            raise ValueError("max_attempts must be at least 1")
        if not 0 <= self.initial_backoff <= self.max_backoff < math.inf:
            raise ValueError("0 <= initial_backoff <= max_backoff must hold, both finite")
        if not 1 <= self.multiplier < math.inf:
            raise ValueError("multiplier must be at least 1")

    def backoff(self, failures: int) -> float:
        """Return how long to wait after so many failures (at least 1), in seconds."""
        # 2.0 ** 1100 overflows; the cap is reached long before.
        growth = self.multiplier ** min(failures - 1, 64)
        limit = min(self.max_backoff, self.initial_backoff * growth)
        return random.uniform(0.0, limit)  # noqa: S311 - spreads clients, guards nothing


class Deadline:
    """The end of a call, all of its attempts included."""

    __slots__ = ("_at", "_clock")

    def __init__(self, timeout: float) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be greater than 0, not {timeout!r}")
        self._clock = asyncio.get_running_loop().time
        self._at = self._clock() + timeout

    def remaining(self) -> float | None:
        """Return the seconds left, never below 0; None where there is no end."""
        if self._at == math.inf:
            return None
        return max(0.0, self._at - self._clock())

    def leaves_room_for(self, delay: float) -> bool:
        """Tell whether something can still happen after a wait."""
        return self._at - self._clock() > delay


def delay_before_retry(policy: RetryPolicy, error: SagaStoreError, failures: int) -> float | None:
    """Return how long to wait before the next attempt, in seconds; None to give up.

    Args:
        policy: The caller's policy.
        error: What the last attempt ended with.
        failures: Attempts that have failed, that one included.
    """
    if failures >= policy.max_attempts or not is_transient(error):
        return None
    jitter = policy.backoff(failures)
    return jitter if error.retry_after is None else error.retry_after + jitter
