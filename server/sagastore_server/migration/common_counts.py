"""CommonCounter: the numbers of records of both stores at one revision, cached."""

from __future__ import annotations

import asyncio

from sagastore_server.runtime.supervisor import awaited
from sagastore_server.storage.counts import (
    CommonCounts,
    CountingSource,
    CountingTarget,
    PendingRecords,
)
from sagastore_server.storage.environment import SYSTEM_ENVIRONMENT, Clock
from sagastore_server.storage.errors import StorageError

MOST_PENDING = 5_000
"""Journal entries up to which the counts of the two stores can be compared. If the target is
further behind, the number of entries tells more."""

_WITHIN = 1.0
"""Seconds that a caller waits for a count; then it gets the last one."""

_FRESH_FOR = 0.5
"""Seconds for which a count is reused."""

_PAUSE = 50
"""A slow count is reused for this multiple of the time that it took: 2 % of one processor."""


class CommonCounter:
    """Counts the records of both stores."""

    def __init__(
        self,
        source: CountingSource,
        target: CountingTarget,
        clock: Clock = SYSTEM_ENVIRONMENT.clock,
    ) -> None:
        """Count in ``source`` and ``target``."""
        self._source = source
        self._target = target
        self._clock = clock
        self._last: CommonCounts | None = None
        self._valid_until = float("-inf")
        self._pending: asyncio.Task[CommonCounts | None] | None = None

    async def counts(self) -> CommonCounts | None:
        """Return the latest counts; None if the target is too far behind or does not answer."""
        if self._clock.monotonic() < self._valid_until:
            return self._last
        if self._pending is None:
            self._pending = awaited(self._count())
        # A count that takes long continues in this task, which later callers share.
        pending = self._pending
        done, _ = await asyncio.wait({pending}, timeout=_WITHIN)
        if done and pending is self._pending:
            self._last, self._pending = pending.result(), None
        return self._last

    async def _count(self) -> CommonCounts | None:
        began = self._clock.monotonic()
        try:
            return await self._target.count_beside(self._pending_since)
        except StorageError:
            return None
        finally:
            now = self._clock.monotonic()
            self._valid_until = now + max(_FRESH_FOR, _PAUSE * (now - began))

    async def _pending_since(self, position: int) -> PendingRecords | None:
        return await self._source.pending_records(position, MOST_PENDING)
