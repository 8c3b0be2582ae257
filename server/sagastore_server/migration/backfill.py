"""Backfill: copies the rows that are older than the journal, in batches, and builds the indexes.

- The copy is in the order of ids, which no VACUUM changes. Its position (`BackfillMark`) is in
  the target, committed together with the rows, so a restart resumes there.
- A row that changes during the copy is in the journal as well. The order of the two does not
  matter: the target neither replaces a newer revision nor restores a deleted row.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from sagastore_server.migration.auxiliary_rows import carry_all, finish_carrying
from sagastore_server.migration.current_state import MigrationContext
from sagastore_server.migration.replicator import Replicator
from sagastore_server.migration.throttle import Throttle
from sagastore_server.migration.timeouts import abandon, stop_within
from sagastore_server.runtime.supervisor import SupervisedTask, awaited
from sagastore_server.storage.errors import FencedError, StorageError, UnavailableError
from sagastore_server.storage.migration import BackfillState, BackfillStatus, Pace
from sagastore_server.storage.model import Message
from sagastore_server.storage.replication import BackfillMark, PreparedRows

_FRESH = 2.0
"""Seconds for which a prefetched page is used. An older one would be harmless, since the target
ignores old revisions, but probably useless."""

_REACH_SLICE = 1.0
"""Seconds of one wait for the journal."""

_log = logging.getLogger(__name__)


class _Page(NamedTuple):
    """A page of rows, prepared for the target."""

    place: tuple[str, str, int]
    """The id before the first row, the highest id allowed, and the maximum number of rows."""
    read_at: float
    rows: int
    cursor: str
    """The id before the first row of the next page."""
    prepared: PreparedRows


class Backfill:
    """Runs in BACKFILL until all rows are copied and indexed, and after a set-back."""

    def __init__(
        self,
        context: MigrationContext,
        replicator: Replicator,
        throttle: Throttle,
        when_done: Callable[[], Awaitable[None]],
    ) -> None:
        """Prepare to copy; ``when_done`` is called whenever a copy is complete."""
        self._source = context.source
        self._target = context.target
        self._current_state = context.current_state
        self._replicator = replicator
        self._session = replicator.session
        self._fallback = replicator.fallback
        self._throttle = throttle
        self._when_done = when_done
        self._clock = context.environment.clock
        self._tuning = context.tuning
        self._supervisor = context.supervisor
        self._step = ""
        self._error = ""
        self._ahead: _Page | None = None
        """Prefetched while the page before it was stored."""
        self._throttled = 0.0
        """Seconds of the last pause of the throttle."""
        self._task: SupervisedTask | None = None

    def start(self) -> None:
        """Start. Does nothing if it runs."""
        if self._task is None:
            self._task = self._supervisor.start("backfill", self._run)

    async def stop(self) -> None:
        """Stop. A batch in progress is repeated after the next start."""
        task, self._task = self._task, None
        if task is not None:
            await stop_within([task], self._tuning.backfill_idle_seconds)

    @property
    def status(self) -> BackfillStatus:
        """The progress."""
        mark = self._session.mark
        rate = self._throttle.rate
        left = max(0, mark.total - mark.copied)
        pace, detail = self._throttle.pace if self._copying(mark) else (Pace.UNKNOWN, "")
        return BackfillStatus(
            state=self._state(mark),
            step="" if mark.state is BackfillState.DONE else self._step,
            copied=mark.copied,
            total=mark.total,
            rows_per_second=rate if self._copying(mark) else 0.0,
            eta_seconds=left / rate if rate and self._copying(mark) else 0.0,
            error=self._error,
            pace=pace,
            pace_detail=detail,
        )

    def _state(self, mark: BackfillMark) -> BackfillState:
        if mark.state is BackfillState.DONE or not self._current_state.phase.copies:
            return mark.state
        if self._current_state.state.paused:
            return BackfillState.PAUSED
        return BackfillState.FAILED if self._error else BackfillState.RUNNING

    def _copying(self, mark: BackfillMark) -> bool:
        return self._state(mark) is BackfillState.RUNNING and mark.copied < mark.total

    @property
    def _may_work(self) -> bool:
        phase = self._current_state.phase
        paused = self._current_state.state.paused and phase.copies
        return (
            phase.completes_copy
            and not paused
            and self._fallback.attached
            and self._session.mark.state is not BackfillState.DONE
        )

    async def _run(self) -> None:
        pause = self._tuning.backfill_retry_first
        while not self._session.fenced:
            if not self._may_work:
                await self._current_state.changed(self._tuning.backfill_idle_seconds)
                continue
            try:
                await self._advance()
                pause = self._tuning.backfill_retry_first
                self._error = ""
            except FencedError as exc:
                # The replicator finds out whether another server has the lease.
                self._replicator.lease_lost(exc)
                await asyncio.sleep(pause)
            except StorageError as exc:
                await self._failed(str(exc), pause)
                pause = min(2 * pause, self._tuning.backfill_retry_most)
            except Exception:
                # The supervisor logs the error and restarts the backfill.
                self._note_error("an internal error; see the server's log")
                raise

    async def _failed(self, why: str, pause: float) -> None:
        if why != self._error:
            _log.warning("the backfill failed and is retried: %s", why)
        self._note_error(why)
        await asyncio.sleep(pause)

    def _note_error(self, why: str) -> None:
        self._error = why
        self._current_state.notify()

    async def _advance(self) -> None:
        """Do the next step."""
        if self._session.mark.cursor >= self._session.mark.upto and self._session.mark.carried:
            index = await self._missing_index()
            if index is not None:
                await self._build(index)
                return
        async with self._session.marking:
            await self._advance_mark(self._session.mark)

    async def _advance_mark(self, mark: BackfillMark) -> None:
        if mark.state is BackfillState.PENDING:
            await self._begin(mark)
        elif not mark.carried:
            await self._carry()
        elif mark.cursor < mark.upto:
            await self._copy(mark)
        else:
            await self._end(mark)

    async def _begin(self, before: BackfillMark) -> None:
        self._step = "preparing"
        upto = await self._source.last_id()
        total = await self._source.count()
        _log.info("backfill started: %d messages", total)
        mark = BackfillMark(BackfillState.RUNNING, upto=upto or "", total=total)
        await self._apply(mark, [], before)

    async def _carry(self) -> None:
        """Copy the auxiliary rows (quarantine, extra values), the sessions and the files.

        Sessions and files are copied by way of the journal. The mark is set only in a target that
        has applied them, so a target that is set back to it has them.
        """
        self._step = "copying quarantine"
        mark = await carry_all(self._source, self._session)
        self._step = "copying sessions and files"
        last = await self._source.journal_records()
        while not await self._fallback.reach(last, _REACH_SLICE):
            if not self._may_work:
                return
        await finish_carrying(self._session, mark, least=last)

    async def _copy(self, mark: BackfillMark) -> None:
        self._step = "copying messages"
        size = self._current_state.state.batch_size
        self._throttle.set_rate(self._current_state.state.max_rows_per_second)
        began = self._clock.monotonic()
        with self._throttle.working():
            page = await self._page(mark, size)
            copied = mark.copied + page.rows
            after = mark._replace(cursor=page.cursor, copied=copied, total=max(mark.total, copied))
            await self._copy_and_prefetch(mark, after, page, size)
        worked = self._clock.monotonic() - began
        await self._throttle.rest(page.rows, worked)
        self._throttled = self._clock.monotonic() - began - worked

    async def _copy_and_prefetch(
        self, before: BackfillMark, after: BackfillMark, page: _Page, size: int
    ) -> None:
        """Store a page; prefetch the next one unless the throttle pauses for too long."""
        reading: asyncio.Task[_Page] | None = None
        if after.cursor < after.upto and self._throttled < _FRESH:
            reading = awaited(self._read(after, size))
        try:
            await self._apply(after, page.prepared, before)
            self._ahead = None if reading is None else await reading
        except BaseException:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            raise

    async def _page(self, mark: BackfillMark, size: int) -> _Page:
        """Return the next page: the prefetched one if it is recent and at the right position."""
        page, self._ahead = self._ahead, None
        place = (mark.cursor, mark.upto, size)
        if page is None or page.place != place or self._clock.monotonic() - page.read_at > _FRESH:
            page = await self._read(mark, size)
        return page

    async def _read(self, mark: BackfillMark, size: int) -> _Page:
        read_at = self._clock.monotonic()
        found = await self._source.scan_ids(mark.cursor, mark.upto, size)
        # No rows are left up to `upto`: they have been deleted meanwhile.
        cursor = found.messages[-1].id if found.more else mark.upto
        prepared = await self._target.prepare(found.messages)
        place = (mark.cursor, mark.upto, size)
        return _Page(place, read_at, len(found.messages), cursor, prepared)

    async def _missing_index(self) -> str | None:
        return next((one.name for one in await self._target.indexes() if not one.valid), None)

    async def _build(self, name: str) -> None:
        def progress(share: float) -> None:
            self._step = f"building {name} ({share:.0%})"
            self._current_state.notify()

        progress(0.0)
        building = awaited(self._target.build_index(name, progress))
        try:
            # Pausing and changing back do not wait for the end of a build.
            while not building.done() and self._may_work:
                await asyncio.wait({building}, timeout=self._tuning.backfill_idle_seconds / 4)
        finally:
            if not building.done():
                abandon(building)
        if building.done():
            building.result()

    async def _end(self, mark: BackfillMark) -> None:
        self._step = "refreshing the planner's statistics"
        await self._target.refresh_statistics()
        # Rows deleted before their turn are subtracted from the total.
        await self._apply(mark._replace(state=BackfillState.DONE, total=mark.copied), [], mark)
        _log.info("backfill done: %d messages copied, all indexes built", mark.copied)
        await self._when_done()

    async def _apply(
        self, mark: BackfillMark, messages: list[Message] | PreparedRows, before: BackfillMark
    ) -> None:
        if not self._fallback.attached:
            raise UnavailableError("PostgreSQL is not attached at the moment; the step is repeated")
        await self._session.copy(messages, mark, before)
