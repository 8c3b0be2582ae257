"""Second server on a copy of the file while the first one is frozen.

An operator who considers the first machine lost might serve a copy of its file elsewhere. The lease
separates the servers: the second one serves once the lease has expired, and from then on the first
one must not acknowledge any write, however long it takes to detect the takeover.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

from sagastore_server.migration.migrating_service import MigratingService
from tests.simulation.misconfiguration import copied
from tests.simulation.models.process import Process
from tests.simulation.service import make_live

if TYPE_CHECKING:
    from tests.simulation.world import World

NAME = "rival"
START_SECONDS = 40.0
"""Maximum duration of a start in seconds: the wait for a lease, and PostgreSQL's time-outs."""

FENCE_SECONDS = 30.0
"""Seconds in which a fenced server must detect the takeover after it resumes."""


async def take_over(world: World) -> None:
    """Freeze the server for longer than its lease, serve a copy of its file, and watch."""
    draw = Random(f"{world.seed}/rival")
    await asyncio.sleep(0.3 + draw.random())
    world.service.process.frozen_until = world.loop.time() + 12.0 + 8.0 * draw.random()
    world.fault("taken over", "")
    process = Process(NAME)
    live = make_live(world, copied(world.disk, draw, "other:2:2"), process, world.postgres)
    world.second_server = live
    opening = world.loop.create_task(live.backend.open(), name=NAME, context=process.context)
    done, _ = await asyncio.wait({opening}, timeout=START_SECONDS)
    if not done:
        world.violation("the second server neither serves nor ends")
    elif opening.exception() is None:
        world.note(NAME, "serves", phase=live.phase.slug)
        await _until_fenced(world, live)
    process.dead = True


async def _until_fenced(world: World, second_server: MigratingService) -> None:
    """Check that the first server detects the takeover."""
    first = world.service.live
    until = world.loop.time() + FENCE_SECONDS
    while first is not None and not first._replicator.session.fenced and world.loop.time() < until:
        await asyncio.sleep(0.05)
    if (
        second_server._replicator.fallback.attached
        and first is not None
        and not first._replicator.session.fenced
    ):
        status = first._replicator.fallback.status.value
        world.violation(f"the first server did not detect the takeover: {status}")
    # Clients continue for a moment; none of their writes may be acknowledged.
    await asyncio.sleep(0.5)
