"""Profiles of a campaign: which processes its rounds run, and how their plans are drawn.

- ``migration``: one server that moves from SQLite to PostgreSQL.
- ``cluster``: three servers on a PostgreSQL cluster of three nodes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from tools.chaos.cluster import Testbed, running_testbed
from tools.chaos.faults import FAULTS, Fault, missing
from tools.chaos.plan import draw
from tools.chaos.plants import PLANTS
from tools.chaos.replication.fleet import ClusterBed, cluster_bed
from tools.chaos.replication.plan import draw_cluster
from tools.chaos.replication.round import ClusterRound
from tools.chaos.round import run_round
from tools.chaos.templates import Templates

MIGRATION, CLUSTER = "migration", "cluster"
PROFILES = (MIGRATION, CLUSTER)


class Bed(Protocol):
    """Environment of the rounds of one profile."""

    lacking: dict[str, str]
    """Faults that this machine cannot produce, and why."""

    def draw(self, seed: int, seconds: float) -> Any:
        """Return the plan of a seed; ``seconds`` replaces its duration unless it is 0."""

    async def run(self, plan: Any, plant: str, folder: Path) -> None:
        """Run a round, and leave its files in ``folder``."""


def profile_of(plant: str, default: str) -> str:
    """Return the profile whose rounds can catch a planted fault; ``default`` if it is ""."""
    return PLANTS[plant].profile if plant else default


@asynccontextmanager
async def opened_bed(profile: str) -> AsyncIterator[Bed]:
    """Provide the environment of a profile."""
    if profile == CLUSTER:
        with cluster_bed() as nodes:
            await nodes.open()
            yield _ClusterRounds(nodes)
        return
    with running_testbed() as testbed:
        await testbed.open()
        yield _MigrationRounds(testbed)


class _MigrationRounds:
    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed
        self._templates = Templates(testbed)
        self.lacking = unavailable_faults(testbed)

    def draw(self, seed: int, seconds: float) -> Any:
        return draw(seed, self._is_available, seconds)

    def _is_available(self, kind: Fault) -> bool:
        return kind.name not in self.lacking

    async def run(self, plan: Any, plant: str, folder: Path) -> None:
        await run_round(self._testbed, self._templates, plan, plant, folder)


class _ClusterRounds:
    def __init__(self, bed: ClusterBed) -> None:
        self._bed = bed
        self.lacking: dict[str, str] = {}

    def draw(self, seed: int, seconds: float) -> Any:
        return draw_cluster(seed, seconds)

    async def run(self, plan: Any, plant: str, folder: Path) -> None:
        await ClusterRound(self._bed, plan, plant).run(folder)


def unavailable_faults(testbed: Testbed) -> dict[str, str]:
    """Return the faults that this machine cannot produce, and why."""
    reasons = {
        one.name: missing(one.needs, mounted=testbed.disk.mounted) for one in FAULTS.values()
    }
    return {name: reason for name, reason in reasons.items() if reason}
