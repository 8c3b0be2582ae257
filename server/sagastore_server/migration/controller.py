"""Steers a migration: changes of phase, verification, and where it all stands."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, NamedTuple

from sagastore_server.migration.backfill import Backfill
from sagastore_server.migration.current_state import MigrationContext
from sagastore_server.migration.cutover import Cutover
from sagastore_server.migration.health_cache import HealthCache
from sagastore_server.migration.preconditions import Preconditions
from sagastore_server.migration.replicator import Replicator
from sagastore_server.migration.shadow import ShadowReader
from sagastore_server.migration.transitions import Transitions
from sagastore_server.migration.verifications import Verifications
from sagastore_server.runtime.supervisor import awaited
from sagastore_server.storage.errors import Blocker, PreconditionError, StorageError
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

_WATCH_WITHIN = 1.0
"""Seconds after which a watcher hears again, even if nothing has changed."""

_WATCH_PAUSE = 0.1
"""Seconds between two words to a watcher: changes may come by the thousand."""

_log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """What a migration consists of beside its two ends."""

    replicator: Replicator
    backfill: Backfill
    gates: Preconditions
    transitions: Transitions
    cutover: Cutover
    verifications: Verifications
    shadow: ShadowReader
    stores: HealthCache


class Controller(MigrationControl):
    """The one who decides; everybody else does what the phase says."""

    def __init__(self, context: MigrationContext, parts: Parts) -> None:
        """Steer ``parts``."""
        self._source = context.source
        self._clock = context.environment.clock
        self._current_state = context.current_state
        self._session = parts.replicator.session
        self._fallback = parts.replicator.fallback
        self._backfill = parts.backfill
        self._gates = parts.gates
        self._transitions = parts.transitions
        self._cutover = parts.cutover
        self._verifications = parts.verifications
        self._shadow = parts.shadow
        self._stores = parts.stores
        self._changing = False
        self._tasks: dict[asyncio.Task[Any], None] = {}

    async def status(self) -> MigrationStatus:
        """See the contract."""
        seen = self.snapshot()
        waiting = await self.backlog()
        return MigrationStatus(
            phase=seen.phase,
            epoch=seen.epoch,
            backfill=seen.backfill,
            journal_rows=waiting.rows,
            journal_lag_seconds=waiting.lag_seconds,
            quarantined=await self._stores.quarantined(),
            last_verification=seen.last_verification,
            blockers_to_next=tuple(await self._blockers_to_next(seen.phase)),
            stores=await self._stores.health(),
            shadow=seen.shadow,
            reads_from_fallback=seen.reads_from_fallback,
            verifying=self._verifications.progress,
        )

    def snapshot(self) -> StatusSnapshot:
        """See the contract."""
        state, session = self._current_state.state, self._session
        phase = state.phase
        alone = phase is Phase.SQLITE_ONLY
        return StatusSnapshot(
            phase=phase,
            epoch=state.epoch,
            backfill=BackfillStatus(BackfillState.PENDING) if alone else self._backfill.status,
            last_verification=state.last_verification,
            shadow=self._shadow.status,
            reads_from_fallback=phase.reads_postgres
            and phase.writes_sqlite
            and not self._fallback.current,
            taken_over=session.fenced,
            trouble=session.trouble if phase.journals else None,
        )

    async def backlog(self) -> Backlog:
        """See the contract."""
        if not self._current_state.phase.journals:
            return Backlog()
        journal = await self._source.journal_status(self._fallback.applied)
        lag = 0.0 if journal.oldest is None else (self._clock.now() - journal.oldest) / 1_000_000
        return Backlog(journal.rows, max(0.0, lag))

    async def inventory(self) -> Inventory:
        """See the contract."""
        kept = self._current_state.phase.stores
        stores = tuple(health for health in await self._stores.health() if health.store in kept)
        return Inventory(stores, await self._stores.quarantined())

    async def watch(self) -> AsyncIterator[MigrationStatus]:
        """See the contract."""
        while True:
            yield await self.status()
            began = self._clock.monotonic()
            await self._current_state.changed(_WATCH_WITHIN)
            await asyncio.sleep(max(0.0, _WATCH_PAUSE - (self._clock.monotonic() - began)))

    async def change_phase(
        self, phase: Phase, *, dry_run: bool, accept_quarantine: bool
    ) -> MigrationStatus:
        """See the contract."""
        if phase is self._current_state.phase:
            return await self.status()
        if self._changing:
            raise _refused(
                [Blocker("CHANGE_UNDER_WAY", "another change of phase is under way; wait for it")]
            )
        self._changing = True
        change = self._spawn(
            self._change(phase, dry_run=dry_run, accept_quarantine=accept_quarantine)
        )
        try:
            await asyncio.shield(change)
        except asyncio.CancelledError:
            change.add_done_callback(_tell_who_has_gone)
            raise
        return await self.status()

    async def control_backfill(
        self, *, paused: bool | None, batch_size: int | None, max_rows_per_second: int | None
    ) -> MigrationStatus:
        """See the contract."""
        async with self._current_state.changing:
            state = self._current_state.state
            if not state.phase.copies:
                line = f"the phase is {state.phase.slug}; only in backfill is there one to control"
                raise _refused([Blocker("NOT_IN_BACKFILL", line)])
            wanted: dict[str, Any] = {
                "paused": paused,
                "batch_size": batch_size,
                "max_rows_per_second": max_rows_per_second,
            }
            given = {name: value for name, value in wanted.items() if value is not None}
            await self._current_state.commit(self._source, state._replace(**given))
        return await self.status()

    async def verify(self, *, repair: bool) -> AsyncIterator[VerifyProgress]:
        """See the contract."""
        phase = self._current_state.phase
        if not phase.journals:
            line = f"in {phase.slug} there is one store, and nothing to compare it with"
            raise _refused([Blocker("ONE_STORE", line)])
        async with aclosing(self._verifications.run(repair=repair)) as steps:
            async for progress in steps:
                yield progress

    async def close(self) -> None:
        """End what is under way, as soon as it is safe."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_WATCH_WITHIN)
        for task in list(self._tasks):
            task.cancel()

    # ------------------------------------------------------------------ changes of phase

    async def _change(self, wanted: Phase, *, dry_run: bool, accept_quarantine: bool) -> None:
        try:
            blockers = await self._gates.blockers(
                wanted, self._shadow.status, accept_quarantine=accept_quarantine
            )
            if blockers:
                raise _refused(blockers)
            if dry_run:
                return
            before = self._current_state.phase
            if accept_quarantine:
                await self._accept_quarantine()
            if wanted is Phase.POSTGRES_ONLY:
                await self._cutover.complete()
            else:
                await self._transitions.go(wanted)
            _log.info(
                "phase changed: %s to %s, epoch %d",
                before.slug,
                wanted.slug,
                self._current_state.state.epoch,
            )
        finally:
            self._changing = False
            self._current_state.notify()

    async def _accept_quarantine(self) -> None:
        count = await self._source.quarantine_count()
        async with self._current_state.changing:
            state = self._current_state.state._replace(accepted_quarantine=count)
            await self._current_state.commit(self._source, state)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = awaited(work)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    # ------------------------------------------------------------------ where it stands

    async def _blockers_to_next(self, phase: Phase) -> list[Blocker]:
        following = phase.following
        if following is None:
            return self._cutover.unfinished
        return await self._gates.blockers(following, self._shadow.status)


def _tell_who_has_gone(change: asyncio.Task[None]) -> None:
    """Log how a change ended whose caller did not wait, unless it is logged as done."""
    error = None if change.cancelled() else change.exception()
    if isinstance(error, StorageError):
        _log.warning("phase not changed, and its caller has gone: %s", error)
    elif error is not None:
        _log.error("internal error in a change of phase", exc_info=error)


def _refused(blockers: list[Blocker]) -> PreconditionError:
    return PreconditionError(tuple(blockers))
