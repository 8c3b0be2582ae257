"""Fallback: SQLite answers in READ_POSTGRES while PostgreSQL is silent, and PostgreSQL returns.

`ReplicaStatus` says how far the target can be trusted:

- DETACHED: unavailable, or not ours. Nothing is applied.
- FOLLOWING: the replicator applies the journal; writes do not wait for it.
- CURRENT: writes wait until the target has them (`confirm`), and the target has every change
  that a client may have seen. Only then does it answer reads; read-your-writes rests on this.

Steps between them:

- *Falling back* (CURRENT to FOLLOWING) is immediate: the watchdog finds a request that has been
  pending for longer than the patience, or the connection fails. Pending reads are cancelled and
  waiting writes are released; SQLite has everything.
- *Returning* (FOLLOWING to CURRENT) closes the write fence while the last entries are applied,
  as the change to READ_POSTGRES does. Without the fence, a read could see a write in SQLite that
  the next read, from PostgreSQL, misses.

Every attempt to return holds all writes, so there are few: only near the end of the journal,
only if draining it is expected to fit into the fence's time, and with a pause that doubles after
each attempt until PostgreSQL has stayed current for as long as the longest pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sagastore_server.migration.current_state import MigrationContext
from sagastore_server.migration.lease import TargetSession
from sagastore_server.migration.position_waiters import PositionWaiters
from sagastore_server.migration.timeouts import bounded, stop_within, uninterrupted
from sagastore_server.migration.write_fence import FenceTimeoutError
from sagastore_server.runtime.supervisor import SupervisedTask
from sagastore_server.storage.errors import Blocker, StorageError, UnavailableError
from sagastore_server.storage.migration import BackfillState

DRAIN_APPLIES = 2
"""Transactions that draining takes at most, near the end of the journal: the one that runs when
the fence closes, and the one with the entries that were written meanwhile."""

_log = logging.getLogger(__name__)


class ReplicaStatus(enum.Enum):
    """How far the target can be trusted."""

    DETACHED = "detached"
    """Unavailable, or not ours; nothing is applied."""
    FOLLOWING = "following"
    """The journal is applied; writes do not wait for that."""
    CURRENT = "current"
    """Writes wait for the target, and it may answer reads."""


class Fallback:
    """Decides whether writes wait for the target and whether it answers reads."""

    def __init__(
        self,
        context: MigrationContext,
        session: TargetSession,
        patience: float,
        wake: asyncio.Event,
    ) -> None:
        """Start detached.

        Args:
            context: Both stores, and what the parts of the migration share.
            session: Requests to the target.
            patience: Seconds for which the target may be silent before SQLite answers.
            wake: Wakes the replicator.

        """
        self._source = context.source
        self._target = context.target
        self._current_state = context.current_state
        self._write_fence = context.fence
        self._clock = context.environment.clock
        self._tuning = context.tuning
        self._supervisor = context.supervisor
        self._session = session
        self._patience = patience
        self._wake = wake
        self.status = ReplicaStatus.DETACHED
        self.applied = 0
        """Journal position that the target has; may be ahead of ``TargetSession.position``."""
        self.waiters = PositionWaiters()
        self._confirming: dict[asyncio.Future[bool], None] = {}
        """The waiters that are writes."""
        self.pending_reads: dict[asyncio.Future[Any], None] = {}
        """Reads of the target, cancelled when it falls silent."""
        self._return_task: SupervisedTask | None = None
        self._return_at = 0.0
        """Time of the event loop before which no attempt to return begins."""
        self._return_pause = self._tuning.return_seconds
        """Pause after the next attempt to return."""
        self._current_since = 0.0

    @property
    def attached(self) -> bool:
        """Whether the target is available, ours, and the journal is applied to it."""
        return self.status is not ReplicaStatus.DETACHED

    @property
    def current(self) -> bool:
        """Whether the target may answer reads, and writes must wait for it."""
        return self.status is ReplicaStatus.CURRENT

    def check_lease(self) -> None:
        """Refuse the call if another server has, or may have, taken over.

        Raises:
            FencedError: Another server has taken over.
            UnavailableError: It is not known yet whether another server has taken over.

        """
        try:
            self._session.guard.check(attached=self.attached)
        except UnavailableError:
            self._wake.set()  # The next step proves the lease.
            raise

    # ------------------------------------------------------------------ waiting for the target

    async def wait_until_attached(self, within: float) -> bool:
        """Wait until the journal is applied; False if not within so many seconds."""
        until = self._clock.monotonic() + within
        while not self.attached and self._clock.monotonic() < until:
            await self._current_state.changed(0.1)
        return self.attached

    async def reach(self, position: int, within: float) -> bool:
        """Wait until the target has everything up to ``position``; False if not in time.

        A detached target is waited for as well: it may have been set back and re-attach.
        """
        if self.attached and self.applied >= position:
            return True
        waiter = self.waiters.add(position)
        self._wake.set()
        done, _ = await asyncio.wait({waiter}, timeout=within)
        if not done:
            waiter.cancel()
        return bool(done) and not waiter.cancelled() and waiter.result()

    async def confirm(self, position: int) -> bool:
        """Wait until the target has ``position``; False as soon as it need not be waited for."""
        if not self.current:
            return False
        if self.applied >= position:
            return True
        waiter = self.waiters.add(position)
        self._confirming[waiter] = None
        try:
            return await waiter
        finally:
            del self._confirming[waiter]

    def advance(self, applied: int) -> None:
        """Record that the target has the journal up to ``applied``."""
        self.applied = applied
        self.waiters.release(applied)

    # ------------------------------------------------------------------ falling back

    def set_status(self, status: ReplicaStatus) -> None:
        """Change the status, and notify those that wait for changes."""
        if status is self.status:
            return
        now = self._clock.monotonic()
        if status is ReplicaStatus.CURRENT:
            self._current_since = now
        elif self.current and now - self._current_since >= self._tuning.return_most:
            self._return_pause = self._tuning.return_seconds
        self.status = status
        self._current_state.notify()

    def fall_back(self, reason: str) -> None:
        """Stop waiting for the target and reading from it: it does not answer."""
        if self.current:
            _log.warning("falling back to SQLite for reads: %s", reason)
            self.set_status(ReplicaStatus.FOLLOWING)
        for waiter in list(self._confirming):
            if not waiter.done():
                waiter.set_result(False)
        for read in list(self.pending_reads):
            read.cancel()

    def stop_waiting(self) -> None:
        """Let writes no longer wait for the target; the journal is still applied."""
        if self.current:
            self.set_status(ReplicaStatus.FOLLOWING)

    def detach(self, trouble: Blocker | None) -> None:
        """Fall back, and stop applying the journal because of ``trouble``."""
        # The pause of a server that was attached counts, even if the failure is noticed first.
        self._session.guard.beat(attached=self.attached)
        if trouble is not None and trouble != self._session.trouble:
            _log.warning("replication to PostgreSQL has stopped: %s", trouble.detail)
        self._session.trouble = trouble
        self.fall_back(trouble.detail if trouble else "PostgreSQL was detached")
        self.set_status(ReplicaStatus.DETACHED)

    async def stop(self) -> None:
        """Detach without a reason, and answer all waiters with False."""
        task, self._return_task = self._return_task, None
        if task is not None:
            await stop_within([task], self._patience)
        self._session.reset()
        self.applied = 0
        self.set_status(ReplicaStatus.DETACHED)
        self.waiters.give_up()

    async def watch_silence(self) -> None:
        """Fall back whenever the target has been silent for longer than the patience.

        The pending request is not cancelled: once it is answered, the target has caught up.
        """
        self._session.guard.watch()
        while True:
            await asyncio.sleep(self._patience / 8)
            self._session.guard.beat(attached=self.attached)
            if self._session.silent_seconds() > self._patience:
                line = f"PostgreSQL has not answered for {self._patience:g} s"
                self._session.trouble = Blocker(
                    "POSTGRES_UNAVAILABLE", f"{line}; check that it runs"
                )
                self.fall_back(line)

    # ------------------------------------------------------------------ returning

    async def catch_up(self, commit: Callable[[], Awaitable[None]], within: float) -> bool:
        """Close the write fence, let the target catch up, and make it current.

        Args:
            commit: Called behind the fence. It must go through the source's write queue, so
                that no write is still queued when it returns.
            within: Seconds that each step may take.

        Returns:
            False if the target did not catch up; then its status is unchanged.

        Raises:
            FenceTimeoutError: Pending writes did not end in time.

        """
        async with self._write_fence.closed(within):
            if not await self.reach(self._source.committed, within):
                return False
            await commit()
            # The queue may have held writes whose callers had been cancelled.
            if not self.attached or not await self.reach(self._source.committed, within):
                return False
            if not await self._target_is_intact(within):
                return False
            # It may have been attached again since it was reached, with less than it had.
            if self.applied < self._source.committed:
                return False
            self.set_status(ReplicaStatus.CURRENT)
            return True

    async def _target_is_intact(self, within: float) -> bool:
        """Check that the target still has what it confirmed; it may have been set back."""
        try:
            await bounded(self._session.renew(), within, self._target.place)
        except StorageError:
            self._session.reattach()
        return self.attached and not self._session.must_reattach

    def consider_return(self, entries: int) -> None:
        """Start an attempt to return if it is due and likely to succeed.

        ``entries`` is the size of the last batch: a small one means that the end of the journal
        is near.
        """
        phase = self._current_state.phase
        wanted = (
            phase.reads_postgres
            and phase.writes_sqlite
            and self._session.mark.state is BackfillState.DONE
        )
        idle = self._return_task is None or self._return_task.done
        near = self.status is ReplicaStatus.FOLLOWING and entries <= self._tuning.near_entries
        fits = DRAIN_APPLIES * self._session.apply_seconds <= self._patience
        now = self._clock.monotonic()
        if wanted and near and idle and fits and now >= self._return_at:
            self._return_at = now + self._return_pause
            self._return_pause = min(2 * self._return_pause, self._tuning.return_most)
            self._return_task = self._supervisor.start("return-from-fallback", self._return)

    async def _return(self) -> None:
        state = self._current_state.state

        async def barrier() -> None:
            await uninterrupted(self._source.set_state(state))

        with contextlib.suppress(FenceTimeoutError, StorageError):
            async with self._current_state.changing:
                if self._current_state.state is state and await self.catch_up(
                    barrier, self._patience
                ):
                    _log.info("PostgreSQL has caught up and answers reads again")
