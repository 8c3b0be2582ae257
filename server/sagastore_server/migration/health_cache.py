"""HealthCache: the health of both stores, with a time limit for a store that hangs."""

from __future__ import annotations

import asyncio

from sagastore_server.migration.common_counts import CommonCounter
from sagastore_server.migration.current_state import CurrentState
from sagastore_server.runtime.supervisor import awaited
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.counts import CommonCounts
from sagastore_server.storage.environment import SYSTEM_ENVIRONMENT, Clock
from sagastore_server.storage.model import Store, StoreHealth

ANSWER_WITHIN = 1.0
"""Seconds that a health check may take."""

FRESH_FOR = 0.5
"""Seconds for which a result is reused."""


class HealthCache:
    """Checks the health of both stores."""

    def __init__(
        self,
        source: StorageBackend,
        target: StorageBackend,
        current_state: CurrentState,
        clock: Clock = SYSTEM_ENVIRONMENT.clock,
        counter: CommonCounter | None = None,
    ) -> None:
        """Check ``source`` and ``target``; in POSTGRES_ONLY only ``target``.

        With ``counter``, the counts of the two are of one revision where that is possible.
        """
        self._counter = counter
        self._source = _CachedStore(source, Store.SQLITE, clock)
        self._target = _CachedStore(target, Store.POSTGRESQL, clock)
        self._current_state = current_state

    async def health(self) -> tuple[StoreHealth, ...]:
        """Return the health of the stores in use."""
        if not self._current_state.phase.writes_sqlite:
            return (await self._target.health(),)
        found = await asyncio.gather(self._source.health(), self._target.health())
        counts = await self._common_counts(*found)
        if counts is None:
            return tuple(found)
        return tuple(
            health._replace(**records._asdict(), revision=counts.revision)
            for health, records in zip(found, (counts.source, counts.target), strict=True)
        )

    async def _common_counts(self, *found: StoreHealth) -> CommonCounts | None:
        comparable = self._current_state.phase.journals and all(one.healthy for one in found)
        return await self._counter.counts() if self._counter and comparable else None

    async def quarantined(self) -> int:
        """Return the number of rows in quarantine; if the store hangs, the last known number."""
        watched = self._source if self._current_state.phase.writes_sqlite else self._target
        return await watched.quarantined()


class _CachedStore:
    def __init__(self, store: StorageBackend, name: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._last = StoreHealth(name, False, "not checked yet", -1, 0)
        self._checked_at = -FRESH_FOR
        self._pending: asyncio.Task[StoreHealth] | None = None
        self._quarantined = 0

    async def health(self) -> StoreHealth:
        if self._clock.monotonic() - self._checked_at < FRESH_FOR:
            return self._last
        if self._pending is None:
            self._pending = awaited(self._store.health())
        # A check that hangs continues in this task, which later callers share.
        pending = self._pending
        done, _ = await asyncio.wait({pending}, timeout=ANSWER_WITHIN)
        if not done:
            line = f"no answer within {ANSWER_WITHIN:g} s; check that it runs"
            return self._last._replace(healthy=False, detail=line)
        if pending is self._pending:
            self._last, self._pending = pending.result(), None
            self._checked_at = self._clock.monotonic()
        return self._last

    async def quarantined(self) -> int:
        health = await self.health()
        if health.healthy:
            self._quarantined = await self._store.quarantine_count()
        return self._quarantined
