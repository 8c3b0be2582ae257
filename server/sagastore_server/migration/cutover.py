"""The last step: PostgreSQL becomes the only store, and the SQLite file an archive.

In an order that a crash can interrupt anywhere. First the source notes that the step
has begun; from then on a server that starts asks PostgreSQL before it does anything.
Then PostgreSQL takes over, in one transaction: that is the point of no return. Then the
file is archived, which can be done again.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from sagastore_server.migration.current_state import MigrationContext
from sagastore_server.migration.replicator import Replicator
from sagastore_server.migration.timeouts import bounded
from sagastore_server.migration.transitions import BEHIND, FENCE_WITHIN
from sagastore_server.migration.verifications import Verifications
from sagastore_server.migration.write_fence import FenceTimeoutError
from sagastore_server.storage.errors import (
    Blocker,
    FencedError,
    PreconditionError,
    StorageError,
    UnavailableError,
)
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    MigrationState,
)

HELD_WITHIN = 8.0
"""Seconds that the last comparison may take, since writes are held for so long: less than
the 10 s that the client library waits unless told otherwise."""

ROUNDS = 5
"""How often what has changed meanwhile is compared before writes are held in any case."""

ASK_EVERY = 1.0
"""Seconds between two questions to a PostgreSQL that did not say whether it took over."""

FINISH_WITHIN = 20.0
"""Seconds that PostgreSQL has to take over."""

_log = logging.getLogger(__name__)


class Cutover:
    """Carries out the change to POSTGRES_ONLY."""

    def __init__(
        self,
        context: MigrationContext,
        replicator: Replicator,
        verifications: Verifications,
    ) -> None:
        """Complete the migration between these."""
        self._source = context.source
        self._target = context.target
        self._current_state = context.current_state
        self._replicator = replicator
        self._session = replicator.session
        self._fallback = replicator.fallback
        self._fence = context.fence
        self._clock = context.environment.clock
        self._few = context.tuning.final_rows
        self._verifications = verifications
        self.unfinished: list[Blocker] = []
        """What is left to do by hand, in POSTGRES_ONLY: an archive that could not be made."""

    async def complete(self) -> None:
        """Change to POSTGRES_ONLY, whose gates are open.

        Raises:
            PreconditionError: The last comparison found a difference; nothing has changed.
            UnavailableError: A store failed, and nothing has changed; or PostgreSQL did
                not say whether it has taken over, and no write is taken until it does.

        """
        compared = await self._compare_ahead()
        try:
            async with self._current_state.changing, self._fence.closed(FENCE_WITHIN):
                report = await self._take_over(compared)
        except FenceTimeoutError:
            raise UnavailableError(
                "writes under way did not end in time, so the phase was not changed; try again"
            ) from None
        await self._replicator.stop()
        await self.archive(report)

    async def archive(self, report: dict[str, object]) -> None:
        """Archive the file; should that fail, say so, and let it be done at the next start."""
        try:
            made = await self._source.archive({"store_id": self._source.store_id, **report})
        except StorageError as exc:
            _log.error("the migration is complete, but the file is not archived: %s", exc)
            line = f"{exc}; the next start with --sqlite and --postgres tries again"
            self.unfinished = [Blocker("NOT_ARCHIVED", line)]
            return
        self.unfinished = []
        _log.info("archived: %s, receipt: %s", made.path, made.receipt)

    # ------------------------------------------------------------------ before the fence

    async def _compare_ahead(self) -> int:
        """Compare what has changed since the last full verification, until little is left."""
        if not self._verifications.covered or self._replicator.touched is None:
            # A restart, or very many changes: what has changed is not known any more.
            async for _ in self._verifications.run(repair=False):
                self._current_state.notify()
            _refuse_mismatches(self._current_state.state)
        compared = 0
        for _ in range(ROUNDS):
            rows = await self._compare_touched()
            compared += rows
            if rows <= self._few:
                break
        return compared

    async def _compare_touched(self) -> int:
        """Compare what has changed since this was last called; return how much it was.

        Should that not come to a good end, a full verification precedes the next attempt:
        nobody remembers any more what was to be compared.
        """
        ids = self._replicator.touched
        covered, self._verifications.covered = self._verifications.covered, False
        if ids is None:  # More than are remembered.
            raise PreconditionError((BEHIND,))
        self._replicator.watch_changes()
        mismatches = await self._verifications.check(list(ids)) if ids else []
        if mismatches:
            raise _refusal(f"{len(mismatches):,} rows that changed lately differ")
        self._verifications.covered = covered
        return len(ids)

    # ------------------------------------------------------------------ behind the fence

    async def _take_over(self, compared: int) -> dict[str, object]:
        state = self._current_state.state
        # Goes through the queue of writes: what is behind it, was refused or has ended.
        await self._current_state.commit(self._source, state._replace(completing=True))
        try:
            checking = self._final_check(compared)
            report = await bounded(checking, HELD_WITHIN, self._target.place)
        except BaseException:
            await self._current_state.commit(self._source, state)
            raise
        last = state._replace(phase=Phase.POSTGRES_ONLY, epoch=state.epoch + 1, completing=True)
        if not await self._finish(last.epoch):
            await self._current_state.commit(self._source, state)
            raise UnavailableError("PostgreSQL did not take over, so the phase was not changed")
        self._current_state.enter(last)
        return report

    async def _final_check(self, compared: int) -> dict[str, object]:
        if not await self._fallback.reach(self._source.committed, FENCE_WITHIN):
            raise PreconditionError((BEHIND,))
        rows = await self._compare_touched()
        ours, theirs = await self._source.count(), await self._target.count()
        if ours != theirs:
            raise _refusal(f"SQLite has {ours:,} messages, PostgreSQL {theirs:,}")
        carried, copied = await self._source.carried(), await self._target.carried()
        if carried != copied:
            raise _refusal("quarantine, files or extra values differ")
        postgresql: dict[str, object] = {
            "place": self._target.place,
            "messages": theirs,
            "quarantine": copied.quarantine.rows,
            "files": copied.files.rows,
            "extras": copied.extras.rows,
        }
        now = self._clock.now()
        return _report(self._current_state.state, postgresql, compared, rows, now)

    async def _finish(self, epoch: int) -> bool:
        """Let PostgreSQL take over; tell whether it has.

        Whoever asks is answered only once that is certain: a write that went to SQLite
        after PostgreSQL had taken over would be lost.
        """
        session = self._session
        # What was set back since the last comparison must not become the only store.
        finish = self._target.finish(
            session.lease, epoch, self._source.committed, session.position, session.mark
        )
        try:
            await bounded(finish, FINISH_WITHIN, self._target.place)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it may have happened
            _log.warning("PostgreSQL did not say whether it has taken over: %s", exc)
            return await self._has_finished()
        return True

    async def _has_finished(self) -> bool:
        while True:
            try:
                return await bounded(self._ask(), FINISH_WITHIN, self._target.place)
            except Exception as exc:  # noqa: BLE001 - nothing may be concluded from it
                _log.warning("no writes are taken until PostgreSQL answers: %s", exc)
                await asyncio.sleep(ASK_EVERY)

    async def _ask(self) -> bool:
        """Ask PostgreSQL whether it has taken over, and will not yet do so."""
        try:
            # Waits for a commit that is still under way: it has locked the record.
            await self._target.renew(self._session.lease)
        except FencedError:
            found = await self._target.inspect()
            return found.record is not None and found.record.phase is Phase.POSTGRES_ONLY
        return False


def _refuse_mismatches(state: MigrationState) -> None:
    last = state.last_verification
    if last is None or last.mismatch_count:
        count = 0 if last is None else last.mismatch_count
        raise _refusal(f"the verification before the last step found {count:,} rows that differ")


def _refusal(what: str) -> PreconditionError:
    detail = f"{what}; run: sagastore migrate verify --repair, and then sagastore migrate verify"
    return PreconditionError((Blocker("VERIFICATION_MISMATCH", detail),))


def _report(
    state: MigrationState,
    postgresql: dict[str, object],
    compared: int,
    compared_last: int,
    now: int,
) -> dict[str, object]:
    """Return what the receipt says of PostgreSQL and of the comparisons."""
    last = state.last_verification
    verification = last and {
        "started_at": _utc(last.started_at),
        "finished_at": _utc(last.finished_at),
        "compared": last.compared,
        "mismatches": last.mismatch_count,
        "compared_afterwards": compared,
        "compared_while_writes_were_held": compared_last,
    }
    return {
        "completed_at": _utc(now),
        "epoch": state.epoch + 1,
        "postgresql": postgresql,
        "verification": verification,
    }


def _utc(micros: int) -> str:
    return datetime.fromtimestamp(micros / 1_000_000, UTC).isoformat(timespec="microseconds")
