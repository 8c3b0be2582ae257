"""Migration controller: changes of phase, backfill control, verification and status."""

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

_WATCH_WITHIN = 0.5
"""Seconds after which a watcher gets the status even if nothing has changed. A watcher marks its
page as stale after 1.5 s, so two updates may be late."""

_END_WITHIN = 1.0
"""Seconds that `close` waits for a change in progress."""

_WATCH_PAUSE = 0.1
"""Seconds between two updates to a watcher: there may be thousands of changes per second."""

_log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """The parts of a migration besides its two stores."""

    replicator: Replicator
    backfill: Backfill
    preconditions: Preconditions
    transitions: Transitions
    cutover: Cutover
    verifications: Verifications
    shadow: ShadowReader
    stores: HealthCache


class Controller(MigrationControl):
    """Implements `MigrationControl`. The only component that changes the phase."""

    def __init__(self, context: MigrationContext, parts: Parts) -> None:
        """Prepare to control ``parts``."""
        self._source = context.source
        self._clock = context.environment.clock
        self._current_state = context.current_state
        self._session = parts.replicator.session
        self._fallback = parts.replicator.fallback
        self._backfill = parts.backfill
        self._preconditions = parts.preconditions
        self._transitions = parts.transitions
        self._cutover = parts.cutover
        self._verifications = parts.verifications
        self._shadow = parts.shadow
        self._stores = parts.stores
        self._changing = False
        self._tasks: dict[asyncio.Task[Any], None] = {}

    async def status(self) -> MigrationStatus:
        """See the contract."""
        snapshot = self.snapshot()
        backlog = await self.backlog()
        return MigrationStatus(
            phase=snapshot.phase,
            epoch=snapshot.epoch,
            backfill=snapshot.backfill,
            journal_rows=backlog.rows,
            journal_lag_seconds=backlog.lag_seconds,
            quarantined=await self._stores.quarantined(),
            last_verification=snapshot.last_verification,
            blockers_to_next=tuple(await self._blockers_to_next(snapshot.phase)),
            stores=await self._stores.health(),
            shadow=snapshot.shadow,
            reads_from_fallback=snapshot.reads_from_fallback,
            verifying=self._verifications.progress,
        )

    def snapshot(self) -> StatusSnapshot:
        """See the contract."""
        state, session = self._current_state.state, self._session
        phase = state.phase
        single = phase is Phase.SQLITE_ONLY
        return StatusSnapshot(
            phase=phase,
            epoch=state.epoch,
            backfill=BackfillStatus(BackfillState.PENDING) if single else self._backfill.status,
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
                [Blocker("CHANGE_UNDER_WAY", "another change of phase is in progress; wait for it")]
            )
        self._changing = True
        change = self._spawn(
            self._change(phase, dry_run=dry_run, accept_quarantine=accept_quarantine)
        )
        try:
            await asyncio.shield(change)
        except asyncio.CancelledError:
            change.add_done_callback(_log_abandoned_change)
            raise
        return await self.status()

    async def control_backfill(
        self, *, paused: bool | None, batch_size: int | None, max_rows_per_second: int | None
    ) -> MigrationStatus:
        """See the contract."""
        async with self._current_state.changing:
            state = self._current_state.state
            if not state.phase.copies:
                line = (
                    f"no backfill to control in phase {state.phase.slug}; change to backfill first"
                )
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
            line = f"nothing to compare: phase {phase.slug} has one store"
            raise _refused([Blocker("ONE_STORE", line)])
        async with aclosing(self._verifications.run(repair=repair)) as steps:
            async for progress in steps:
                yield progress

    async def close(self) -> None:
        """Let a change in progress end, for a second at most, then cancel it."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_END_WITHIN)
        for task in list(self._tasks):
            task.cancel()

    # ------------------------------------------------------------------ changes of phase

    async def _change(self, wanted: Phase, *, dry_run: bool, accept_quarantine: bool) -> None:
        try:
            blockers = await self._preconditions.blockers(
                wanted, self._shadow.status, accept_quarantine=accept_quarantine
            )
            if blockers:
                raise _refused(blockers)
            if dry_run:
                return
            before = self._current_state.phase
            # Committed together with the phase, so that a refused change accepts nothing.
            accepted = await self._source.quarantine_count() if accept_quarantine else None
            if wanted is Phase.POSTGRES_ONLY:
                await self._cutover.complete(accepted)
            else:
                await self._transitions.change(wanted, accepted)
            _log.info(
                "phase changed: %s to %s, epoch %d",
                before.slug,
                wanted.slug,
                self._current_state.state.epoch,
            )
        finally:
            self._changing = False
            self._current_state.notify()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = awaited(work)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    # ------------------------------------------------------------------ status

    async def _blockers_to_next(self, phase: Phase) -> list[Blocker]:
        following = phase.following
        if following is None:
            return self._cutover.unfinished
        return await self._preconditions.blockers(following, self._shadow.status)


def _log_abandoned_change(change: asyncio.Task[None]) -> None:
    """Log why a change failed whose caller has disconnected."""
    error = None if change.cancelled() else change.exception()
    if isinstance(error, StorageError):
        _log.warning("phase not changed, and the caller has disconnected: %s", error)
    elif error is not None:
        _log.error("internal error in a change of phase", exc_info=error)


def _refused(blockers: list[Blocker]) -> PreconditionError:
    return PreconditionError(tuple(blockers))
