"""The lease on the target: proof that this server may write, renewal, fencing, set-back detection.

The target stores the lease (`postgresql/lease.py`): every transaction proves it, and no other
server can write while it is held. Writes that this server acknowledges from SQLite alone are
not covered by that, so it must stop serving as soon as another server has, or may have, taken
over. `LeaseGuard` is in one of three states:

- *holding*: the last answer of the target proved the lease, or the target is unavailable;
- *contested*: another server holds the lease, or this process was paused for longer than half
  a lease. Calls get UNAVAILABLE until the target has answered;
- *fenced*: another server has taken over. Final.

`TargetSession` sends the requests that prove the lease. It remembers the journal position and
the backfill mark that the target confirmed last. A target that reports less than that has been
set back (restored from a backup, or failed over to a standby that lacks commits), and both
stores are compared again before it is used: the replicator *re-attaches*.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sagastore_server.migration.current_state import MigrationContext
from sagastore_server.storage.environment import Clock
from sagastore_server.storage.errors import (
    Blocker,
    FencedError,
    PreconditionError,
    StorageError,
    TargetSetBackError,
    UnavailableError,
)
from sagastore_server.storage.model import Message
from sagastore_server.storage.replication import (
    AuxiliaryRows,
    BackfillMark,
    Lease,
    PreparedRows,
    TargetRecord,
)

LEASE_WITHIN = 15.0
"""Seconds to wait for another server's lease to expire. Longer than a lease lasts
(`postgresql/lease.py`): a lease that is still held then is being renewed."""

PAUSED = 5.0
"""Seconds of a blocked event loop after which the lease must be proved again: half of a lease
(`postgresql/lease.py`), so that no other server can take over unnoticed."""

TAKEN_OVER = "another server has taken over this migration; stop this server"

_log = logging.getLogger(__name__)
T = TypeVar("T")


class LeaseGuard:
    """Decides whether calls may be answered. Belongs to one event loop."""

    def __init__(self, clock: Clock) -> None:
        """Start as a server that has neither held nor lost a lease."""
        self._clock = clock
        self.fenced = False
        """Whether another server has taken over the target. Final."""
        self.contested: Blocker | None = None
        """Why the lease must be proved before the next answer; None: it need not."""
        self.held = False
        """Whether this server has held the lease since it was attached first."""
        self._contested_at = 0.0
        self._beat_at: float | None = None
        """Time of the last heartbeat of the event loop; None: it is not watched."""

    def check(self, *, attached: bool) -> None:
        """Refuse the call if another server has, or may have, taken over.

        Raises:
            FencedError: Another server has taken over.
            UnavailableError: It is not known yet whether another server has taken over.

        """
        self.beat(attached=attached)
        if self.fenced:
            raise FencedError(TAKEN_OVER)
        if self.contested is not None:
            raise UnavailableError(self.contested.detail)

    def watch(self) -> None:
        """Start to detect pauses of the process; `beat` must be called often from now on."""
        self._beat_at = self._clock.monotonic()

    def beat(self, *, attached: bool) -> None:
        """Record a heartbeat of the event loop, and contest the lease after a long pause.

        If the target is not attached, a pause changes nothing: SQLite serves without the target
        before it and after it.
        """
        if self._beat_at is None:
            return
        now = self._clock.monotonic()
        paused, self._beat_at = now - self._beat_at, now
        if paused > PAUSED and attached:
            line = (
                f"this server was paused for {paused:.1f} s and must check with PostgreSQL that "
                "no other server has taken over; retry"
            )
            self.contest(Blocker("LEASE_NOT_PROVED", line))

    def prove(self, asked_at: float) -> None:
        """Record that the target confirmed the lease in answer to a request of ``asked_at``."""
        self.held = True
        if asked_at >= self._contested_at:
            self.contested = None

    def waits_for(self, held_by_another: Blocker) -> bool:
        """Return whether to wait for the lease of another server to expire.

        A server that has held the lease itself does not wait: the lease was taken from it.
        """
        self.contest(held_by_another)
        return not self.held and self._clock.monotonic() - self._contested_at <= LEASE_WITHIN

    def stop(self) -> None:
        """Reset everything except `fenced`."""
        self.contested, self.held, self._beat_at = None, False, None

    def contest(self, blocker: Blocker) -> None:
        """Refuse calls until the lease is proved."""
        if self.contested is None:
            self._contested_at = self._clock.monotonic()
        self.contested = blocker


class TargetSession:
    """Requests to the target that prove the lease, and what the target confirmed last."""

    def __init__(self, context: MigrationContext, wake: asyncio.Event) -> None:
        """Prepare a session; ``wake`` wakes the replicator."""
        self._source = context.source
        self._target = context.target
        self._current_state = context.current_state
        self._clock = context.environment.clock
        self._wake = wake
        self._token = context.environment.randomness.token()
        self.guard = LeaseGuard(self._clock)
        self.position = 0
        """Journal position that the target has confirmed, for compare-and-set."""
        self.mark = BackfillMark()
        """Progress of the backfill that the target has confirmed."""
        self.attachments = 0
        """How often the target was attached."""
        self.must_reattach = False
        """Whether both stores must be compared before the next transaction."""
        self.trouble: Blocker | None = None
        """Why the journal is not applied, or the target is silent; None: it is applied."""
        self.apply_seconds = 0.0
        """Duration of the last transaction that applied the journal. Each answered renewal of
        an idle target halves it, down to its own duration."""
        self.copies_started = self.copies_ended = 0
        """Transactions of the backfill. They change the mark concurrently with renewals."""
        self.marking = asyncio.Lock()
        """Held from reading the mark to writing a change of it."""
        self._pending: list[float] = []
        """Start times of the requests that the target has not answered yet."""

    @property
    def lease(self) -> Lease:
        """The lease that every transaction proves."""
        return Lease(self._source.holder, self._token)

    @property
    def fenced(self) -> bool:
        """Whether another server has taken over, so that this one must not write."""
        return self.guard.fenced

    def silent_seconds(self) -> float:
        """Return for how long the oldest pending request has been waiting."""
        now = self._clock.monotonic()
        return now - min(self._pending, default=now)

    def attached(self, record: TargetRecord) -> None:
        """Take over what the target has, after it was attached."""
        self.position, self.mark = record.applied, record.backfill
        self.attachments += 1

    def reattach(self) -> None:
        """Request that the target is attached again: it missed a change, or was set back."""
        self.must_reattach = True
        self._wake.set()

    def reset(self) -> None:
        """Forget the target, as before it was attached first. `fenced` stays."""
        self.trouble = None
        self.position = 0
        self.guard.stop()

    async def request(self, work: Awaitable[T]) -> T:
        """Run a request that proves the lease, and measure the target's silence meanwhile."""
        started = self._clock.monotonic()
        self._pending.append(started)
        try:
            answer = await work
        finally:
            self._pending.remove(started)
        self.trouble = None
        self.guard.prove(started)
        return answer

    async def renew(self) -> None:
        """Renew the lease, and check that the target still has what it confirmed.

        Raises:
            FencedError: Another server has the lease.
            TargetSetBackError: The target has less than it confirmed.
            StorageError: The target did not answer.

        """
        started, before = self._clock.monotonic(), self.copies_started
        no_copy = before == self.copies_ended
        record = await self.request(self._target.renew(self.lease))
        # A concurrent copy explains another mark; a later renewal compares it.
        no_copy = no_copy and self.copies_started == before
        if record.applied < self.position or (no_copy and record.backfill != self.mark):
            raise TargetSetBackError(
                f"PostgreSQL has lost confirmed data (it has change {record.applied}, and had "
                f"confirmed {self.position}); both stores are compared again"
            )
        took = self._clock.monotonic() - started
        self.apply_seconds = max(took, self.apply_seconds / 2)

    async def copy(
        self,
        messages: list[Message] | PreparedRows,
        mark: BackfillMark,
        before: BackfillMark,
        least: int = 0,
    ) -> None:
        """Copy existing rows to the target, and set ``mark`` as the progress of the backfill.

        Args:
            messages: The rows.
            mark: The progress once they are stored.
            before: The mark from which this step was planned. It is not simply the one confirmed
                last: the target may have been attached again since then, with less.
            least: The journal position that the target must have reached.

        Raises:
            StorageError: Nothing is recorded here. After TargetSetBackError the target is
                attached again, which may find another mark.

        """
        await self._step(mark, lambda: self._target.copy(self.lease, messages, mark, before, least))

    async def carry(
        self, rows: AuxiliaryRows, mark: BackfillMark, before: BackfillMark, *, first: bool
    ) -> None:
        """Copy auxiliary rows, as ``copy`` does; ``first`` deletes those that were there."""
        await self._step(
            mark, lambda: self._target.carry(self.lease, rows, mark, before, first=first)
        )

    async def _step(self, mark: BackfillMark, work: Callable[[], Awaitable[object]]) -> None:
        attachment = self.attachments
        self.copies_started += 1
        try:
            await work()
        except TargetSetBackError:
            self.reattach()
            raise
        finally:
            self.copies_ended += 1
        if attachment != self.attachments:
            raise UnavailableError("PostgreSQL was attached again meanwhile; the step is repeated")
        self.mark = mark
        self._current_state.notify()

    def refused(self, error: PreconditionError) -> Blocker | None:
        """Decide what follows when the target refused to be attached.

        Returns:
            Why nothing is applied from now on; None: the refusal changes nothing. If another
            server has continued the migration, this one is fenced.

        """
        blocker = error.blockers[0]
        if blocker.reason == "LEASE_HELD" and self.guard.waits_for(blocker):
            return blocker
        if blocker.reason in {"LEASE_HELD", "LEASE_LOST", "SOURCE_IS_OLD"}:
            return self.fence(error)
        return blocker

    def fence(self, error: StorageError) -> Blocker | None:
        """Stop writing for good; None: the cutover is in progress, and nothing changes."""
        if self._current_state.state.completing:
            # The cutover releases the lease, and the replicator may notice before the cutover
            # returns. If another server has it after all, the next attempt reports it.
            return None
        self.guard.fenced = True
        _log.error("fenced, this server must not write any more: %s", error)
        return Blocker("NOT_THE_HOLDER", str(error))
