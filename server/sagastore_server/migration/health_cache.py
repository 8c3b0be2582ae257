"""How the stores do, asked so that a store which hangs keeps nobody waiting."""

from __future__ import annotations

import asyncio

from sagastore_server.migration.current_state import CurrentState
from sagastore_server.runtime.supervisor import awaited
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.environment import SYSTEM_ENVIRONMENT, Clock
from sagastore_server.storage.model import Store, StoreHealth

ANSWER_WITHIN = 1.0
"""Seconds that a store has to say how it does."""

FRESH_FOR = 0.5
"""Seconds for which an answer is given again instead of asking anew."""


class HealthCache:
    """Asks both stores how they do."""

    def __init__(
        self,
        source: StorageBackend,
        target: StorageBackend,
        current_state: CurrentState,
        clock: Clock = SYSTEM_ENVIRONMENT.clock,
    ) -> None:
        """Watch these; in POSTGRES_ONLY the second alone."""
        self._source = _Watched(source, Store.SQLITE, clock)
        self._target = _Watched(target, Store.POSTGRESQL, clock)
        self._current_state = current_state

    async def health(self) -> tuple[StoreHealth, ...]:
        """Return how the stores do that the service is configured with."""
        if not self._current_state.phase.writes_sqlite:
            return (await self._target.health(),)
        return tuple(await asyncio.gather(self._source.health(), self._target.health()))

    async def quarantined(self) -> int:
        """Return how many rows are in quarantine; the last count known where a store hangs."""
        watched = self._source if self._current_state.phase.writes_sqlite else self._target
        return await watched.quarantined()


class _Watched:
    def __init__(self, store: StorageBackend, name: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._last = StoreHealth(name, False, "not reached yet", -1, 0)
        self._asked_at = -FRESH_FOR
        self._asking: asyncio.Task[StoreHealth] | None = None
        self._quarantined = 0

    async def health(self) -> StoreHealth:
        if self._clock.monotonic() - self._asked_at < FRESH_FOR:
            return self._last
        if self._asking is None:
            self._asking = awaited(self._store.health())
        # What hangs goes on being asked, by this one task; several may wait for it.
        asking = self._asking
        done, _ = await asyncio.wait({asking}, timeout=ANSWER_WITHIN)
        if not done:
            line = f"it has not answered for {ANSWER_WITHIN:g} s; see that it runs"
            return self._last._replace(healthy=False, detail=line)
        if asking is self._asking:
            self._last, self._asking = asking.result(), None
            self._asked_at = self._clock.monotonic()
        return self._last

    async def quarantined(self) -> int:
        health = await self.health()
        if health.healthy:
            self._quarantined = await self._store.quarantine_count()
        return self._quarantined
