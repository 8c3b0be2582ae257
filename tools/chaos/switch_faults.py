"""Faults inside the server process, controlled by `fault_switches`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from tools.chaos.cluster import POSTGRES
from tools.chaos.fault_registry import Scene, fault


@fault("clock jumps", (0.3, 3.0), weight=2, needs="clock")
async def _clock_jumps(scene: Scene) -> AsyncIterator[None]:
    jump = scene.rng.choice([-86_400 * 400, -3600, -5, -0.5, 0.5, 5, 3600, 86_400 * 400])
    scene.marks.mark("clock", seconds=jump)
    with scene.cluster.switch("clock", jump, after=scene.rng.choice([0.0, 0.0, jump / 2])):
        yield


@fault("deliveries to PostgreSQL delayed", (1.0, 4.0), weight=2, needs="clock")
async def _held_up(scene: Scene) -> AsyncIterator[None]:
    seconds = scene.rng.choice([0.05, 0.2, 0.5])
    scene.marks.mark("held up", seconds=seconds)
    with scene.cluster.switch("delivery", seconds):
        yield


@fault("reads of PostgreSQL fail", (2.0, 5.0), weight=2, needs="clock")
async def _reads_fail(scene: Scene) -> AsyncIterator[None]:
    """Make a share of the reads time out; usually writes are late or slow at the same time."""
    share, late = scene.rng.choice([0.1, 0.3, 0.6]), scene.rng.choice([0.0, 0.1, 0.25, 0.25])
    slow = scene.rng.choice([0.0, 0.05])
    scene.marks.mark("reads fail", share=share, late=late, slow=slow)
    with (
        scene.cluster.switch("postgres reads fail", share),
        scene.cluster.switch("commits wait", slow),
        scene.cluster.switch("delivery", late),
    ):
        yield


@fault("reads of SQLite wait", (2.0, 6.0), weight=2, needs="clock")
async def _reads_wait(scene: Scene) -> AsyncIterator[None]:
    """Delay the acquisition of read connections, as when long searches occupy all of them.

    Usually PostgreSQL also loses its connections repeatedly and receives changes late, so that
    reads alternate between the stores.
    """
    seconds, late = scene.rng.choice([0.1, 0.3, 0.5]), scene.rng.choice([0.0, 0.1, 0.3, 0.3])
    flaps = scene.rng.random() < 0.8
    scene.marks.mark("reads wait", seconds=seconds, late=late, flaps=flaps)
    with (
        scene.cluster.switch("sqlite reads wait", seconds),
        scene.cluster.switch("delivery", late),
    ):
        cutting = asyncio.create_task(_cut_again_and_again(scene)) if flaps else None
        try:
            yield
        finally:
            if cutting is not None:
                cutting.cancel()


async def _cut_again_and_again(scene: Scene) -> None:
    while True:
        scene.cluster.testbed.proxy.cut(POSTGRES)
        await asyncio.sleep(scene.rng.uniform(0.8, 1.4))


@fault("SQLite's commits are slow", (0.5, 2.5), needs="clock")
async def _commits_wait(scene: Scene) -> AsyncIterator[None]:
    seconds = scene.rng.choice([0.05, 0.2, 0.5])
    with scene.cluster.switch("commits wait", seconds):
        yield
