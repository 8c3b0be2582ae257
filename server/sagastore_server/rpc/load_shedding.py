"""Load shedding: refuses a share of the unary calls while more arrive than the server can serve.

Under load, calls queue inside gRPC: it hands over a call when the event loop asks for the next
one, which a busy loop does less often. Only their number is known there, so it is sampled a few
times a second. Load is the number of unary calls in progress, and of queued ones that will be
admitted: of the queued calls as large a share as of those that were handed over lately. So a flood
of calls without credentials, which cost little, does not cause others to be refused. An open stream
is no load: it may be idle for hours.

To refuse a call takes about half as long as to serve it. A server that refused every excess call
would soon do nothing else. Refusing up to a third keeps it serving, and callers that honor
``retry_after`` reduce the rest. ``retry_after`` grows with the number of refused callers, so that
few enough return at a time.

gRPC never counts the end of a call that it drops from a full queue. While the event loop runs and
is handed no call, the queue is empty; what is then counted beyond the calls in progress was
dropped.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from sagastore_server.rpc.grpc_internals import CallCounts

SAMPLE_INTERVAL = 0.2
"""Seconds between two samples. One takes 0.2 ms idle and about 1 ms under load: 0.5 %."""

_SLICES = 4
"""Parts of the interval. A call is handed over within 5 ms of a loop that runs."""

_MAX_SHARE = 1 / 3
"""Largest share of the calls that is refused while fewer than the limit are being served."""

_RETURN_SHARE = 0.2
"""Returning callers that ``retry_after`` aims at, as a share of the calls served."""

_MIN_WAIT, _MAX_WAIT = 0.25, 10.0
"""Bounds of ``retry_after`` before jitter, in seconds."""

_SMOOTHING = 0.3
"""Weight of one sample in the rate of calls served: about the last second counts."""


class LoadShedder:
    """Decides which calls to refuse. Belongs to one event loop."""

    def __init__(
        self,
        limit: int,
        call_counts: Callable[[], CallCounts],
        open_streams: Callable[[], int] = lambda: 0,
        *,
        handed_over: Callable[[], int] | None = None,
        calls: Callable[[], int] = lambda: 0,
    ) -> None:
        """Refuse calls while more than ``limit`` unary calls are in progress.

        Args:
            limit: Unary calls in progress, queued ones included.
            call_counts: Reads the counters of gRPC, which include streams.
            open_streams: Returns the number of streams among the calls in progress.
            handed_over: Returns the number of calls that gRPC has handed over since the start;
                None: dropped calls are not looked for, and all queued calls are load.
            calls: Returns the number of unary calls that were handed over and are in progress.

        """
        self._limit = limit
        self._call_counts = call_counts
        self._open_streams = open_streams
        self._handed_over = handed_over
        self._calls = calls
        self._dropped = 0
        """Calls whose end gRPC does not count."""
        self._unfinished = 0
        """Calls at the latest sample that gRPC counts as begun, and that were not dropped."""
        self._handed_before = 0
        self._arrived = 0
        """Calls of known callers since the previous sample."""
        self._useful = 1.0
        """Share of the calls that come from known callers."""
        self.load = 0
        """Unary calls in progress, or queued by known callers, at the latest sample."""
        self._share = 0.0
        self._wait = _MIN_WAIT
        self._accepted = 0
        self._rate = 0.0
        """Calls accepted per second."""
        self._waiting = 0.0
        """Estimated number of refused callers that have not returned yet."""

    def note_arrival(self) -> None:
        """Count a call of a known caller, before it is refused or accepted."""
        self._arrived += 1

    def should_refuse(self) -> bool:
        """Decide about one call that has arrived."""
        if self._share and random.random() < self._share:  # noqa: S311 - not a secret
            return True
        self._accepted += 1
        return False

    def retry_after(self) -> float:
        """Return the seconds after which a refused call may be retried.

        Each value has jitter, so that callers that are refused together do not return together.
        """
        self._waiting += 1
        return self._wait * (0.5 + random.random())  # noqa: S311 - not a secret

    async def run(self) -> None:
        """Sample until cancelled."""
        last = time.monotonic()
        while True:
            for _ in range(_SLICES):
                await self._slice()
            now = time.monotonic()
            self.sample(now - last)
            last = now

    async def _slice(self) -> None:
        """Wait for a part of the interval, and look for dropped calls if no call came in it."""
        began, seconds = time.monotonic(), SAMPLE_INTERVAL / _SLICES
        before = self._handed_over() if self._handed_over is not None else 0
        await asyncio.sleep(seconds)
        # A loop that is held up takes no calls either.
        held_up = time.monotonic() - began > 2 * seconds
        if self._handed_over is not None and not held_up and self._handed_over() == before:
            self.forget_dropped()

    def forget_dropped(self) -> None:
        """Count no call as load that is not in progress. Call it while gRPC's queue is empty."""
        if self._unfinished > self._calls():
            self._dropped = max(0, self._unended() - self._calls())

    def _unended(self) -> int:
        started, ended = self._call_counts()
        return started - ended - self._open_streams()

    def sample(self, seconds: float) -> None:
        """Update the decisions with the current load, ``seconds`` after the previous sample."""
        unended = max(0, self._unended())
        self._dropped = min(self._dropped, unended)
        self._unfinished = unended - self._dropped
        self._update_useful()
        running = min(self._calls(), self._unfinished)
        self.load = running + round((self._unfinished - running) * self._useful)
        excess = max(0, self.load - self._limit)
        self._share = min(_MAX_SHARE, excess / (2 * self._limit))
        self._rate += _SMOOTHING * (self._accepted / seconds - self._rate)
        self._accepted = 0
        self._waiting *= max(0.0, 1 - seconds / self._wait)
        # The callers that wait, and those about to be refused, return over this many seconds.
        returning = max(1.0, _RETURN_SHARE * self._rate)
        self._wait = min(_MAX_WAIT, max(_MIN_WAIT, (self._waiting + excess) / returning))

    def _update_useful(self) -> None:
        """Update the share of known callers with the calls since the previous sample."""
        if self._handed_over is None:
            return
        handed_over = self._handed_over()
        new, self._handed_before = handed_over - self._handed_before, handed_over
        if new:
            self._useful += _SMOOTHING * (min(1.0, self._arrived / new) - self._useful)
        self._arrived = 0
