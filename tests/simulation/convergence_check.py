"""End of a round: all faults end, all data is read back, and both stores become equal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.phase import Phase
from tests.simulation.clients import SESSIONS, Client
from tests.simulation.faults import repair
from tests.simulation.invariants import resurrected
from tests.simulation.service import RefusedError, UnknownError
from tests.simulation.session_actions import wrong_sessions
from tests.support.checker import WrongAnswerError

if TYPE_CHECKING:
    from tests.simulation.world import World

WORKERS_SECONDS = 100.0
"""Seconds until every call has ended without faults; longer than any of its time-outs."""

SERVE_SECONDS = 60.0
CONVERGE_SECONDS = 120.0
READ_ATTEMPTS = 50


class ConvergenceCheck:
    """Ends a round and checks the final state."""

    def __init__(self, world: World) -> None:
        """Check ``world``."""
        self._world = world

    async def run(self, workers: list[asyncio.Task[None]]) -> None:
        """End the round and report every violation."""
        await self.end_workers(workers)
        world = self._world
        if world.violations:
            return
        if not await self._eventually(lambda: world.service.serving, SERVE_SECONDS):
            world.violation(f"no server within {SERVE_SECONDS:g} s: {world.service.refused}")
            return
        await self._read_back()
        await self._repair()
        await self._converge()

    async def end_workers(self, workers: list[asyncio.Task[None]]) -> None:
        """End all faults and wait for all actors."""
        self._end_faults()
        await asyncio.wait(workers, timeout=WORKERS_SECONDS)
        self._end_faults()
        if not all(worker.done() for worker in workers):
            self._world.violation(f"a call did not end within {WORKERS_SECONDS:g} s")
            return
        for worker in workers:
            worker.result()

    def _end_faults(self) -> None:
        world = self._world
        world.loop.cancel_trips()
        world.lossy = 0.0
        world.postgres.release(False)
        world.postgres.start()
        world.postgres.slow, world.postgres.lag, world.postgres.read_failures = 1.0, 0.0, 0.0
        world.postgres.fault = None
        world.disk.slow, world.disk.fault = 1.0, None
        world.service.process.frozen_until = 0.0

    async def _eventually(self, holds: Callable[[], bool], seconds: float) -> bool:
        until = self._world.loop.time() + seconds
        while not holds() and self._world.loop.time() < until:
            await asyncio.sleep(0.1)
        return holds()

    async def _read_back(self) -> None:
        """Read every message as a client."""
        world = self._world
        client = Client(world, 0)
        for _ in range(READ_ATTEMPTS):
            try:
                await client.batch_get(list(world.checker.ids))
                for session in SESSIONS:
                    await client.pages(session)
                await client.check_files()
            except WrongAnswerError as exc:
                world.violation(f"final read: {exc}")
            except (UnknownError, RefusedError):
                await asyncio.sleep(0.2)
                continue
            return
        world.violation("the final reads failed")

    async def _repair(self) -> None:
        """Repair a row that was altered directly, if the fault ended before its own repair."""
        world = self._world
        live = world.service.live
        if not world.altered or live is None or not live.phase.journals:
            return
        for _ in range(READ_ATTEMPTS):
            with contextlib.suppress(UnknownError, RefusedError, StorageError):
                await world.service.call("operator", "repair", repair, deadline=30.0, lossy=False)
                return
        world.violation("a row that was altered directly in PostgreSQL cannot be repaired")

    async def _converge(self) -> None:
        """Check that both stores are equal once the journal is empty."""
        world = self._world
        live = world.service.live
        assert live is not None
        if live.phase is Phase.POSTGRES_ONLY:
            archived = world.disk.state.phase is Phase.POSTGRES_ONLY
            if not archived and not live._cutover.unfinished:
                world.violation("the phase is POSTGRES_ONLY, but the file is not an archive")
            return
        if not live.phase.journals:
            return
        if not await self._eventually(lambda: self._has_converged(live), CONVERGE_SECONDS):
            world.violation(self._not_converged(live))
            return
        self._compare()
        reads = live.phase is Phase.READ_POSTGRES
        if reads and not await self._eventually(
            lambda: live._replicator.fallback.current, CONVERGE_SECONDS
        ):
            world.violation("PostgreSQL did not resume answering reads")

    def _has_converged(self, live: MigratingService) -> bool:
        world = self._world
        disk, record = world.disk, world.postgres.record
        replicator = live._replicator
        # The last revisions may be those of repairs whose entries are pruned. PostgreSQL may also
        # have been set back last of all, and not be attached again yet.
        lagging = not replicator.fallback.attached or replicator.fallback.applied < disk.revision
        if record is None or lagging or record.applied != replicator.session.position:
            return False
        if disk.journal_status(record.applied).rows:
            return False
        copied = record.backfill.state is BackfillState.DONE
        return copied or live.phase is Phase.DUAL_WRITE or disk.state.paused

    def _not_converged(self, live: MigratingService) -> str:
        world, replicator = self._world, live._replicator
        return (
            f"no convergence within {CONVERGE_SECONDS:g} s: {live.phase.slug}, "
            f"{replicator.fallback.status.value}, fenced {replicator.session.fenced}, "
            f"trouble {replicator.session.trouble}, "
            f"record {world.postgres.record}, SQLite at {world.disk.revision}, "
            f"{len(world.disk.journal)} entries, backfill {live._backfill.status}"
        )

    def _compare(self) -> None:
        world = self._world
        disk, postgres = world.disk, world.postgres
        record = postgres.record
        complete = record is not None and record.backfill.state is BackfillState.DONE
        for id in dict.fromkeys((*disk.messages, *postgres.rows)):
            truth, copy = disk.messages.get(id), postgres.rows.get(id)
            due = complete or (truth is not None and truth.revision > disk.state.base)
            if truth != copy and (due or copy is not None):
                world.violation(f"Convergence: {id}: SQLite {truth}, PostgreSQL {copy}")
                return
        copied = complete or (record is not None and record.backfill.carried)
        for id in dict.fromkeys((*disk.sessions, *postgres.sessions)):
            one, other = disk.sessions.get(id), postgres.sessions.get(id)
            due = copied or (one is not None and one.revision > disk.state.base)
            if one != other and (due or other is not None):
                world.violation(f"Convergence: session {id}: SQLite {one}, PostgreSQL {other}")
                return
        for line in wrong_sessions(world):
            world.violation(f"Sessions: {line}")
            return
        for id in dict.fromkeys((*disk.files, *postgres.files)):
            here, there = disk.files.get(id), postgres.files.get(id)
            due = copied or (here is not None and here.revision > disk.state.base)
            if here != there and (due or there is not None):
                world.violation(f"Convergence: file {id}: SQLite {here}, PostgreSQL {there}")
                return
        for line in resurrected(world):
            world.violation(f"NoResurrection: {line}")
            return
