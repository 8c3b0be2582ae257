"""Throttle: the pause between batches of the backfill, so that it does not slow down the service.

The longer of two pauses applies:

- the operator's limit, in rows per second;
- an adaptive pause. Foreground writes are timed, and those that overlap a batch are compared with
  the others. While they are much slower, the pause grows; otherwise it shrinks, down to zero when
  there are no writes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from sagastore_server.storage.environment import SYSTEM_ENVIRONMENT
from sagastore_server.storage.migration import Pace

TARGET_RATIO = 1.5
"""Accepted latency ratio of writes that overlap a batch. The documented bound for slow writes is
2.0; the difference is the margin."""

MAX_REST = 8.0
"""Longest pause after a batch, as a multiple of the batch's duration."""

_PROBE = 0.1
"""Shortest pause during foreground writes: without one, there is no baseline latency."""

_UNKNOWN = 0.5
"""Pause until there are enough samples of both kinds of writes."""

_GROW, _SHRINK = 1.5, 0.8
"""Factors of the pause after a batch that slowed writes down, and after one that did not."""

_NONE_BELOW = 0.02
"""A pause below this counts as zero."""

_SAMPLES = 512
"""Samples of each kind at most."""

_ENOUGH = 30
"""Samples of a kind that are enough for a decision."""

_RECENT = 30.0
"""Seconds after which a sample is discarded."""

_QUIET = 2.0
"""Seconds without a foreground write after which the service counts as idle."""

_QUANTILE = 0.9
"""Quantile of the latencies that are compared; higher ones have too few samples."""

_SLICE = 0.5
"""Seconds after which a pause checks whether the operator has changed the limit."""

_LEAST = 0.001
"""Shortest sleep in seconds; prevents many tiny sleeps after a rounding error."""

_RATE_WINDOW = 10.0
"""Seconds over which the rate is measured."""


class Throttle:
    """Throttles one backfill. Belongs to one event loop."""

    def __init__(
        self,
        max_rows_per_second: int = 0,
        *,
        clock: Callable[[], float] = SYSTEM_ENVIRONMENT.clock.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Start without a pause; ``max_rows_per_second`` 0 is no limit."""
        self._limit = max_rows_per_second
        self._clock = clock
        self._sleep = sleep
        self._tokens = 0.0
        """Rows that may be copied at once; negative: rows copied ahead of the limit."""
        self._filled_at = clock()
        self._factor = 0.0
        self._operator_waits = False
        """Whether the operator's limit, not the adaptive pause, has set the last pause."""
        self._slowed: tuple[float, float] | None = None
        """Latencies of writes beside a batch and of others, when a batch last slowed them down;
        None once the pause has shrunk to its minimum."""
        self._working = False
        self._worked_until = float("-inf")
        self._noted_at = float("-inf")
        self._busy = _Latencies()
        self._idle = _Latencies()
        self._batches: deque[tuple[float, float, int]] = deque()
        """Begin, end and rows of the latest batches."""

    def set_rate(self, max_rows_per_second: int) -> None:
        """Set the limit, 0 for none; it applies to a pause in progress as well."""
        self._limit = max_rows_per_second

    @property
    def factor(self) -> float:
        """The current pause, as a multiple of a batch's duration: 0 to ``MAX_REST``."""
        return self._factor

    @property
    def pace(self) -> tuple[Pace, str]:
        """What limits the pace, and the measurement behind it in one line."""
        if self._operator_waits:
            return Pace.OPERATOR, f"the limit is {self._limit:,} rows/s"
        if not self._factor:
            return Pace.FULL, ""
        if self._slowed is None:
            return Pace.LOAD, f"clients write; pause of {self._factor:.1f} times a batch"
        busy, idle = self._slowed
        detail = (
            f"writes took {busy * 1000:,.1f} ms beside a batch, {idle * 1000:,.1f} ms without; "
            f"pause of {self._factor:.1f} times a batch"
        )
        return Pace.LATENCY, detail

    @property
    def rate(self) -> float:
        """Recent rows per second; falls while nothing is copied."""
        if not self._batches:
            return 0.0
        now = self._clock()
        self._forget_batches(now)
        rows = sum(rows for _, _, rows in self._batches)
        return rows / max(now - self._batches[0][0], 1e-3)

    def note_foreground(self, seconds: float) -> None:
        """Record the latency of a foreground write that has just ended."""
        now = self._clock()
        self._noted_at = now
        met_a_batch = self._working or self._worked_until >= now - seconds
        (self._busy if met_a_batch else self._idle).add(now, seconds)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Tell that a batch is at work for as long as the context lasts."""
        self._working = True
        try:
            yield
        finally:
            self._working = False
            self._worked_until = self._clock()

    async def rest(self, rows: int, worked: float) -> None:
        """Rest after a batch of so many rows, which took ``worked`` seconds.

        Also from a batch that copied nothing; always gives others a turn. Ends after
        at most ``MAX_REST`` times ``worked``, or what the limit of the operator asks for.
        """
        began = self._clock()
        self._batches.append((began - worked, began, rows))
        self._forget_batches(began)
        self._fill(began)
        self._tokens -= rows
        self._adjust(began)
        until = began + self._factor * worked
        wait = self._left(began, until)
        self._operator_waits = wait > max(0.0, until - began)
        if wait <= 0:
            await self._sleep(0)
        while wait > 0:
            await self._sleep(min(max(wait, _LEAST), _SLICE))
            now = self._clock()
            self._fill(now)
            wait = self._left(now, until)

    def _left(self, now: float, until: float) -> float:
        """Return the remaining seconds of the pause."""
        debt = -self._tokens / self._limit if self._limit > 0 else 0.0
        return max(until - now, debt)

    def _fill(self, now: float) -> None:
        """Refill the tokens for the time that has passed, up to one second's worth."""
        passed, self._filled_at = now - self._filled_at, now
        limit = self._limit
        self._tokens = min(self._tokens + passed * limit, float(limit)) if limit > 0 else 0.0

    def _adjust(self, now: float) -> None:
        """Adapt the pause to the foreground latencies."""
        if now - self._noted_at > _QUIET:
            factor = self._factor * _SHRINK
            self._factor = factor if factor >= _NONE_BELOW else 0.0
            self._slowed = self._slowed if self._factor > _PROBE else None
            return
        busy, idle = self._busy.slow(now), self._idle.slow(now)
        if busy is None or idle is None:
            # With long pauses, few writes overlap a batch, so the pause must shrink.
            self._factor = max(self._factor * _SHRINK, _UNKNOWN)
        elif busy > TARGET_RATIO * idle:
            self._factor = min(max(self._factor, _PROBE) * _GROW, MAX_REST)
            self._slowed = busy, idle
        else:
            self._factor = max(self._factor * _SHRINK, _PROBE)
            self._slowed = self._slowed if self._factor > _PROBE else None

    def _forget_batches(self, now: float) -> None:
        # Keep the latest, regardless of its age.
        while len(self._batches) > 1 and self._batches[0][1] < now - _RATE_WINDOW:
            self._batches.popleft()


class _Latencies:
    """Latencies of the latest writes of a kind."""

    def __init__(self) -> None:
        self._latest: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)

    def add(self, now: float, seconds: float) -> None:
        self._latest.append((now, seconds))

    def slow(self, now: float) -> float | None:
        """Return the recent latency at the quantile; None: too few samples."""
        latest = self._latest
        while latest and latest[0][0] < now - _RECENT:
            latest.popleft()
        if len(latest) < _ENOUGH:
            return None
        ordered = sorted(seconds for _, seconds in latest)
        return ordered[int(_QUANTILE * len(ordered))]
