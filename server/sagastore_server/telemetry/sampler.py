"""Sampler: heartbeat of the event loop, and periodic samples for metrics and readiness.

Each of these is a separate background task, so that the failure of one does not stop another.
Liveness in particular depends on the heartbeat alone:

* heartbeat, every `BEAT_EVERY` seconds;
* event loop delay, measured with a timer of `BEAT_EVERY` seconds;
* values in memory (load of the stores, state of the migration), every `BEAT_EVERY` seconds;
* size of the journal, and health and size of the stores.

The last two query a store, and counting takes longer the more there is. Each therefore pauses
in proportion to the time that it took, so that it uses 0.5 % of a core.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

from sagastore_server.runtime.supervisor import SupervisedTask, Supervisor
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.load import Load
from sagastore_server.storage.migration import Backlog, Inventory, MigrationControl, StatusSnapshot
from sagastore_server.telemetry.readiness import Readiness

BEAT_EVERY = 0.5
"""Seconds between two heartbeats, and between two samples of values in memory."""

_SHARE = 0.005
"""Share of a core that each of the samples that query a store may use."""

_SHORTEST, _LONGEST = 1.0, 60.0
"""Seconds between two such samples."""

_LATEST = 4
"""Number of durations of which the shortest is the cost: the others include waiting."""


class Sampler:
    """The latest samples. Written on the event loop, read from any thread."""

    def __init__(
        self,
        loads: Callable[[], list[Load]],
        control: MigrationControl,
        readiness: Readiness,
        record_delay: Callable[[float], None],
        supervisor: Supervisor | None = None,
    ) -> None:
        """Sample ``loads`` and ``control``; pass delays of the event loop to ``record_delay``."""
        self._loads = loads
        self._control = control
        self._readiness = readiness
        self._record_delay = record_delay
        self._supervisor = supervisor
        self._tasks: list[SupervisedTask] = []
        self.loads: list[Load] = []
        """Load of the stores."""
        self.snapshot: StatusSnapshot | None = None
        """State of the migration; None until the stores are open."""
        self.backlog = Backlog()
        """Size of the journal."""
        self.inventory: Inventory | None = None
        """Health and content of the stores; None until known."""

    def start(self) -> None:
        """Start the heartbeat. Needs the running event loop."""
        self._start("heartbeat", self._beat)
        self._start("event-loop-delay", self._measure_delay)

    def opened(self) -> None:
        """Start to sample the stores, which are open now."""
        self._start("memory-sampler", self._sample_memory)
        self._start("journal-sampler", lambda: self._repeat(self._sample_journal))
        self._start("store-sampler", lambda: self._repeat(self._sample_stores))

    async def stop(self) -> None:
        """Stop all tasks."""
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*(task.stop() for task in tasks))

    def _start(self, name: str, main: Callable[[], Awaitable[None]]) -> None:
        if self._supervisor is None:
            self._supervisor = Supervisor()
        self._tasks.append(self._supervisor.start(name, main))

    async def _beat(self) -> None:
        while True:
            self._readiness.beat()
            await asyncio.sleep(BEAT_EVERY)

    async def _measure_delay(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(BEAT_EVERY)
            self._record_delay(max(0.0, time.monotonic() - began - BEAT_EVERY))

    async def _sample_memory(self) -> None:
        while True:
            self.loads = self._loads()
            self._readiness.loads(self.loads)
            self.snapshot = self._control.snapshot()
            self._readiness.snapshot(self.snapshot)
            free = [load.disk_free_bytes for load in self.loads if load.file_bytes]
            self._readiness.disk(min(free, default=None))
            await asyncio.sleep(BEAT_EVERY)

    async def _sample_journal(self) -> bool:
        self.backlog = await self._control.backlog()
        return True

    async def _sample_stores(self) -> bool:
        self.inventory = await self._control.inventory()
        return all(health.healthy for health in self.inventory.stores)

    async def _repeat(self, sample: Callable[[], Awaitable[bool]]) -> None:
        """Sample, then pause in proportion to the time that it took.

        A sample that failed, or that waited for a store that hangs, used no processor time.
        """
        latest = deque([0.0] * _LATEST, _LATEST)
        while True:
            began = time.monotonic()
            try:
                worked = await sample()
            except StorageError:
                worked = False  # The store's health reports it.
            latest.append(time.monotonic() - began if worked else 0.0)
            await asyncio.sleep(min(max(min(latest) / _SHARE, _SHORTEST), _LONGEST))
