"""Looks at the service again and again, so that who asks about it gets what is in memory.

Three looks, each as often as it may cost. What is in memory anyway: twice a second. What
waits in the journal, and how the stores do and how much they have: counting takes longer the
more there is, so each rests for so long after it that it takes half a hundredth of a core.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.load import Load
from sagastore_server.storage.migration import Backlog, Inventory, MigrationControl, StatusSnapshot
from sagastore_server.telemetry.readiness import Readiness

BEAT_EVERY = 0.5
"""Seconds between two looks at what is in memory."""

_SHARE = 0.005
"""Share of a core that each of the looks that ask a store may take."""

_SHORTEST, _LONGEST = 1.0, 60.0
"""Seconds between two looks of that kind."""

_LATEST = 4
"""Looks of which the quickest tells what one takes: the others had to wait for something."""

_log = structlog.get_logger(__name__)


class Sampler:
    """What was seen last. Written on the event loop, read from any thread."""

    def __init__(
        self,
        loads: Callable[[], list[Load]],
        control: MigrationControl,
        readiness: Readiness,
        note_delay: Callable[[float], None],
    ) -> None:
        """Look at these; ``note_delay`` hears by how many seconds the event loop was late."""
        self._loads = loads
        self._control = control
        self._readiness = readiness
        self._note_delay = note_delay
        self._tasks: list[asyncio.Task[None]] = []
        self.loads: list[Load] = []
        """How busy the stores are."""
        self.snapshot: StatusSnapshot | None = None
        """Where the migration stands; None: the stores are not open yet."""
        self.backlog = Backlog()
        """What waits in the journal."""
        self.inventory: Inventory | None = None
        """What the stores have; None: not known yet."""

    def start(self) -> None:
        """Begin to feel the pulse of the event loop."""
        self._tasks.append(asyncio.create_task(self._beat(), name="ops-beat"))

    def opened(self) -> None:
        """Begin to look at the stores, which are open now."""
        self._look()
        self._tasks += [
            asyncio.create_task(self._repeat(self._look_at_journal), name="ops-journal"),
            asyncio.create_task(self._repeat(self._look_at_stores), name="ops-stores"),
        ]

    async def stop(self) -> None:
        """Stop looking."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            self._readiness.beat()
            if self.snapshot is not None:
                self._look()
            began = time.monotonic()
            await asyncio.sleep(BEAT_EVERY)
            self._note_delay(max(0.0, time.monotonic() - began - BEAT_EVERY))

    def _look(self) -> None:
        self.loads = self._loads()
        self.snapshot = self._control.snapshot()
        self._readiness.snapshot(self.snapshot)
        free = [load.disk_free_bytes for load in self.loads if load.file_bytes]
        self._readiness.disk(min(free, default=None))

    async def _look_at_journal(self) -> bool:
        self.backlog = await self._control.backlog()
        return True

    async def _look_at_stores(self) -> bool:
        self.inventory = await self._control.inventory()
        return all(health.healthy for health in self.inventory.stores)

    async def _repeat(self, look: Callable[[], Awaitable[bool]]) -> None:
        """Look, and rest in proportion; who has waited for a store that hangs has done nothing."""
        latest = deque([0.0] * _LATEST, _LATEST)
        while True:
            began = time.monotonic()
            try:
                worked = await look()
            except StorageError:
                worked = False  # The look at the stores tells of that.
            except Exception as exc:  # noqa: BLE001 - looking must go on, whatever it is
                _log.error("looking at the service failed", exc_info=exc)
                worked = False
            latest.append(time.monotonic() - began if worked else 0.0)
            await asyncio.sleep(min(max(min(latest) / _SHARE, _SHORTEST), _LONGEST))
