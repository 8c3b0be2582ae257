"""Cutover: PostgreSQL becomes the only store, and the SQLite file becomes an archive.

The order makes a crash at any point recoverable:

1. The source records that the cutover has started (`MigrationState.completing`). A server that
   starts then asks PostgreSQL before it serves.
2. PostgreSQL takes over, in one transaction. This is the point of no return.
3. The file is archived. This step can be repeated.

Rows that changed since the last full verification are compared before the write fence is closed,
until few are left, and the rest behind the fence.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from sagastore_server.migration.current_state import MigrationContext
from sagastore_server.migration.replicator import Replicator
from sagastore_server.migration.timeouts import bounded
from sagastore_server.migration.transitions import BEHIND, FENCE_WITHIN, accepting
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
"""Seconds that the comparison behind the write fence may take: less than the client library's
default deadline of 10 s, so that writes held meanwhile do not fail."""

ROUNDS = 5
"""Comparisons of the rows changed meanwhile, at most, before the fence is closed anyway."""

ASK_EVERY = 1.0
"""Seconds between requests to a PostgreSQL that has not confirmed whether it took over."""

FINISH_WITHIN = 20.0
"""Seconds that the transaction of the takeover may take."""

_log = logging.getLogger(__name__)


class Cutover:
    """Carries out the change to POSTGRES_ONLY."""

    def __init__(
        self,
        context: MigrationContext,
        replicator: Replicator,
        verifications: Verifications,
    ) -> None:
        """Prepare to complete the migration."""
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
        """Manual work left in POSTGRES_ONLY: an archive that could not be created."""

    async def complete(self, accepted: int | None = None) -> None:
        """Change to POSTGRES_ONLY, whose preconditions hold.

        The caller is answered only when it is certain whether PostgreSQL has taken over; writes
        are held until then.

        Args:
            accepted: Number of quarantined rows that the operator accepts, committed together
                with the phase; None: leave it as it is.

        Raises:
            PreconditionError: The last comparison found a difference; nothing has changed.
            UnavailableError: A store failed, and nothing has changed.

        """
        compared = await self._compare_ahead()
        try:
            async with self._current_state.changing, self._fence.closed(FENCE_WITHIN):
                report = await self._take_over(compared, accepted)
        except FenceTimeoutError:
            raise UnavailableError(
                "pending writes did not end in time, so the phase was not changed; retry"
            ) from None
        await self._replicator.stop()
        await self.archive(report)

    async def archive(self, report: dict[str, object]) -> None:
        """Archive the file; if that fails, report it in `unfinished`. The next start retries."""
        try:
            made = await self._source.archive({"store_id": self._source.store_id, **report})
        except StorageError as exc:
            _log.error("the migration is complete, but the file is not archived: %s", exc)
            line = f"{exc}; the next start with --sqlite and --postgres retries"
            self.unfinished = [Blocker("NOT_ARCHIVED", line)]
            return
        self.unfinished = []
        _log.info("archived: %s, receipt: %s", made.path, made.receipt)

    # ------------------------------------------------------------------ before the fence is closed

    async def _compare_ahead(self) -> int:
        """Compare rows changed since the full verification until few are left; return the count."""
        if not self._verifications.covered or self._replicator.touched is None:
            # After a restart or too many changes, the changed rows are not known.
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
        """Compare the rows changed since the last call, and return their number.

        If this fails, the next attempt begins with a full verification, because the rows that
        were to be compared are lost.
        """
        keys = self._replicator.touched
        covered, self._verifications.covered = self._verifications.covered, False
        if keys is None:  # More than are recorded.
            raise PreconditionError((BEHIND,))
        self._replicator.watch_changes()
        mismatches = await self._verifications.check(list(keys)) if keys else []
        if mismatches:
            raise _refusal(f"{len(mismatches):,} recently changed rows differ")
        self._verifications.covered = covered
        return len(keys)

    # ------------------------------------------------------------------ while the fence is closed

    async def _take_over(self, compared: int, accepted: int | None) -> dict[str, object]:
        state = self._current_state.state
        attachment = self._session.attachments
        try:
            # This commit goes through the write queue, so no write is queued when it returns.
            await self._current_state.commit(self._source, state._replace(completing=True))
            checking = self._final_check(compared)
            report = await bounded(checking, HELD_WITHIN, self._target.place)
        except BaseException:
            await self._current_state.commit(self._source, state)
            raise
        last = accepting(state, accepted)._replace(
            phase=Phase.POSTGRES_ONLY, epoch=state.epoch + 1, completing=True
        )
        # From the commit in PostgreSQL on, forwarders write there without this server.
        self._current_state.in_doubt = True
        try:
            finished = await self._finish(last.epoch, attachment)
        finally:
            self._current_state.in_doubt = False
        if not finished:
            await self._current_state.commit(self._source, state)
            raise UnavailableError("PostgreSQL did not take over, so the phase was not changed")
        self._target.serve_alone()
        self._current_state.enter(last)
        return report

    async def _final_check(self, compared: int) -> dict[str, object]:
        if not await self._fallback.reach(self._source.committed, FENCE_WITHIN):
            raise PreconditionError((BEHIND,))
        rows = await self._compare_touched()
        ours, theirs = await self._source.count(), await self._target.count()
        if ours != theirs:
            raise _refusal(f"SQLite has {ours:,} messages, PostgreSQL {theirs:,}")
        sessions = await self._source.count_sessions()
        copied_sessions = await self._target.count_sessions()
        if sessions != copied_sessions:
            raise _refusal(f"SQLite has {sessions:,} sessions, PostgreSQL {copied_sessions:,}")
        files, copied_files = await self._source.count_files(), await self._target.count_files()
        if files != copied_files:
            raise _refusal(f"SQLite has {files:,} files, PostgreSQL {copied_files:,}")
        carried, copied = await self._source.carried(), await self._target.carried()
        if carried != copied:
            raise _refusal("quarantine or extra values differ")
        postgresql: dict[str, object] = {
            "place": self._target.place,
            "messages": theirs,
            "sessions": copied_sessions,
            "quarantine": copied.quarantine.rows,
            "files": copied_files,
            "extras": copied.extras.rows,
        }
        now = self._clock.now()
        return _report(self._current_state.state, postgresql, compared, rows, now)

    async def _finish(self, epoch: int, attachment: int) -> bool:
        """Let PostgreSQL take over; return whether it has.

        Returns only once that is certain: a write that SQLite accepted after PostgreSQL had
        taken over would be lost. ``attachment`` is the one in which the target was compared.
        """
        session = self._session
        # A target that was set back since the last comparison must not become the only store. The
        # compare-and-set finds that, unless its lower position has been taken over already.
        if session.attachments != attachment:
            return False
        finish = self._target.finish(
            session.lease, epoch, self._source.committed, session.position, session.mark
        )
        try:
            await bounded(finish, FINISH_WITHIN, self._target.place)
        except Exception as exc:  # noqa: BLE001 - the commit may have happened
            _log.warning("PostgreSQL has not confirmed whether it has taken over: %s", exc)
            return await self._has_finished()
        return True

    async def _has_finished(self) -> bool:
        while True:
            try:
                return await bounded(self._ask(), FINISH_WITHIN, self._target.place)
            except Exception as exc:  # noqa: BLE001 - no error proves either outcome
                _log.warning("writes are held until PostgreSQL answers: %s", exc)
                await asyncio.sleep(ASK_EVERY)

    async def _ask(self) -> bool:
        """Return whether PostgreSQL has taken over, once no commit of that is pending."""
        try:
            # Waits for a pending commit, which has locked the record.
            await self._target.renew(self._session.lease)
        except FencedError:
            found = await self._target.inspect()
            return found.record is not None and found.record.phase is Phase.POSTGRES_ONLY
        return False


def _refuse_mismatches(state: MigrationState) -> None:
    last = state.last_verification
    if last is None or last.mismatch_count:
        count = 0 if last is None else last.mismatch_count
        raise _refusal(f"the verification before the cutover found {count:,} rows that differ")


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
    """Return the receipt's sections on PostgreSQL and on the comparisons."""
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
