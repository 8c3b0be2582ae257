"""Makes the target follow the source: one pipeline, in the order of the journal.

There is one follower, and it alone applies the journal. What it applies is what the
source holds *now* under each id, and the target commits it together with the sequence
up to which it has come. So a crash anywhere repeats at most what does no harm.

In READ_POSTGRES it also keeps what read-your-writes rests on: CURRENT means that writes
wait for the target, and that the target has everything that anybody can have seen, so
that it may answer reads. Falling back is at once. Coming back holds the writes for the
moment in which the last entries are applied, just as the change to READ_POSTGRES does;
without that, a read could see a write in SQLite that the next read misses.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sagastore_server.migration.attachment import attach, outlive
from sagastore_server.migration.current_state import MigrationContext
from sagastore_server.migration.lease import LeaseGuard
from sagastore_server.migration.position_waiters import PositionWaiters
from sagastore_server.migration.timeouts import bounded
from sagastore_server.migration.write_fence import FenceTimeoutError
from sagastore_server.storage.errors import (
    Blocker,
    FencedError,
    PreconditionError,
    StorageError,
    TargetSetBackError,
    UnavailableError,
)
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.model import Message
from sagastore_server.storage.replication import (
    BackfillMark,
    Entry,
    Lease,
    PreparedRows,
)

CHANGING = 0.005
"""Seconds between looks while a change of phase comes into force: some turns of the event loop."""

PROBE_EVERY, RENEW_EVERY = 0.25, 2.0
"""Seconds between two renewals of the lease of an idle target: while it is read, and else."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class ReplicaStatus(enum.Enum):
    """How the target stands to the source."""

    DETACHED = "detached"
    """Not reached, or not ours; nothing is applied."""
    FOLLOWING = "following"
    """The journal is applied; writes do not wait for that."""
    CURRENT = "current"
    """Writes wait for the target, and it may answer reads."""


class Replicator:
    """Applies the journal for as long as it runs, and says how far it is."""

    def __init__(self, context: MigrationContext, patience: float) -> None:
        """Prepare to follow; ``patience`` is how many seconds the target may be silent."""
        self._source = context.source
        self._target = context.target
        self._current_state = context.current_state
        self._write_fence = context.fence
        self._clock = context.environment.clock
        self._tuning = context.tuning
        self._patience = patience
        self._session = context.environment.randomness.token()
        self.replica_status = ReplicaStatus.DETACHED
        self._guard = LeaseGuard(self._clock)
        self.trouble: Blocker | None = None
        """Why the target is not followed, or is silent; None: all is well."""
        self.applied = 0
        self.position = 0
        """``applied`` as the target has it, for compare-and-set; may be behind ``applied``."""
        self.mark = BackfillMark()
        """How far the backfill is, as the target has it."""
        self._copies_begun = self._copies_ended = 0
        """Transactions of the backfill, which change the mark beside the follower."""
        self._attachments = 0
        self.touched: dict[str, None] | None = None
        """Ids applied since ``watch_changes``; None: not watched, or too many."""
        self._return_at = 0.0
        self._returning: asyncio.Task[None] | None = None
        self._waiters = PositionWaiters()
        self._confirming: dict[asyncio.Future[bool], None] = {}
        self._wake = asyncio.Event()
        self._awaited = asyncio.Event()
        """Set when somebody begins to wait for the target."""
        self._anew = False
        self._busy: list[float] = []
        """When what is asked of the target at the moment was asked."""
        self._pruned = 0
        self._pruned_at = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self.reads_under_way: dict[asyncio.Future[Any], None] = {}
        """Reads of the target, to be given up when it falls silent."""
        self._source.on_commit(self._wake.set)
        self._target.on_connection_loss(self._suspect)

    @property
    def lease(self) -> Lease:
        """What proves to the target that this server may write."""
        return Lease(self._source.holder, self._session)

    @property
    def fenced(self) -> bool:
        """Whether another server has taken over, and this one must not write any more."""
        return self._guard.fenced

    @property
    def attached(self) -> bool:
        """Whether the target is reached, ours, and being followed."""
        return self.replica_status is not ReplicaStatus.DETACHED

    @property
    def current(self) -> bool:
        """Whether the target may answer reads, and writes must wait for it."""
        return self.replica_status is ReplicaStatus.CURRENT

    def start(self) -> None:
        """Begin to follow; harmless if it runs."""
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._run(), name="follower"),
                asyncio.create_task(self._watch_silence(), name="follower-watchdog"),
            ]

    async def stop(self) -> None:
        """Stop following, and give the lease back if the target answers."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self._patience)
        was_attached = self.attached
        self.trouble = None
        self.applied = self.position = 0
        self._guard.stop()
        self._stand(ReplicaStatus.DETACHED)
        self._waiters.give_up()
        if was_attached:
            with contextlib.suppress(StorageError):
                releasing = self._target.release(self.lease)
                await bounded(releasing, self._patience, self._target.place)

    def _suspect(self) -> None:
        """Trust the target no more: a connection to it was lost.

        What answers on the next connection may be a PostgreSQL that was restored, or a
        standby that lacks the last commits. It is compared before it answers reads again.
        """
        if self.attached:
            self._detach(None)
            self.attach_anew()

    def attach_anew(self) -> None:
        """Attach again: the target missed something, or has less than it had."""
        self._anew = True
        self._wake.set()

    async def followed(self, within: float) -> bool:
        """Wait until the journal is being applied; False if not in time."""
        until = self._clock.monotonic() + within
        while not self.attached and self._clock.monotonic() < until:
            await self._current_state.changed(0.1)
        return self.attached

    async def reach(self, sequence: int, within: float) -> bool:
        """Wait until the target has everything up to ``sequence``; False if not in time.

        A target that is not attached is waited for as well: it may have been set back.
        """
        if self.attached and self.applied >= sequence:
            return True
        waiter = self._waiter(sequence)
        self._wake.set()
        done, _ = await asyncio.wait({waiter}, timeout=within)
        if not done:
            waiter.cancel()
        return bool(done) and not waiter.cancelled() and waiter.result()

    async def confirm(self, sequence: int) -> bool:
        """Wait until the target has ``sequence``; False as soon as it need not be waited for."""
        if not self.current:
            return False
        if self.applied >= sequence:
            return True
        waiter = self._waiter(sequence)
        self._confirming[waiter] = None
        try:
            return await waiter
        finally:
            del self._confirming[waiter]

    async def copy(self, messages: list[Message] | PreparedRows, mark: BackfillMark) -> None:
        """Store existing rows, and note ``mark`` as how far the backfill is.

        Raises:
            StorageError: Nothing is noted here. After TargetSetBackError the target is
                attached again, which may find another mark.

        """
        attachment = self._attachments
        self._copies_begun += 1
        try:
            done = await self._target.copy(self.lease, messages, mark, before=self.mark)
        except TargetSetBackError:
            self.attach_anew()
            raise
        finally:
            self._copies_ended += 1
        if attachment != self._attachments:
            raise UnavailableError("PostgreSQL was attached again meanwhile; the step is repeated")
        self.mark = done
        self._current_state.tell()

    def check_holder(self) -> None:
        """Refuse to serve what another server goes on with, or may have taken over.

        Raises:
            FencedError, UnavailableError: As ``LeaseGuard.check``.

        """
        try:
            self._guard.check(attached=self.attached)
        except UnavailableError:
            self._wake.set()  # The next step proves the lease.
            raise

    def lose(self, error: FencedError) -> None:
        """Serve nothing until it is known whether another server has the lease."""
        # Once it is not followed any more, what was under way hears that the lease was released.
        if self._current_state.state.completing or not self._tasks:
            return
        blocker = Blocker("LEASE_LOST", f"{error}; whether that server is alive is being found out")
        self._guard.contest(blocker)
        self._detach(blocker)
        self.attach_anew()

    def fall_back(self, why: str) -> None:
        """Stop waiting for the target and reading from it: it does not answer."""
        if self.current:
            _log.warning("PostgreSQL is left behind, SQLite answers: %s", why)
            self._stand(ReplicaStatus.FOLLOWING)
        for waiter in list(self._confirming):
            if not waiter.done():
                waiter.set_result(False)
        for read in list(self.reads_under_way):
            read.cancel()

    async def catch_up(self, commit: Callable[[], Awaitable[None]], within: float) -> bool:
        """Hold the writes, let the target catch up, and make it current.

        ``commit`` must go through the source's queue of writes, so that none of them
        is left behind it when it returns; it is called while writes are held.

        Returns:
            False if the target did not catch up; then writes go on as before.

        Raises:
            FenceTimeoutError: Writes under way did not end in time.

        """
        async with self._write_fence.closed(within):
            if not await self.reach(self._source.committed, within):
                return False
            await commit()
            # The barrier may have let the last writes through whose callers had given up.
            if not self.attached or not await self.reach(self._source.committed, within):
                return False
            if not await self._is_as_left(within):
                return False
            self._stand(ReplicaStatus.CURRENT)
            return True

    async def _is_as_left(self, within: float) -> bool:
        """Ask the target whether it has what it had; it may have been set back unnoticed."""
        try:
            await bounded(self._renew(), within, self._target.place)
        except StorageError:
            self.attach_anew()
        return self.attached and not self._anew

    def part(self) -> None:
        """From now on writes do not wait for the target, which goes on following."""
        if self.current:
            self._stand(ReplicaStatus.FOLLOWING)

    def watch_changes(self) -> None:
        """Begin to remember which ids change, for a later verification of these."""
        self.touched = {}

    async def _run(self) -> None:
        pause = self._tuning.reconnect_first
        while not self.fenced:
            try:
                await self._attach()
                while not self._anew:
                    await self._step()
                    pause = self._tuning.reconnect_first
            except FencedError as exc:
                self.lose(exc)
            except PreconditionError as exc:
                self._refused(exc)
            except StorageError as exc:
                self._detach(Blocker("POSTGRES_UNAVAILABLE", str(exc)))
            except Exception as exc:  # noqa: BLE001 - following must go on, whatever it is
                _log.error("following failed, trying again", exc_info=exc)
                self._detach(Blocker("POSTGRES_UNAVAILABLE", "an internal error; see the log"))
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._tuning.reconnect_most)

    async def _attach(self) -> None:
        self._anew = False
        again = self._guard.held
        if again:
            await outlive(self._target, self.lease, self._patience)
        taking = attach(self._source, self._target, self._current_state, self.lease, again=again)
        record = await self._timed(taking)
        self.applied = self.position = record.applied
        self.mark, self._pruned = record.backfill, 0
        self._attachments += 1
        self._stand(ReplicaStatus.FOLLOWING)
        self._waiters.release(self.applied)
        _log.info("following: PostgreSQL has the journal up to %d", self.applied)

    async def _step(self) -> None:
        self._wake.clear()
        committed, state = self._source.committed, self._current_state.state
        if self._guard.contested is not None:
            await self._renew()
        entries = await self._source.journal(self.applied, self._tuning.journal_batch)
        if entries:
            await self._timed(self._target.apply(self.lease, entries, after=self.position))
            self.position = entries[-1].sequence
            self._advance(entries[-1].sequence, entries)
        elif self.applied < committed and state.phase.journals:
            if (await self._source.state()).epoch == state.epoch:
                # All that was committed before the journal was read has been applied.
                self._advance(committed, entries)
            else:
                # A change is on disk and not in force yet. It may have emptied the journal,
                # which then tells nothing of what the target has.
                self._wake.set()
                await asyncio.sleep(CHANGING)
        await self._prune()
        self._approach(len(entries))
        if not entries and not self._wake.is_set():
            await self._rest()
        elif 0 < len(entries) < self._tuning.journal_batch and not self.current:
            await self._gather()

    async def _gather(self) -> None:
        """Let more changes come, until somebody waits for them."""
        self._awaited.clear()
        if not self._waiters:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._tuning.gather_seconds):
                    await self._awaited.wait()

    async def _rest(self) -> None:
        """Wait for the next commit; now and then ask the target for a sign of life."""
        read = self._current_state.phase.reads_postgres
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROBE_EVERY if read else RENEW_EVERY):
                await self._wake.wait()
                return
        await self._renew()

    async def _renew(self) -> None:
        """Prove the lease, and see that the target still has what it had."""
        before = self._copies_begun
        quiet = before == self._copies_ended
        record = await self._timed(self._target.renew(self.lease))
        # A copy under way explains another mark; a later renewal compares it.
        quiet = quiet and self._copies_begun == before
        if record.applied < self.position or (quiet and record.backfill != self.mark):
            raise TargetSetBackError(
                f"PostgreSQL has less than it had (change {record.applied}, was {self.position}); "
                "both stores are compared again"
            )

    def _advance(self, applied: int, entries: list[Entry]) -> None:
        if self.touched is not None:
            self.touched.update((entry.id, None) for entry in entries)
            if len(self.touched) > self._tuning.most_touched:
                self.touched = None
        self.applied = applied
        self._waiters.release(applied)

    def _approach(self, entries: int) -> None:
        """Come back from falling back, once the end of the journal is near."""
        wanted = (
            self._current_state.phase.reads_postgres
            and self._current_state.phase.writes_sqlite
            and self.mark.state is BackfillState.DONE
        )
        idle = self._returning is None or self._returning.done()
        near = (
            self.replica_status is ReplicaStatus.FOLLOWING and entries <= self._tuning.near_entries
        )
        if wanted and near and idle and self._clock.monotonic() >= self._return_at:
            self._return_at = self._clock.monotonic() + self._tuning.return_seconds
            self._returning = asyncio.create_task(self._return())

    async def _return(self) -> None:
        state = self._current_state.state

        async def barrier() -> None:
            await self._source.set_state(state)

        with contextlib.suppress(FenceTimeoutError, StorageError):
            async with self._current_state.changing:
                if self._current_state.state is state and await self.catch_up(
                    barrier, self._patience
                ):
                    _log.info("PostgreSQL has caught up and answers reads again")

    async def _prune(self) -> None:
        now = self._clock.monotonic()
        due = now - self._pruned_at >= self._tuning.prune_seconds
        if self.applied > self._pruned and due:
            upto = self.applied
            await self._source.prune(upto)
            self._pruned, self._pruned_at = upto, now

    async def _timed(self, work: Awaitable[T]) -> T:
        """Do something with the target that proves the lease; how long it takes is watched."""
        began = self._clock.monotonic()
        self._busy.append(began)
        try:
            done = await work
        finally:
            self._busy.remove(began)
        self.trouble = None
        self._guard.prove(began)
        return done

    async def _watch_silence(self) -> None:
        """Fall back when the target has been silent for too long.

        What was asked of it goes on: it may yet answer, and then has caught up at once.
        """
        self._guard.watch()
        while True:
            await asyncio.sleep(self._patience / 8)
            self._guard.beat(attached=self.attached)
            now = self._clock.monotonic()
            if now - min(self._busy, default=now) > self._patience:
                line = f"PostgreSQL has not answered for {self._patience:g} s"
                self.trouble = Blocker("POSTGRES_UNAVAILABLE", line + "; see that it runs")
                self.fall_back(line)

    def _waiter(self, sequence: int) -> asyncio.Future[bool]:
        self._awaited.set()
        return self._waiters.add(sequence)

    def _stand(self, standing: ReplicaStatus) -> None:
        if standing is not self.replica_status:
            self.replica_status = standing
            self._current_state.tell()

    def _detach(self, trouble: Blocker | None) -> None:
        # A pause counts as one of a server that was attached, whatever is noticed first.
        self._guard.beat(attached=self.attached)
        if trouble is not None and trouble != self.trouble:
            _log.warning("PostgreSQL is not followed: %s", trouble.detail)
        self.trouble = trouble
        self.fall_back(trouble.detail if trouble else "it is not followed any more")
        self._stand(ReplicaStatus.DETACHED)

    def _refused(self, error: PreconditionError) -> None:
        """Wait for what may pass; where another server has gone on, this one must end."""
        blocker = error.blockers[0]
        if blocker.reason == "LEASE_HELD" and self._guard.waits_for(blocker):
            self._detach(blocker)
        elif blocker.reason in {"LEASE_HELD", "LEASE_LOST", "SOURCE_IS_OLD"}:
            self._lose_lease(error)
        else:
            self._detach(blocker)

    def _lose_lease(self, error: StorageError) -> None:
        if self._current_state.state.completing:
            # In the last step PostgreSQL lets its follower go, which may hear of that before
            # this server does. Should another one have it after all, the next attempt tells.
            return
        self._guard.fenced = True
        _log.error("this server may not write any more: %s", error)
        self._detach(Blocker("NOT_THE_HOLDER", str(error)))
