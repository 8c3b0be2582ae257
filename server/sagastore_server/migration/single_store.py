"""SingleStore: `MigrationControl` for a server with one store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NoReturn

from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import Blocker, PreconditionError
from sagastore_server.storage.migration import (
    BackfillState,
    BackfillStatus,
    Backlog,
    Inventory,
    MigrationControl,
    MigrationStatus,
    StatusSnapshot,
    VerifyProgress,
)
from sagastore_server.storage.phase import Phase

_WATCH_EVERY = 1.0
_FIRST_EPOCH = 1

_NO_TARGET = Blocker(
    "POSTGRES_NOT_CONFIGURED",
    "the server has no migration target; start it with --sqlite and --postgres",
)
_NO_WAY_BACK = Blocker("NO_WAY_BACK", "postgres-only is the last phase and cannot be left")


class SingleStore(MigrationControl):
    """A server with one store: in SQLITE_ONLY or POSTGRES_ONLY. Refuses every change."""

    def __init__(self, backend: StorageBackend, phase: Phase) -> None:
        """Report on ``backend``, the only store of ``phase``."""
        self._backend = backend
        self._phase = phase

    def snapshot(self) -> StatusSnapshot:
        """See the contract."""
        return StatusSnapshot(self._phase, _FIRST_EPOCH, BackfillStatus(BackfillState.PENDING))

    async def backlog(self) -> Backlog:
        """See the contract."""
        return Backlog()

    async def inventory(self) -> Inventory:
        """See the contract."""
        health = await self._backend.health()
        quarantined = await self._backend.quarantine_count() if health.healthy else 0
        return Inventory((health,), quarantined)

    async def status(self) -> MigrationStatus:
        """See the contract."""
        health = await self._backend.health()
        last = self._phase is Phase.POSTGRES_ONLY
        return MigrationStatus(
            phase=self._phase,
            epoch=_FIRST_EPOCH,
            backfill=BackfillStatus(BackfillState.PENDING),
            journal_rows=0,
            journal_lag_seconds=0.0,
            quarantined=await self._backend.quarantine_count() if health.healthy else 0,
            last_verification=None,
            blockers_to_next=() if last else (_NO_TARGET,),
            stores=(health,),
        )

    async def watch(self) -> AsyncIterator[MigrationStatus]:
        """See the contract."""
        while True:
            yield await self.status()
            await asyncio.sleep(_WATCH_EVERY)

    async def change_phase(
        self, phase: Phase, *, dry_run: bool, accept_quarantine: bool
    ) -> MigrationStatus:
        """Refuse, unless ``phase`` is in force."""
        del dry_run, accept_quarantine
        if phase is not self._phase:
            self._refuse()
        return await self.status()

    async def control_backfill(
        self, *, paused: bool | None, batch_size: int | None, max_rows_per_second: int | None
    ) -> MigrationStatus:
        """Refuse."""
        del paused, batch_size, max_rows_per_second
        self._refuse()

    async def verify(self, *, repair: bool) -> AsyncIterator[VerifyProgress]:
        """Refuse."""
        del repair
        raise PreconditionError(
            (Blocker("ONE_STORE", "the server has one store; there is nothing to compare"),)
        )
        yield  # type: ignore[unreachable]  # makes this a generator

    def _refuse(self) -> NoReturn:
        last = self._phase is Phase.POSTGRES_ONLY
        raise PreconditionError((_NO_WAY_BACK if last else _NO_TARGET,))
