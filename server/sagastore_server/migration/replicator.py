"""Replicator: applies the source's journal to the target, in order, and prunes it.

The replicator is the only component that applies the journal. For each entry the target gets the
row that the source has *now* under its id, and commits it together with the journal position
(`TargetSession.position`). So a crash at any point repeats at most changes that the target has
already, and those are idempotent.

Its main loop has two states:

- *attaching* (`_attach`): take the lease, let both stores agree on the phase, and continue from
  the position that the target has. Repeated with backoff while the target is unavailable or
  refuses, and again after a lost connection or a set-back (`TargetSession.must_reattach`): what
  answers then may be a restored PostgreSQL or a standby that lacks the last commits.
- *applying* (`_step`): read a batch of the journal, apply it, prune what is confirmed, and wait
  for the next commit. Without commits the lease is renewed.

Two more components act on the same target: `TargetSession` (`lease.py`) proves the lease and
detects set-backs; `Fallback` (`fallback.py`) decides whether writes wait for the target and
whether it answers reads. `Replicator` owns both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from sagastore_server.migration.attachment import attach, wait_for_lost_lease
from sagastore_server.migration.current_state import MigrationContext
from sagastore_server.migration.fallback import Fallback, ReplicaStatus
from sagastore_server.migration.lease import TargetSession
from sagastore_server.migration.timeouts import bounded, stop_within
from sagastore_server.runtime.supervisor import SupervisedTask
from sagastore_server.storage.errors import Blocker, FencedError, PreconditionError, StorageError
from sagastore_server.storage.replication import Entry
from sagastore_server.storage.sessions import RecordKind

CHANGING = 0.005
"""Seconds between checks while a committed change of phase is not in force yet: a few turns of
the event loop."""

PROBE_EVERY, RENEW_EVERY = 0.25, 2.0
"""Seconds between renewals of the lease of an idle target: in READ_POSTGRES, where they also
detect a set-back, and in the other phases."""

_log = logging.getLogger(__name__)


class Replicator:
    """Applies the journal from `start` to `stop`."""

    def __init__(self, context: MigrationContext, patience: float) -> None:
        """Prepare to replicate.

        Args:
            context: Both stores, and what the parts of the migration share.
            patience: Seconds for which the target may be silent before SQLite answers.

        """
        self._source = context.source
        self._target = context.target
        self._current_state = context.current_state
        self._clock = context.environment.clock
        self._tuning = context.tuning
        self._supervisor = context.supervisor
        self._patience = patience
        self._wake = asyncio.Event()
        self.session = TargetSession(context, self._wake)
        self.fallback = Fallback(context, self.session, patience, self._wake)
        self.touched: dict[tuple[RecordKind, str], None] | None = None
        """Rows applied since `watch_changes`; None: not recorded, or too many."""
        self._pruned = 0
        self._pruned_at = 0.0
        self._tasks: list[SupervisedTask] = []
        self._source.on_commit(self._wake.set)
        self._target.on_connection_loss(self._connection_lost)

    def start(self) -> None:
        """Start to replicate. Does nothing if it runs."""
        if not self._tasks:
            start = self._supervisor.start
            self._tasks = [
                start("journal-replicator", self._run),
                start("silence-watchdog", self.fallback.watch_silence),
            ]

    async def stop(self) -> None:
        """Stop replicating, and release the lease if the target answers."""
        tasks, self._tasks = self._tasks, []
        await stop_within(tasks, self._patience)
        was_attached = self.fallback.attached
        await self.fallback.stop()
        if was_attached:
            with contextlib.suppress(StorageError):
                releasing = self._target.release(self.session.lease)
                await bounded(releasing, self._patience, self._target.place)

    def _connection_lost(self) -> None:
        """Compare the target again before it answers reads.

        The next connection may lead to a restored PostgreSQL, or to a standby that lacks the
        last commits.
        """
        if self.fallback.attached:
            self.fallback.detach(None)
            self.session.reattach()

    def lease_lost(self, error: FencedError) -> None:
        """Refuse calls until it is known whether another server has the lease."""
        # After `stop` and during the cutover, requests fail because the lease was released.
        if self._current_state.state.completing or not self._tasks:
            return
        blocker = Blocker(
            "LEASE_LOST", f"{error}; this server is checking whether that server is alive"
        )
        self.session.guard.contest(blocker)
        self.fallback.detach(blocker)
        self.session.reattach()

    def watch_changes(self) -> None:
        """Start to record which rows change, for a later verification of these."""
        self.touched = {}

    # ------------------------------------------------------------------ the main loop

    async def _run(self) -> None:
        pause = self._tuning.reconnect_first
        while not self.session.fenced:
            try:
                await self._attach()
                while not self.session.must_reattach:
                    await self._step()
                    pause = self._tuning.reconnect_first
            except FencedError as exc:
                self.lease_lost(exc)
            except PreconditionError as exc:
                blocker = self.session.refused(exc)
                if blocker is not None:
                    self.fallback.detach(blocker)
            except StorageError as exc:
                self.fallback.detach(Blocker("POSTGRES_UNAVAILABLE", str(exc)))
            except Exception:
                # The supervisor logs the error and restarts this loop.
                line = "replication failed with an internal error; see the server's log"
                self.fallback.detach(Blocker("POSTGRES_UNAVAILABLE", line))
                raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._tuning.reconnect_most)

    async def _attach(self) -> None:
        session = self.session
        session.must_reattach = False
        again = session.guard.held
        if again:
            await wait_for_lost_lease(self._target, session.lease, self._patience)
        record = await session.request(
            attach(self._source, self._target, self._current_state, session.lease, again=again)
        )
        session.attached(record)
        self.fallback.applied, self._pruned = record.applied, 0
        self.fallback.set_status(ReplicaStatus.FOLLOWING)
        self.fallback.waiters.release(record.applied)
        _log.info("replication started: PostgreSQL has the journal up to %d", record.applied)

    async def _step(self) -> None:
        self._wake.clear()
        committed, state = self._source.committed, self._current_state.state
        if self.session.guard.contested is not None:
            await self.session.renew()
        entries = await self._source.journal(self.fallback.applied, self._tuning.journal_batch)
        if entries:
            await self._apply(entries)
        elif self.fallback.applied < committed and state.phase.journals:
            if (await self._source.state()).epoch == state.epoch:
                # Everything committed before the journal was read has been applied.
                self._advance(committed, entries)
            else:
                # A change of phase is on disk and not in force yet. It may have emptied the
                # journal, so an empty journal does not prove that the target has everything.
                self._wake.set()
                await asyncio.sleep(CHANGING)
        await self._prune()
        self.fallback.consider_return(len(entries))
        if not entries and not self._wake.is_set():
            await self._wait_for_commit()
        elif 0 < len(entries) < self._tuning.journal_batch and not self.fallback.current:
            await self._gather()

    async def _apply(self, entries: list[Entry]) -> None:
        session, started = self.session, self._clock.monotonic()
        await session.request(self._target.apply(session.lease, entries, after=session.position))
        session.apply_seconds = self._clock.monotonic() - started
        session.position = entries[-1].sequence
        self._advance(session.position, entries)

    async def _gather(self) -> None:
        """Wait for more changes, until a caller waits for the target."""
        waiters = self.fallback.waiters
        waiters.added.clear()
        if not waiters:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._tuning.gather_seconds):
                    await waiters.added.wait()

    async def _wait_for_commit(self) -> None:
        """Wait for the next commit, and renew the lease if none comes in time."""
        read = self._current_state.phase.reads_postgres
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROBE_EVERY if read else RENEW_EVERY):
                await self._wake.wait()
                return
        await self.session.renew()

    def _advance(self, applied: int, entries: list[Entry]) -> None:
        if self.touched is not None:
            for entry in entries:
                self.touched[entry.kind, entry.id] = None
                if entry.session is not None:
                    self.touched[RecordKind.SESSION, entry.session.session_id] = None
            if len(self.touched) > self._tuning.most_touched:
                self.touched = None
        self.fallback.advance(applied)

    async def _prune(self) -> None:
        now = self._clock.monotonic()
        due = now - self._pruned_at >= self._tuning.prune_seconds
        if self.fallback.applied > self._pruned and due:
            upto = self.fallback.applied
            await self._source.prune(upto)
            self._pruned, self._pruned_at = upto, now
