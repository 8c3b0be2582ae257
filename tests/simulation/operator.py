"""Operator of a round: changes phases, pauses, verifies and repairs at random."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing
from random import Random
from typing import TYPE_CHECKING

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.storage.errors import PreconditionError
from sagastore_server.storage.phase import Phase
from tests.simulation.service import RefusedError, UnknownError

if TYPE_CHECKING:
    from tests.simulation.world import World

_ACTIONS = {
    "forward": 12.0,
    "back": 2.5,
    "jump": 0.3,
    "control": 1.0,
    "verify": 2.0,
    "repair": 1.0,
    "look": 2.0,
}

WATCHED = 3
"""Number of status messages that a watch waits for."""

NAME = "operator"
LONGEST_TRIP = 10
"""A fault in the middle of a phase change occurs up to 2 ** this many callbacks after it was
scheduled; a change takes some hundred.
"""


class Operator:
    """Acts on the service's control, as ``sagastore migrate`` does."""

    def __init__(self, world: World, name: str = NAME) -> None:
        """Control the service of ``world`` as ``name``."""
        self._name = name
        self._world = world
        self._service = world.service
        self._draw = Random(f"{world.seed}/{name}")

    async def run(self) -> None:
        """Act until the round ends."""
        world = self._world
        for turn in itertools.count():
            await asyncio.sleep(self._draw.random() * world.settings.operate_every)
            if world.over:
                return
            action = self._draw.choices(list(_ACTIONS), list(_ACTIONS.values()))[0]
            live = self._service.live
            if live is None or not self._service.serving or world.skips(self._name, turn):
                continue
            try:
                await self._act(action, live.phase)
            except (UnknownError, RefusedError, PreconditionError):
                continue

    async def walk_to(self, phase: Phase) -> None:
        """Advance to ``phase`` without faults."""
        while (live := self._service.live) is None or live.phase is not phase:
            following = None if live is None else live.phase.following
            try:
                if following is not None:
                    await self._change(following)
            except (PreconditionError, UnknownError, RefusedError):
                await asyncio.sleep(0.05)

    async def _act(self, action: str, phase: Phase) -> None:
        if action == "forward":
            last = phase.following is Phase.POSTGRES_ONLY
            if phase.following is not None and (self._world.settings.completes or not last):
                await self._change(phase.following)
        elif action == "back":
            if phase.preceding is not None:
                await self._change(phase.preceding)
        elif action == "jump":
            await self._change(self._draw.choice(list(Phase)), dry_run=True)
        elif action == "control":
            await self._control()
        elif action == "look":
            await self._service.call(self._name, "look", _look, deadline=10.0)
        else:
            await self._verify(repair=action == "repair")

    async def _change(self, phase: Phase, *, dry_run: bool = False) -> None:
        world, draw = self._world, self._draw
        if world.altered and phase.reads_postgres:
            # A row that was altered directly must be repaired before PostgreSQL answers reads.
            return
        if phase is Phase.POSTGRES_ONLY and draw.random() < world.settings.kills_at_the_end:
            world.kill_at_the_end = world.trip is not None
        accept = phase is not Phase.DUAL_WRITE or draw.random() < 0.3
        trip = world.trip
        if trip is not None and draw.random() < world.settings.trips:
            world.loop.after_steps(int(2 ** (draw.random() * LONGEST_TRIP)), trip)
        world.changes_in_progress += 1
        try:
            await self._service.call(
                self._name,
                f"change to {phase.slug}",
                lambda live: live.control.change_phase(
                    phase, dry_run=dry_run, accept_quarantine=accept
                ),
                deadline=60.0,
                lossy=False,
            )
        finally:
            world.changes_in_progress -= 1
        world.counts["changes"] += 1

    async def _control(self) -> None:
        draw = self._draw
        paused = draw.random() < 0.3
        size, rate = draw.choice((1, 2, 50)), draw.choice((0, 200))
        await self._service.call(
            self._name,
            f"control paused={paused} batch={size} rate={rate}",
            lambda live: live.control.control_backfill(
                paused=paused, batch_size=size, max_rows_per_second=rate
            ),
            deadline=5.0,
        )

    async def _verify(self, *, repair: bool) -> None:
        async def run(live: MigratingService) -> int:
            found = 0
            async with aclosing(live.control.verify(repair=repair)) as steps:  # type: ignore[type-var]
                async for progress in steps:
                    found = progress.mismatch_count
            return found

        set_back = self._world.set_back
        what = "repair" if repair else "verify"
        found = await self._service.call(self._name, what, run, deadline=30.0, lossy=False)
        # After a set-back that is not detected yet, rows missing in the target are differences.
        world = self._world
        excused = set_back != world.set_back or world.recently_set_back() or world.was_altered
        if found and not excused:
            world.violation(f"the service's own verification: {found} rows differ")


async def _look(live: MigratingService) -> None:
    """Request all status information that operators, probes and dashboards use."""
    control = live.control
    await control.status()
    await control.inventory()
    await control.backlog()
    control.snapshot()
    await live.backend.health()
    assert live.place
    assert live.can_go_away in {True, False}
    seen = 0
    async with aclosing(control.watch()) as answers:  # type: ignore[type-var]
        async for _ in answers:
            seen += 1
            if seen == WATCHED:
                break
