"""Round as a job: its parameters, its result, and its exact repetition."""

from __future__ import annotations

import gc
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tests.simulation.settings import profile_of
from tests.simulation.shrink import shrink
from tests.simulation.trace import lines
from tests.simulation.world import Turn, World

ORDERS = ("fifo", "shuffle")


class Job(NamedTuple):
    """Parameters of a round."""

    seed: int
    profile: str = ""
    """Empty: drawn from the seed."""
    order: str = ""
    """Order of ready callbacks: ``fifo``, ``shuffle``, or empty: even seeds are FIFO."""

    def world(self, *, recording: bool = False, skips: frozenset[Turn] = frozenset()) -> World:
        """Return the round, not run yet."""
        order = self.order or ORDERS[self.seed % 2]
        profile = self.profile or profile_of(self.seed)
        shuffle = order == "shuffle"
        return World(self.seed, profile, shuffle=shuffle, recording=recording, skips=skips)


class Result(NamedTuple):
    """Result of a round."""

    seed: int
    profile: str
    begins: str
    ended_in: str
    steps: int
    """Number of callbacks."""
    virtual: float
    """Virtual seconds."""
    digest: str
    """Hash over the order of the callbacks and over the counts."""
    violations: tuple[str, ...]
    counts: dict[str, int]
    cpu: float
    """CPU seconds."""

    @property
    def trace(self) -> tuple[object, ...]:
        """Part of the result that must be identical in every run of the round."""
        return self.digest, self.steps, self.violations, Counter(self.counts)


def run(job: Job) -> Result:
    """Run a round with the garbage collector disabled, because finalizers run at random times."""
    began = time.process_time()
    world = job.world()
    _run(world)
    return Result(
        job.seed,
        world.settings.profile,
        world.settings.begins.slug,
        world.ended_in.slug,
        world.loop.steps,
        round(world.loop.time(), 6),
        f"{world.loop.digest:016x}",
        tuple(world.violations),
        dict(world.counts),
        time.process_time() - began,
    )


def explain(job: Job, file: Path) -> tuple[int, int]:
    """Shrink a failing round, and write its events to ``file``.

    Returns:
        The number of turns of its actors, and the number that remain.
    """

    def smaller(skips: frozenset[Turn]) -> World:
        world = job.world(skips=skips)
        _run(world)
        return world

    failed = smaller(frozenset())
    if not failed.violations:
        return len(failed.turns), len(failed.turns)
    left_out = shrink(smaller, failed)
    shown = job.world(recording=True, skips=left_out)
    _run(shown)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*shown.violations, "", *lines(shown), ""])
    file.write_text(text, encoding="utf-8")
    return len(failed.turns), len(shown.turns)


def _run(world: World) -> None:
    was_on = gc.isenabled()
    gc.disable()
    try:
        world.run()
    finally:
        if was_on:
            gc.enable()


def result_from(record: dict[str, Any]) -> Result:
    """Return a result that was sent as JSON."""
    return Result(**{**record, "violations": tuple(record["violations"])})
