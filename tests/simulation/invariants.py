"""Invariants of the specification, asserted on the real code's state after every callback.

They concern the memory of the server and both stores at one instant, which no client can observe,
so they detect a fault long before an answer is wrong. `tools/spec/Migration.tla` defines them under
the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sagastore_server.migration.fallback import ReplicaStatus
from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.phase import Phase

if TYPE_CHECKING:
    from tests.simulation.world import World


class Watcher:
    """Checks the invariants on one server's memory after each change."""

    def __init__(self, world: World, live: MigratingService) -> None:
        """Watch ``live``."""
        self._world = world
        self._live = live
        self._process = world.service.process
        self._replicator = live._replicator
        self._seen: tuple[ReplicaStatus, int, Phase] = (ReplicaStatus.DETACHED, 0, live.phase)

    def look(self) -> None:
        """Check the invariants if the state has changed since the last call."""
        replicator = self._replicator
        now = (replicator.fallback.status, replicator.fallback.applied, self._live.phase)
        if now == self._seen:
            return
        before, self._seen = self._seen, now
        if self._process.dead:
            return
        self._note(before, now)
        standing, applied, phase = now
        if standing is ReplicaStatus.DETACHED or not phase.journals:
            return
        self._assert("AppliedIsTrue", applied)
        if standing is ReplicaStatus.CURRENT and before[0] is not ReplicaStatus.CURRENT:
            self._assert("CurrentHasEverything", self._world.disk.revision)

    def _note(self, before: tuple[object, ...], now: tuple[ReplicaStatus, int, Phase]) -> None:
        world, name = self._world, self._process.name
        if before[0] is not now[0]:
            world.note(name, "standing", standing=now[0].value, applied=now[1])
        if before[1] != now[1]:
            world.note(name, "applied", applied=now[1])
        if before[2] is not now[2]:
            world.note(name, "phase", phase=now[2].value)

    def _assert(self, name: str, upto: int) -> None:
        """Assert that PostgreSQL has every change up to a revision."""
        world = self._world
        state, record = world.disk.state, world.postgres.record
        in_force = state.epoch == self._live._current_state.state.epoch and state.phase.journals
        taken = record is not None and record.holder != world.disk.holder
        if not in_force or record is None or record.phase is Phase.POSTGRES_ONLY or taken:
            return
        if world.set_back_undetected(self._replicator.session.attachments):
            return
        world.counts[f"asserted {name}"] += 1
        for lack in lacking(world, upto):
            world.violation(f"{name}: up to {upto}, base {state.base}, but PostgreSQL lacks {lack}")
            return


def lacking(world: World, upto: int) -> Iterator[str]:
    """Yield the changes that PostgreSQL should have but lacks.

    That is every journalled change up to ``upto`` (revisions above ``base``) and, once the backfill
    is done, every change up to ``upto``.
    """
    disk, postgres = world.disk, world.postgres
    record = postgres.record
    complete = record is not None and record.backfill.state is BackfillState.DONE
    base = disk.state.base
    for key, message in disk.messages.items():
        if base < message.revision <= upto or (complete and message.revision <= upto):
            row, tomb = postgres.rows.get(key), postgres.tombs.get(key, 0)
            found = max(row.revision if row else 0, tomb)
            if found < message.revision:
                yield f"{key} at {message.revision}, has {found}"
    copied = complete or (record is not None and record.backfill.carried)
    for key, session in disk.sessions.items():
        if session.revision <= upto and (session.revision > base or copied):
            there = postgres.sessions.get(key)
            if there is None or there.revision < session.revision:
                yield f"session {key} at {session.revision}, has {there and there.revision}"
    yield from _lacking_files(world, upto, copied=copied)
    for key, revision in disk.buried.items():
        row = postgres.rows.get(key)
        due = base < revision <= upto or (complete and revision <= upto)
        if due and key not in disk.messages and row is not None and row.revision < revision:
            yield f"the deletion of {key} at {revision}, has {row.revision}"


def _lacking_files(world: World, upto: int, *, copied: bool) -> Iterator[str]:
    disk, postgres = world.disk, world.postgres
    for key, record in disk.files.items():
        if record.revision <= upto and (record.revision > disk.state.base or copied):
            row, tomb = postgres.files.get(key), postgres.file_tombs.get(key, 0)
            found = max(row.revision if row else 0, tomb)
            if found < record.revision:
                yield f"file {key} at {record.revision}, has {found}"
    for key, revision in disk.buried_files.items():
        row = postgres.files.get(key)
        due = revision <= upto and (revision > disk.state.base or copied)
        if due and key not in disk.files and row is not None and row.revision < revision:
            yield f"the deletion of file {key} at {revision}, has {row.revision}"


def resurrected(world: World) -> Iterator[str]:
    """Yield rows of PostgreSQL that are older than their tombstone."""
    for key, row in world.postgres.rows.items():
        tomb = world.postgres.tombs.get(key, 0)
        if tomb > row.revision:
            yield f"{key} at {row.revision}, deleted at {tomb}"
    for key, record in world.postgres.files.items():
        tomb = world.postgres.file_tombs.get(key, 0)
        if tomb > record.revision:
            yield f"file {key} at {record.revision}, deleted at {tomb}"
