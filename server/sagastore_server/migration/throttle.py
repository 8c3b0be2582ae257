"""How fast the backfill may go, so that those who use the service do not feel it.

Two brakes, of which the stronger counts. One is set by the operator: rows per second.
The other finds its own strength: writes of users are timed, and those that met a batch
of the backfill are compared with those that did not. While they are much slower, the
rests between batches grow; otherwise the rests shrink, down to none when nobody writes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from sagastore_server.storage.environment import SYSTEM_ENVIRONMENT

TARGET_RATIO = 1.5
"""How much slower writes may be while a batch is at work. Twice as slow is what is
promised of the slowest; the difference is the margin."""

MAX_REST = 8.0
"""Rest after a batch at most, as a multiple of the time that the batch took."""

_PROBE = 0.1
"""The least rest while there are users: without any, nothing tells how fast they would be."""

_UNKNOWN = 0.5
"""The rest until both kinds of writes have been seen often enough."""

_GROW, _SHRINK = 1.5, 0.8
"""What the rest is multiplied with after a batch that was felt, and one that was not."""

_NONE_BELOW = 0.02
"""A rest that is as good as none."""

_SAMPLES = 512
"""Writes of each kind that are remembered."""

_ENOUGH = 30
"""Writes of a kind from which something can be concluded."""

_RECENT = 30.0
"""Seconds after which a write tells nothing of the present any more."""

_QUIET = 2.0
"""Seconds without a write after which nobody is there to be disturbed."""

_QUANTILE = 0.9
"""Slow writes are what people feel; the very slowest are too few to steer by."""

_SLICE = 0.5
"""Seconds after which a rest looks whether the operator has changed the limit."""

_LEAST = 0.001
"""The shortest sleep, lest a rounding error be slept away in many."""

_RATE_WINDOW = 10.0
"""Seconds over which the speed is measured."""


class Throttle:
    """Paces one backfill. Belongs to one event loop."""

    def __init__(
        self,
        max_rows_per_second: int = 0,
        *,
        clock: Callable[[], float] = SYSTEM_ENVIRONMENT.clock.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Begin without a rest; ``max_rows_per_second`` 0 is no limit."""
        self._limit = max_rows_per_second
        self._clock = clock
        self._sleep = sleep
        self._tokens = 0.0
        """Rows that may be copied at once; negative: rows that were copied too early."""
        self._filled_at = clock()
        self._factor = 0.0
        self._working = False
        self._worked_until = float("-inf")
        self._noted_at = float("-inf")
        self._busy = _Latencies()
        self._idle = _Latencies()
        self._batches: deque[tuple[float, float, int]] = deque()
        """Begin, end and rows of the latest batches."""

    def set_rate(self, max_rows_per_second: int) -> None:
        """Set the limit, 0 for none; a rest that is too long for it ends soon."""
        self._limit = max_rows_per_second

    @property
    def factor(self) -> float:
        """The present rest, as a multiple of a batch's time: 0 to ``MAX_REST``."""
        return self._factor

    @property
    def rate(self) -> float:
        """Rows per second, recently; goes down while nothing is copied."""
        if not self._batches:
            return 0.0
        now = self._clock()
        self._forget_batches(now)
        rows = sum(rows for _, _, rows in self._batches)
        return rows / max(now - self._batches[0][0], 1e-3)

    def note_foreground(self, seconds: float) -> None:
        """Note that a user's write has ended, which took ``seconds``."""
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
        if wait <= 0:
            await self._sleep(0)
        while wait > 0:
            await self._sleep(min(max(wait, _LEAST), _SLICE))
            now = self._clock()
            self._fill(now)
            wait = self._left(now, until)

    def _left(self, now: float, until: float) -> float:
        """Return the seconds that are still to be rested."""
        debt = -self._tokens / self._limit if self._limit > 0 else 0.0
        return max(until - now, debt)

    def _fill(self, now: float) -> None:
        """Give what may be copied for the time that has passed: that of a second at most."""
        passed, self._filled_at = now - self._filled_at, now
        limit = self._limit
        self._tokens = min(self._tokens + passed * limit, float(limit)) if limit > 0 else 0.0

    def _adjust(self, now: float) -> None:
        """Find the rest that the users need."""
        if now - self._noted_at > _QUIET:
            factor = self._factor * _SHRINK
            self._factor = factor if factor >= _NONE_BELOW else 0.0
            return
        busy, idle = self._busy.slow(now), self._idle.slow(now)
        if busy is None or idle is None:
            # Long rests let few writes meet a batch; so they must not last.
            self._factor = max(self._factor * _SHRINK, _UNKNOWN)
        elif busy > TARGET_RATIO * idle:
            self._factor = min(max(self._factor, _PROBE) * _GROW, MAX_REST)
        else:
            self._factor = max(self._factor * _SHRINK, _PROBE)

    def _forget_batches(self, now: float) -> None:
        # The latest stays, however long ago it was.
        while len(self._batches) > 1 and self._batches[0][1] < now - _RATE_WINDOW:
            self._batches.popleft()


class _Latencies:
    """How long the latest writes of a kind took."""

    def __init__(self) -> None:
        self._latest: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)

    def add(self, now: float, seconds: float) -> None:
        self._latest.append((now, seconds))

    def slow(self, now: float) -> float | None:
        """Return what a slow one took, recently; None: there were too few."""
        latest = self._latest
        while latest and latest[0][0] < now - _RECENT:
            latest.popleft()
        if len(latest) < _ENOUGH:
            return None
        ordered = sorted(seconds for _, seconds in latest)
        return ordered[int(_QUANTILE * len(ordered))]
