"""Current migration state, with change notification, and the context that all parts share."""

from __future__ import annotations

import asyncio
import contextlib
from typing import NamedTuple

from sagastore_server.migration.timeouts import uninterrupted
from sagastore_server.migration.tuning import DEFAULT_TUNING, Tuning
from sagastore_server.migration.write_fence import WriteFence
from sagastore_server.runtime.supervisor import Supervisor
from sagastore_server.storage.environment import SYSTEM_ENVIRONMENT, Environment
from sagastore_server.storage.errors import UnavailableError
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    MigrationSource,
    MigrationState,
    MigrationTarget,
)

DOUBT_WITHIN = 1.0
"""Seconds that a read waits for the outcome of the cutover. Usual are some milliseconds."""


class CurrentState:
    """The migration state in force: the source's file holds the same, and is written first.

    Code that depends on the phase reads it here when it needs it, on the event loop, where
    nothing else runs between two awaits.
    """

    def __init__(self) -> None:
        """Start with the state of a store without a migration."""
        self.state = MigrationState()
        self.changing = asyncio.Lock()
        """Held while the state is changed: one change at a time."""
        self.in_doubt = False
        """Whether the target may have become the only store, and written what the source lacks."""
        self._change = asyncio.Event()

    @property
    def phase(self) -> Phase:
        """The phase in force."""
        return self.state.phase

    async def commit(
        self, source: MigrationSource, state: MigrationState, rejournal_after: int | None = None
    ) -> None:
        """Write ``state`` to the source, then put it in force.

        Disk and memory change together: a cancellation of the caller is raised after both.
        """
        await uninterrupted(self._commit(source, state, rejournal_after))

    async def _commit(
        self, source: MigrationSource, state: MigrationState, rejournal_after: int | None
    ) -> None:
        await source.set_state(state, rejournal_after)
        self.enter(state)

    def enter(self, state: MigrationState) -> None:
        """Put ``state``, which is durable, in force."""
        self.state = state
        self.notify()

    def notify(self) -> None:
        """Wake all callers of `changed`."""
        self._change.set()
        self._change = asyncio.Event()

    async def settled(self) -> None:
        """Wait while the state is in doubt; the source must not answer reads meanwhile.

        Raises:
            UnavailableError: It is still in doubt after `DOUBT_WITHIN`.

        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DOUBT_WITHIN):
                while self.in_doubt:
                    await self._change.wait()
        if self.in_doubt:
            raise UnavailableError(
                "PostgreSQL has not confirmed yet whether it is the only store, so SQLite may lack "
                "the latest writes; try again"
            )

    async def changed(self, within: float) -> None:
        """Wait for the next notification, for ``within`` seconds at most."""
        change = self._change
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await change.wait()


class MigrationContext(NamedTuple):
    """Both stores of a migration, and what all of its parts share."""

    source: MigrationSource
    target: MigrationTarget
    current_state: CurrentState
    fence: WriteFence
    """Every write passes it."""
    supervisor: Supervisor
    """Runs the background tasks."""
    environment: Environment = SYSTEM_ENVIRONMENT
    tuning: Tuning = DEFAULT_TUNING
