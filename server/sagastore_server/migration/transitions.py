"""The changes of phase that have a way back. Each either happens or changes nothing."""

from __future__ import annotations

import logging

from sagastore_server.migration.current_state import MigrationContext
from sagastore_server.migration.replicator import Replicator
from sagastore_server.migration.timeouts import bounded
from sagastore_server.migration.write_fence import FenceTimeoutError
from sagastore_server.storage.errors import (
    Blocker,
    PreconditionError,
    StorageError,
    UnavailableError,
)
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    BackfillMark,
    MigrationState,
    TargetRecord,
)

FENCE_WITHIN = 2.0
"""Seconds that writes are held at most for each step of a change. The usual is a few
hundredths; what takes longer gives up, and changes nothing."""

CLAIM_WITHIN = 30.0
"""Seconds that making the schema and taking the target may take."""

FOLLOW_WITHIN = 10.0
"""Seconds within which the journal should be followed once the target is taken."""

NEAR_WITHIN = 60.0
"""Seconds within which the target should come near the end of the journal before writes
are held at all."""

BEHIND = Blocker(
    "POSTGRES_BEHIND",
    "PostgreSQL did not catch up with the journal in time, so the phase was not changed; try "
    "again, at a quieter time if need be",
)

_log = logging.getLogger(__name__)


class Transitions:
    """Carries out changes of phase whose gates are open.

    The source commits a phase first, and that moment is the change. The target is told
    next; should that fail, it hears of it when it is reached again.
    """

    def __init__(
        self,
        context: MigrationContext,
        replicator: Replicator,
    ) -> None:
        """Change the phase of these."""
        self._source = context.source
        self._target = context.target
        self._current_state = context.current_state
        self._replicator = replicator
        self._session = replicator.session
        self._fallback = replicator.fallback
        self._fence = context.fence

    async def go(self, wanted: Phase) -> None:
        """Change to ``wanted``, which is next to the phase in force.

        Raises:
            PreconditionError: Something came in between; nothing has changed.
            UnavailableError: A store failed; nothing has changed.

        """
        before = self._current_state.phase
        if wanted is Phase.DUAL_WRITE and before is Phase.SQLITE_ONLY:
            await self._begin()
        elif wanted is Phase.BACKFILL and before is Phase.DUAL_WRITE:
            await self._to_backfill()
        elif wanted is Phase.READ_POSTGRES:
            await self._switch()
        else:
            await self._back(wanted)

    async def _begin(self) -> None:
        """From SQLITE_ONLY to DUAL_WRITE: take the target, then journal every write."""
        state = self._current_state.state
        record = await bounded(
            self._target.claim(
                self._session.lease, self._source.store_id, state.phase, state.epoch, steal=True
            ),
            CLAIM_WITHIN,
            self._target.place,
        )
        try:
            async with self._current_state.changing, self._fence.closed(FENCE_WITHIN):
                # Writes whose callers have gone may still wait in the queue. Each has to be
                # either counted below `base`, or in the journal.
                committed = await self._source.flush()
                rejournal = record.applied if _has_been_used(record) else None
                base = committed if rejournal is None else record.applied
                await self._commit(Phase.DUAL_WRITE, base=base, rejournal_after=rejournal)
        except FenceTimeoutError:
            await bounded(
                self._target.release(self._session.lease), FENCE_WITHIN, self._target.place
            )
            raise _busy() from None
        self._replicator.start()
        # From here on the phase is DUAL_WRITE, whether or not the target answers.
        if not await self._fallback.wait_until_attached(FOLLOW_WITHIN):
            _log.warning("PostgreSQL does not follow yet")

    async def _to_backfill(self) -> None:
        mark = self._session.mark
        indexes = await bounded(self._target.indexes(), FENCE_WITHIN, self._target.place)
        async with self._current_state.changing:
            await self._commit(Phase.BACKFILL)
        if mark.state is BackfillState.DONE and not all(index.valid for index in indexes):
            again: BackfillMark = mark._replace(state=BackfillState.RUNNING)
            await self._session.copy([], again)
        await self._tell_target()

    async def _switch(self) -> None:
        """From BACKFILL to READ_POSTGRES: hold the writes, drain the journal, change."""
        if not await self._fallback.reach(self._source.committed, NEAR_WITHIN):
            raise _behind()

        async def change() -> None:
            await self._commit(Phase.READ_POSTGRES)
            await self._tell_target()

        try:
            async with self._current_state.changing:
                current = await self._fallback.catch_up(change, FENCE_WITHIN)
        except FenceTimeoutError:
            raise _busy() from None
        if not current and self._current_state.phase is not Phase.READ_POSTGRES:
            raise _behind()

    async def _back(self, wanted: Phase) -> None:
        """One phase back: SQLite has had every write, so nothing need be waited for."""
        async with self._current_state.changing:
            await self._commit(wanted)
            self._fallback.stop_waiting()
        await self._tell_target()
        if not wanted.journals:
            await self._replicator.stop()

    async def _commit(
        self, phase: Phase, *, base: int | None = None, rejournal_after: int | None = None
    ) -> None:
        state: MigrationState = self._current_state.state
        state = state._replace(phase=phase, epoch=state.epoch + 1)
        if base is not None:
            state = state._replace(base=base, last_verification=None, restored=-1)
        await self._current_state.commit(self._source, state, rejournal_after)

    async def _tell_target(self) -> None:
        state = self._current_state.state
        if not self._fallback.attached:
            return
        telling = self._target.set_phase(self._session.lease, state.phase, state.epoch, 0)
        try:
            await bounded(telling, FENCE_WITHIN / 4, self._target.place)
        except StorageError as exc:
            _log.warning("PostgreSQL does not know the phase yet: %s", exc)
            self._session.reattach()


def _has_been_used(record: TargetRecord) -> bool:
    return record.applied > 0 or record.backfill.state is not BackfillState.PENDING


def _busy() -> UnavailableError:
    return UnavailableError(
        "writes under way did not end in time, so the phase was not changed; try again"
    )


def _behind() -> PreconditionError:
    return PreconditionError((BEHIND,))
