"""Faults of a round: of the server, of PostgreSQL and of the disk."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from random import Random
from typing import TYPE_CHECKING

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.phase import Phase
from tests.simulation.misconfiguration import MISCONFIGURATIONS
from tests.simulation.service import RefusedError, UnknownError

if TYPE_CHECKING:
    from tests.simulation.world import World

NAME = "faults"


class Faults:
    """Injects one fault after the other; each is an entry of ``KINDS``."""

    def __init__(self, world: World) -> None:
        """Create the faults of ``world``."""
        self.world = world
        self.draw = Random(f"{world.seed}/faults")
        weights = WEIGHTS | PROFILE_WEIGHTS.get(world.settings.profile, {})
        self._weights = {name: weight for name, weight in weights.items() if weight}

    @property
    def over(self) -> bool:
        """Whether the round is over."""
        return self.world.over

    async def run(self) -> None:
        """Inject faults until the round ends."""
        world, draw = self.world, self.draw
        world.trip = self._inject_at_change
        for turn in itertools.count():
            await asyncio.sleep(draw.random() * world.settings.fault_every)
            if world.over:
                return
            name = draw.choices(list(self._weights), list(self._weights.values()))[0]
            seconds = draw.choice((0.05, 0.3, 1.0, 3.0)) * draw.random()
            if world.skips(NAME, turn):
                continue
            world.fault(name, f"{seconds:.3f} s")
            await KINDS[name](self, seconds)

    def _inject_at_change(self) -> None:
        """Inject a fault in the middle of a phase change."""
        how = self.draw.choice(("kill", "kill", "cut", "slow"))
        self.world.fault(f"mid-change {how}", "")
        if how == "kill":
            # A service manager may restart the server before a commit in progress has ended.
            self.world.service.kill(self.draw.choice((0.0, 0.3 * self.draw.random())))
        elif how == "cut":
            self.world.postgres.cut()
        else:
            self.slow_postgres(self.draw.choice((20, 80)), self.draw.random())

    def slow_postgres(self, factor: float, seconds: float) -> None:
        """Slow PostgreSQL down by ``factor`` for a while."""
        self.world.postgres.slow = factor
        self.world.later(seconds, self.world.postgres, "slow", self.world.settings.postgres_slow)


# ---------------------------------------------------------------------- the server


async def _kill(faults: Faults, _: float) -> None:
    faults.world.service.kill(faults.draw.choice((0.0, 0.1, 0.8)))


async def _stop(faults: Faults, _: float) -> None:
    await faults.world.service.stop()


async def _freeze(faults: Faults, seconds: float) -> None:
    faults.world.service.process.frozen_until = faults.world.loop.time() + seconds


async def _pause(faults: Faults, _: float) -> None:
    """Freeze the server for about the duration of a lease."""
    until = faults.world.loop.time() + 4.0 + 8.0 * faults.draw.random()
    faults.world.service.process.frozen_until = until


async def _clock(faults: Faults, _: float) -> None:
    jump = faults.draw.choice((-1e6, -3600.0, 0.5, 3600.0, 1e7))
    faults.world.service.process.clock_offset += jump


# ---------------------------------------------------------------------- PostgreSQL


async def _postgres_kill(faults: Faults, seconds: float) -> None:
    postgres = faults.world.postgres
    postgres.crash()
    await asyncio.sleep(seconds)
    postgres.start()
    if faults.draw.random() < 0.5:
        faults.slow_postgres(faults.draw.choice((20, 60)), 1.0)


async def _postgres_hang(faults: Faults, seconds: float) -> None:
    postgres = faults.world.postgres
    postgres.hold()
    await asyncio.sleep(seconds)
    postgres.release(faults.draw.random() < 0.5)


async def _postgres_cut(faults: Faults, _: float) -> None:
    faults.world.postgres.cut()


async def _postgres_slow(faults: Faults, seconds: float) -> None:
    faults.slow_postgres(faults.draw.choice((10, 50, 200)), seconds)


async def _postgres_full(faults: Faults, seconds: float) -> None:
    faults.world.postgres.fault = "full"
    faults.world.later(seconds, faults.world.postgres, "fault", None)


async def _reads_fail(faults: Faults, seconds: float) -> None:
    """Make only reads fail, as when a statement or the pool times out."""
    faults.world.postgres.read_failures = faults.draw.choice((0.05, 0.3, 0.9))
    faults.world.later(seconds, faults.world.postgres, "read_failures", 0.0)


async def _held_up(faults: Faults, seconds: float) -> None:
    postgres = faults.world.postgres
    postgres.lag = faults.draw.choice((0.05, 0.2, 0.5))
    faults.world.later(seconds, postgres, "lag", faults.world.settings.lag)


async def _set_back(faults: Faults, seconds: float) -> None:
    """Restore an earlier state of PostgreSQL, with or without lost connections."""
    world, postgres = faults.world, faults.world.postgres
    saved = postgres.snapshot()
    await asyncio.sleep(faults.draw.random() * 0.5)
    noticed, down = faults.draw.random() < 0.5, faults.draw.random() < 0.5
    record = postgres.record
    finished = record is None or record.phase is Phase.POSTGRES_ONLY
    if world.over or finished or saved.record is None:
        # While PostgreSQL is the only store, no other copy of its writes exists. Without a
        # migration record, only an operator can continue.
        return
    if world.disk.state.phase.reads_postgres:
        # Without a lost connection, reads are stale until the next lease renewal: a documented
        # limitation (docs/explanation/reliability.md).
        noticed = True
    if noticed and down:
        postgres.crash()
        await asyncio.sleep(seconds)
        if faults.over:  # The server was started again and may have completed the migration.
            return
    postgres.restore(saved, noticed=noticed)
    postgres.start()
    world.was_set_back()


async def _row_altered(faults: Faults, _: float) -> None:
    """Alter a row directly in PostgreSQL, and repair it as an operator would.

    Done only before PostgreSQL answers reads; afterwards a client could see the altered row.
    """
    world, postgres = faults.world, faults.world.postgres
    live = world.service.live
    early = {Phase.DUAL_WRITE, Phase.BACKFILL}
    if live is None or world.changes_in_progress:
        return
    if {live.phase, world.disk.state.phase} - early or not postgres.rows:
        return
    id = faults.draw.choice(list(postgres.rows))
    postgres.rows[id] = postgres.rows[id]._replace(content="altered directly in the database")
    world.altered, world.was_altered = id, True
    while not world.over:
        if await _repaired(faults, id):
            world.altered = ""
            return
        await asyncio.sleep(0.1)


async def _repaired(faults: Faults, id: str) -> bool:
    """Repair once; return whether the row has its original value."""
    world, postgres = faults.world, faults.world.postgres
    with contextlib.suppress(UnknownError, RefusedError, StorageError):
        await world.service.call(NAME, "repair", repair, deadline=30.0, lossy=False)
    row = postgres.rows.get(id)
    return row is None or row == world.disk.messages.get(id) or "altered" not in row.content


async def repair(live: MigratingService) -> None:
    """Verify the stores and journal the differing rows again."""
    async with aclosing(live.control.verify(repair=True)) as steps:  # type: ignore[type-var]
        async for _ in steps:
            pass


# ---------------------------------------------------------------------- the disk


async def _disk_slow(faults: Faults, seconds: float) -> None:
    world = faults.world
    world.disk.slow = faults.draw.choice((10.0, 50.0))
    world.later(seconds, world.disk, "slow", world.settings.disk_slow)


async def _disk_full(faults: Faults, seconds: float) -> None:
    faults.world.disk.fault = "full"
    faults.world.later(seconds / 2, faults.world.disk, "fault", None)


async def _disk_errors(faults: Faults, seconds: float) -> None:
    faults.world.disk.fault = "eio"
    faults.world.later(seconds / 2, faults.world.disk, "fault", None)


KINDS: dict[str, Callable[[Faults, float], Awaitable[None]]] = {
    "server killed": _kill,
    "server stopped": _stop,
    "server frozen": _freeze,
    "server paused": _pause,
    "clock jumps": _clock,
    "PostgreSQL killed": _postgres_kill,
    "PostgreSQL hangs": _postgres_hang,
    "connections cut": _postgres_cut,
    "PostgreSQL slow": _postgres_slow,
    "PostgreSQL's disk full": _postgres_full,
    "reads of PostgreSQL fail": _reads_fail,
    "rows delayed": _held_up,
    "PostgreSQL set back": _set_back,
    "row altered": _row_altered,
    "disk slow": _disk_slow,
    "disk full": _disk_full,
    "disk errors": _disk_errors,
    **MISCONFIGURATIONS,
}

WEIGHTS = {
    "server killed": 2.0,
    "server stopped": 1.0,
    "server frozen": 1.0,
    "server paused": 0.2,
    "clock jumps": 1.0,
    "PostgreSQL killed": 1.0,
    "PostgreSQL hangs": 1.0,
    "connections cut": 2.0,
    "PostgreSQL slow": 2.0,
    "PostgreSQL's disk full": 1.0,
    "reads of PostgreSQL fail": 1.0,
    "rows delayed": 2.0,
    "PostgreSQL set back": 0.3,
    "row altered": 0.3,
    "disk slow": 1.0,
    "disk full": 1.0,
    "disk errors": 1.0,
    **dict.fromkeys(MISCONFIGURATIONS, 0.0),
}
"""Relative frequency of each fault."""

PROFILE_WEIGHTS = {
    "flap": dict.fromkeys(("server stopped", "clock jumps", "disk full", "disk errors"), 0.0)
    | {"reads of PostgreSQL fail": 8.0, "connections cut": 8.0, "PostgreSQL slow": 4.0},
    "copy": {"PostgreSQL set back": 0.0, "PostgreSQL hangs": 0.5},
    "restore": {"PostgreSQL set back": 12.0, "server paused": 0.0},
    "last": {"PostgreSQL set back": 0.0, "server paused": 0.0},
    "mistakes": dict.fromkeys(WEIGHTS, 0.0)
    | dict.fromkeys(("server killed", "PostgreSQL slow", "disk slow"), 1.0)
    | dict.fromkeys(MISCONFIGURATIONS, 4.0),
}
"""Frequencies that a profile changes."""
