"""The phase in force, for all who act by it, and word of every change."""

from __future__ import annotations

import asyncio
import contextlib
from typing import NamedTuple

from sagastore_server.migration.tuning import DEFAULT_TUNING, Tuning
from sagastore_server.migration.write_fence import WriteFence
from sagastore_server.storage.environment import SYSTEM_ENVIRONMENT, Environment
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    MigrationSource,
    MigrationState,
    MigrationTarget,
)


class CurrentState:
    """What is remembered of the migration, in memory as on disk.

    Everything that depends on the phase reads it here, at the moment when it matters;
    on the event loop, where nothing else runs between two awaits.
    """

    def __init__(self) -> None:
        """Begin as a store that knows of no migration."""
        self.state = MigrationState()
        self.changing = asyncio.Lock()
        """Held by whoever changes the state: one change at a time."""
        self._change = asyncio.Event()

    @property
    def phase(self) -> Phase:
        """The phase in force."""
        return self.state.phase

    async def commit(
        self, source: MigrationSource, state: MigrationState, rejournal_after: int | None = None
    ) -> None:
        """Put ``state`` in force: on disk first."""
        await source.set_state(state, rejournal_after)
        self.enter(state)

    def enter(self, state: MigrationState) -> None:
        """Put ``state``, which is durable, in force."""
        self.state = state
        self.tell()

    def tell(self) -> None:
        """Wake all who wait for a change."""
        self._change.set()
        self._change = asyncio.Event()

    async def changed(self, within: float) -> None:
        """Wait for the next change, but no longer than ``within`` seconds."""
        change = self._change
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await change.wait()


class MigrationContext(NamedTuple):
    """Both ends of a migration, and what all parts of it share."""

    source: MigrationSource
    target: MigrationTarget
    current_state: CurrentState
    fence: WriteFence
    """Every write passes it."""
    environment: Environment = SYSTEM_ENVIRONMENT
    tuning: Tuning = DEFAULT_TUNING
