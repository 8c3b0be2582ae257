"""Faults inside the server's process: levers of the patched server (`levers`)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tests.chaos.faulting import Scene, fault


@fault("clock jumps", (0.3, 3.0), weight=2, needs="clock")
async def _clock_jumps(scene: Scene) -> AsyncIterator[None]:
    jump = scene.rng.choice([-86_400 * 400, -3600, -5, -0.5, 0.5, 5, 3600, 86_400 * 400])
    scene.marks.mark("clock", seconds=jump)
    with scene.cluster.lever("clock", jump, after=scene.rng.choice([0.0, 0.0, jump / 2])):
        yield


@fault("what goes to PostgreSQL is held up", (1.0, 4.0), weight=2, needs="clock")
async def _held_up(scene: Scene) -> AsyncIterator[None]:
    seconds = scene.rng.choice([0.05, 0.2, 0.5])
    scene.marks.mark("held up", seconds=seconds)
    with scene.cluster.lever("delivery", seconds):
        yield


@fault("reads of PostgreSQL fail", (1.0, 4.0), weight=2, needs="clock")
async def _reads_fail(scene: Scene) -> AsyncIterator[None]:
    """A share of them ends in a statement time-out; writes go on, half of the times late."""
    share, late = scene.rng.choice([0.05, 0.3, 0.9]), scene.rng.choice([0.0, 0.1])
    scene.marks.mark("reads fail", share=share, late=late)
    with (
        scene.cluster.lever("postgres reads fail", share),
        scene.cluster.lever("delivery", late),
    ):
        yield


@fault("reads of SQLite wait", (1.0, 4.0), weight=1.5, needs="clock")
async def _reads_wait(scene: Scene) -> AsyncIterator[None]:
    """They get a connection late, as where long searches hold all of them."""
    seconds = scene.rng.choice([0.05, 0.2, 0.5])
    scene.marks.mark("reads wait", seconds=seconds)
    with scene.cluster.lever("sqlite reads wait", seconds):
        yield


@fault("SQLite's commits are slow", (0.5, 2.5), needs="clock")
async def _commits_wait(scene: Scene) -> AsyncIterator[None]:
    seconds = scene.rng.choice([0.05, 0.2, 0.5])
    with scene.cluster.lever("commits wait", seconds):
        yield
