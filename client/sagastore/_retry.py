"""Retry policy and deadline of calls."""

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
    """When and how often failed calls are retried.

    - Only UNAVAILABLE and RESOURCE_EXHAUSTED are retried, only if a retry is
      safe, and only within the call's timeout.
    - The wait before attempt n is random between 0 and
      `initial_backoff * multiplier ** (n - 2)`, at most `max_backoff`. The
      randomness spreads the retries of many clients.
    - A delay that the server requests is added to that wait.

    Attributes:
        max_attempts: Total attempts, including the first; 1 disables retries.
        initial_backoff: Maximum wait before the second attempt, in seconds.
        max_backoff: Maximum wait before any attempt, in seconds.
        multiplier: Growth factor of the maximum wait per attempt.
    """

    max_attempts: int = 6
    initial_backoff: float = 0.1
    max_backoff: float = 2.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        """Validate the values."""
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {self.max_attempts!r}")
        if not 0 <= self.initial_backoff <= self.max_backoff < math.inf:
            raise ValueError("0 <= initial_backoff <= max_backoff must hold, both finite")
        if not 1 <= self.multiplier < math.inf:
            raise ValueError(f"multiplier must be finite and at least 1, not {self.multiplier!r}")

    def backoff(self, failures: int) -> float:
        """Return the seconds to wait after a number of failures (at least 1)."""
        # 2.0 ** 1100 overflows; `max_backoff` is reached long before.
        growth = self.multiplier ** min(failures - 1, 64)
        limit = min(self.max_backoff, self.initial_backoff * growth)
        return random.uniform(0.0, limit)  # noqa: S311 - spreads clients; not for security


class Deadline:
    """The deadline of a call, including all attempts."""

    __slots__ = ("_at", "_clock")

    def __init__(self, timeout: float) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be greater than 0, not {timeout!r}")
        self._clock = asyncio.get_running_loop().time
        self._at = self._clock() + timeout

    def remaining(self) -> float | None:
        """Return the seconds left, at least 0; None if there is no deadline."""
        if self._at == math.inf:
            return None
        return max(0.0, self._at - self._clock())

    def leaves_room_for(self, delay: float) -> bool:
        """Report whether time is left after a wait of `delay` seconds."""
        return self._at - self._clock() > delay


def delay_before_retry(policy: RetryPolicy, error: SagaStoreError, failures: int) -> float | None:
    """Return the seconds to wait before the next attempt; None to give up.

    Args:
        policy: The client's policy.
        error: The error of the last attempt.
        failures: Number of failed attempts, including the last.
    """
    if failures >= policy.max_attempts or not is_transient(error):
        return None
    jitter = policy.backoff(failures)
    return jitter if error.retry_after is None else error.retry_after + jitter
