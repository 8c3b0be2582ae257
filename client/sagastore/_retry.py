"""Retry policy and deadline of calls."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass

from sagastore import _checks as checks
from sagastore._status import is_transient
from sagastore.errors import SagaStoreError

__all__ = ["Deadline", "RetryPolicy", "delay_before_retry"]

_LAST_SECONDS = 0.02
"""With less time left, another attempt could not succeed."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When and how often failed calls are retried.

    - Only UNAVAILABLE and RESOURCE_EXHAUSTED are retried, only if a retry is
      safe, and only within the call's timeout. So is a write that the server
      refused because PostgreSQL has just lost the standby that it requires.
    - By default a call is retried until its timeout has passed, so a server
      that restarts costs time, not errors.
    - The wait before attempt n is random between 0 and
      `initial_backoff * multiplier ** (n - 2)`, at most `max_backoff`. The
      randomness spreads the retries of many clients.
    - A delay that the server requests is added to that wait. If it is longer
      than the time left, the call fails at once.

    Attributes:
        max_attempts: Total attempts, including the first; 1 disables retries;
            None for as many as the timeout allows.
        initial_backoff: Maximum wait before the second attempt, in seconds.
        max_backoff: Maximum wait before any attempt, in seconds.
        multiplier: Growth factor of the maximum wait per attempt.
    """

    max_attempts: int | None = None
    initial_backoff: float = 0.1
    max_backoff: float = 1.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        """Validate the values."""
        if self.max_attempts is not None:
            checks.at_least(checks.integer(self.max_attempts, "max_attempts"), 1, "max_attempts")
        least = checks.finite(self.initial_backoff, "initial_backoff", 0)
        checks.finite(self.max_backoff, "max_backoff", least)
        checks.finite(self.multiplier, "multiplier", 1)

    def backoff(self, failures: int) -> float:
        """Return the seconds to wait after a number of failures (at least 1)."""
        # 2.0 ** 1100 overflows; `max_backoff` is reached long before.
        growth = self.multiplier ** min(failures - 1, 64)
        limit = min(self.max_backoff, self.initial_backoff * growth)
        return random.uniform(0.0, limit)  # noqa: S311 - spreads clients; not for security


class Deadline:
    """The deadline of a call, including all attempts."""

    __slots__ = ("_began", "_clock", "at", "timeout")

    def __init__(self, timeout: float) -> None:
        self.timeout = checks.seconds(timeout, "timeout")
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self.at = self._began + self.timeout

    def remaining(self) -> float | None:
        """Return the seconds left, at least 0; None if there is no deadline."""
        if self.at == math.inf:
            return None
        return max(0.0, self.at - self._clock())

    def elapsed(self) -> float:
        """Return the seconds since the call began."""
        return self._clock() - self._began

    def leaves_room_for(self, delay: float) -> bool:
        """Report whether time is left after a wait of `delay` seconds."""
        return self.at - self._clock() > delay


def delay_before_retry(
    policy: RetryPolicy, error: SagaStoreError, failures: int, remaining: float = math.inf
) -> float | None:
    """Return the seconds to wait before the next attempt; None to give up.

    Args:
        policy: The client's policy.
        error: The error of the last attempt.
        failures: Number of failed attempts, including the last.
        remaining: Seconds until the deadline. The last wait is shortened so that
            attempts continue until then.
    """
    limit = policy.max_attempts
    if (limit is not None and failures >= limit) or not is_transient(error):
        return None
    least = error.retry_after or 0.0
    room = remaining - least
    if room < _LAST_SECONDS:
        return None
    jitter = policy.backoff(failures)
    if jitter >= room:
        jitter = random.uniform(room / 2, room - _LAST_SECONDS / 2)  # noqa: S311 - as above
    return least + jitter
