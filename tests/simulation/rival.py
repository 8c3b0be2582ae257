"""A rival: a second server on a copy of the file, while the first one stands still.

The copy is taken and served elsewhere as an operator might do who believes the first machine
lost. The lease tells the two apart: the rival serves once it has run out, and from then on
the first server must not acknowledge anything, however long it takes to learn of it.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

from sagastore_server.migration.migrating_service import MigratingService
from tests.simulation.mistakes import copied
from tests.simulation.models.process import Process
from tests.simulation.service import make_live

if TYPE_CHECKING:
    from tests.simulation.world import World

NAME = "rival"
START_SECONDS = 40.0
"""A start may take: the wait for a lease, and PostgreSQL's time-outs."""

FENCE_SECONDS = 30.0
"""Until a server that was taken over from has learned of it, after it runs again."""


async def take_over(world: World) -> None:
    """Freeze the server for longer than its lease, serve a copy of its file, and watch."""
    draw = Random(f"{world.seed}/rival")
    await asyncio.sleep(0.3 + draw.random())
    world.service.process.frozen_until = world.loop.time() + 12.0 + 8.0 * draw.random()
    world.fault("taken over", "")
    process = Process(NAME)
    live = make_live(world, copied(world.disk, draw, "other:2:2"), process, world.postgres)
    world.rival = live
    opening = world.loop.create_task(live.backend.open(), name=NAME, context=process.context)
    done, _ = await asyncio.wait({opening}, timeout=START_SECONDS)
    if not done:
        world.violation("the rival neither serves nor ends")
    elif opening.exception() is None:
        world.note(NAME, "serves", phase=live.phase.slug)
        await _until_fenced(world, live)
    process.dead = True


async def _until_fenced(world: World, rival: MigratingService) -> None:
    """See that the first server learns that it was taken over from."""
    first = world.service.live
    until = world.loop.time() + FENCE_SECONDS
    while first is not None and not first._replicator.session.fenced and world.loop.time() < until:
        await asyncio.sleep(0.05)
    if (
        rival._replicator.fallback.attached
        and first is not None
        and not first._replicator.session.fenced
    ):
        standing = first._replicator.fallback.status.value
        world.violation(f"the first server does not know that it was taken over from: {standing}")
    # Clients go on for a moment: nothing of this may be acknowledged.
    await asyncio.sleep(0.5)
