"""Reversible changes of phase. Each is atomic: it is committed, or nothing has changed."""

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
"""Seconds for which the write fence may be closed in each step of a change. Usual are a few
hundredths; a step that takes longer fails, and nothing has changed."""

CLAIM_WITHIN = 30.0
"""Seconds that creating the schema and claiming the target may take."""

FOLLOW_WITHIN = 10.0
"""Seconds to wait for the replicator to attach once the target is claimed."""

NEAR_WITHIN = 60.0
"""Seconds for the target to come near the end of the journal before the fence is closed."""

BEHIND = Blocker(
    "POSTGRES_BEHIND",
    "PostgreSQL did not catch up with the journal in time, so the phase was not changed; retry, "
    "with fewer writes if necessary",
)

_log = logging.getLogger(__name__)


class Transitions:
    """Carries out changes of phase whose preconditions hold.

    The change happens when the source commits the phase. The target is updated next; if that
    fails, the next attachment updates it.
    """

    def __init__(
        self,
        context: MigrationContext,
        replicator: Replicator,
    ) -> None:
        """Prepare to change the phase of both stores."""
        self._source = context.source
        self._target = context.target
        self._current_state = context.current_state
        self._replicator = replicator
        self._session = replicator.session
        self._fallback = replicator.fallback
        self._fence = context.fence

    async def change(self, wanted: Phase, accepted: int | None = None) -> None:
        """Change to ``wanted``, which is adjacent to the phase in force.

        Args:
            wanted: The phase.
            accepted: Number of quarantined rows that the operator accepts, committed together
                with the phase; None: leave it as it is.

        Raises:
            PreconditionError: A precondition no longer holds; nothing has changed.
            UnavailableError: A store failed; nothing has changed.

        """
        before = self._current_state.phase
        if wanted is Phase.DUAL_WRITE and before is Phase.SQLITE_ONLY:
            await self._to_dual_write(accepted)
        elif wanted is Phase.BACKFILL and before is Phase.DUAL_WRITE:
            await self._to_backfill(accepted)
        elif wanted is Phase.READ_POSTGRES:
            await self._to_read_postgres(accepted)
        else:
            await self._back(wanted, accepted)

    async def _to_dual_write(self, accepted: int | None) -> None:
        """From SQLITE_ONLY to DUAL_WRITE: claim the target, then journal every write."""
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
                # The queue may still hold writes whose callers were cancelled. Each must be
                # either at or below `base`, or in the journal.
                committed = await self._source.flush()
                rejournal = record.applied if _has_been_used(record) else None
                base = committed if rejournal is None else record.applied
                state = self._next(Phase.DUAL_WRITE, accepted)
                state = state._replace(base=base, last_verification=None, restored=-1)
                await self._current_state.commit(self._source, state, rejournal)
        except FenceTimeoutError:
            await bounded(
                self._target.release(self._session.lease), FENCE_WITHIN, self._target.place
            )
            raise _busy() from None
        self._replicator.start()
        # The phase is DUAL_WRITE from here on, even if the target does not answer.
        if not await self._fallback.wait_until_attached(FOLLOW_WITHIN):
            _log.warning("replication to PostgreSQL has not started yet")

    async def _to_backfill(self, accepted: int | None) -> None:
        """From DUAL_WRITE to BACKFILL: copy, or repair a finished copy that lacks an index."""
        mark = self._session.mark
        indexes = await bounded(self._target.indexes(), FENCE_WITHIN, self._target.place)
        async with self._current_state.changing:
            await self._commit(Phase.BACKFILL, accepted)
        if mark.state is BackfillState.DONE and not all(index.valid for index in indexes):
            again: BackfillMark = mark._replace(state=BackfillState.RUNNING)
            await self._session.copy([], again, mark)
        await self._notify_target()

    async def _to_read_postgres(self, accepted: int | None) -> None:
        """From BACKFILL to READ_POSTGRES: close the fence, drain the journal, commit."""
        if not await self._fallback.reach(self._source.committed, NEAR_WITHIN):
            raise _behind()

        async def change() -> None:
            await self._commit(Phase.READ_POSTGRES, accepted)
            await self._notify_target()

        try:
            async with self._current_state.changing:
                current = await self._fallback.catch_up(change, FENCE_WITHIN)
        except FenceTimeoutError:
            raise _busy() from None
        if not current and self._current_state.phase is not Phase.READ_POSTGRES:
            raise _behind()

    async def _back(self, wanted: Phase, accepted: int | None) -> None:
        """One phase back: SQLite has every write, so there is nothing to wait for."""
        async with self._current_state.changing:
            await self._commit(wanted, accepted)
            self._fallback.stop_waiting()
        await self._notify_target()
        if not wanted.journals:
            await self._replicator.stop()

    async def _commit(self, phase: Phase, accepted: int | None) -> None:
        await self._current_state.commit(self._source, self._next(phase, accepted))

    def _next(self, phase: Phase, accepted: int | None) -> MigrationState:
        state = accepting(self._current_state.state, accepted)
        return state._replace(phase=phase, epoch=state.epoch + 1)

    async def _notify_target(self) -> None:
        state = self._current_state.state
        if not self._fallback.attached:
            return
        notifying = self._target.set_phase(self._session.lease, state.phase, state.epoch, 0)
        try:
            await bounded(notifying, FENCE_WITHIN / 4, self._target.place)
        except StorageError as exc:
            _log.warning("the phase could not be stored in PostgreSQL yet: %s", exc)
            self._session.reattach()


def accepting(state: MigrationState, accepted: int | None) -> MigrationState:
    """Return ``state`` with the number of quarantined rows that the operator accepts."""
    return state if accepted is None else state._replace(accepted_quarantine=accepted)


def _has_been_used(record: TargetRecord) -> bool:
    return record.applied > 0 or record.backfill.state is not BackfillState.PENDING


def _busy() -> UnavailableError:
    return UnavailableError(
        "pending writes did not end in time, so the phase was not changed; retry"
    )


def _behind() -> PreconditionError:
    return PreconditionError((BEHIND,))
