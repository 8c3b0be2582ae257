"""Clock and randomness, passed in so that a simulation can replace them.

Code that uses these instead of `time`, `random` and `secrets` runs the same way again when
it is given the same clock and the same seed. `migration/` takes all of its time and chance
from here; `make lint` checks that it does.
"""

from __future__ import annotations

import random
import secrets
import time
from typing import NamedTuple, Protocol


class Clock(Protocol):
    """A source of time."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start. Never goes back; for intervals."""

    def now(self) -> int:
        """Return microseconds since 1970-01-01 UTC by the wall clock, which may jump."""


class Randomness(Protocol):
    """A source of randomness."""

    def fraction(self) -> float:
        """Return a number from 0 up to, but not including, 1. Not fit for secrets."""

    def token(self) -> str:
        """Return 16 hexadecimal digits that no other process draws or guesses."""


class SystemClock:
    """The clock of the machine."""

    def monotonic(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    def now(self) -> int:
        """See `Clock`."""
        return time.time_ns() // 1000


class SystemRandomness:
    """The randomness of the machine."""

    def fraction(self) -> float:
        """See `Randomness`."""
        return random.random()  # noqa: S311 - picks samples, not secrets

    def token(self) -> str:
        """See `Randomness`."""
        return secrets.token_hex(8)


class Environment(NamedTuple):
    """External inputs of a component besides its stores."""

    clock: Clock
    randomness: Randomness


SYSTEM_ENVIRONMENT = Environment(SystemClock(), SystemRandomness())
"""Both are stateless, so one instance serves the whole process."""
