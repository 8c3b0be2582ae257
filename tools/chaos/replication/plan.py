"""Plan of a cluster round, drawn from its seed: mode of replication, and faults one by one."""

from __future__ import annotations

import random
from typing import NamedTuple

from sagastore import Phase
from tools.chaos.replication.faults import CLUSTER_FAULTS, ClusterFault
from tools.chaos.replication.fleet import ASYNCHRONOUS, QUORUM

STEPS = 14
"""Faults per round, besides those that happen during another one."""

STEP_SECONDS = 4.0
"""Seconds that a fault takes on average."""

ASYNCHRONOUS_ROUNDS = 6
"""One round of this many has asynchronous replication: acknowledged writes may be lost, and yet no
revision may be given out twice."""

LOSES = 8.0
"""How much more often the primary is killed while its standbys lag, in an asynchronous round."""

COMPANIONS = 0.35
"""Share of the faults during which another one happens."""


class Step(NamedTuple):
    """A fault, and the one that happens meanwhile."""

    number: int
    name: str
    after: float
    """Seconds since the end of the step before."""
    companion: str = ""
    companion_after: float = 0.0


class ClusterPlan(NamedTuple):
    """Plan of a round."""

    seed: int
    replication: str
    steps: tuple[Step, ...]

    @property
    def begins(self) -> Phase:
        """Phase of the service."""
        return Phase.POSTGRES_ONLY

    def rng(self, purpose: str) -> random.Random:
        """Return a random generator of this round for one purpose."""
        return random.Random(f"{self.seed}/cluster/{purpose}")

    def description(self) -> str:
        """Return a one-line description."""
        promotions = sum(CLUSTER_FAULTS[step.name].promotes for step in self.steps)
        return f"cluster, {self.replication}, {len(self.steps)} faults, {promotions} failovers"

    @property
    def fault_names(self) -> list[str]:
        """Names of all faults, those that happen during others included."""
        names = [name for step in self.steps for name in (step.name, step.companion)]
        return [name for name in names if name]


def draw_cluster(seed: int, seconds: float = 0.0) -> ClusterPlan:
    """Return the plan of a seed; ``seconds`` shortens it to about this duration unless it is 0."""
    steps = max(1, round(seconds / STEP_SECONDS)) if seconds else STEPS
    rng = random.Random(f"{seed}/cluster/plan")
    replication = ASYNCHRONOUS if seed % ASYNCHRONOUS_ROUNDS == 0 else QUORUM
    kinds = list(CLUSTER_FAULTS.values())
    loses = LOSES if replication == ASYNCHRONOUS else 1.0
    weights = [one.weight * (loses if "lag" in one.name else 1.0) for one in kinds]
    return ClusterPlan(
        seed, replication, tuple(_step(rng, number, kinds, weights) for number in range(steps))
    )


def _step(rng: random.Random, number: int, kinds: list[ClusterFault], weights: list[float]) -> Step:
    (kind,) = rng.choices(kinds, weights)
    step = Step(number, kind.name, round(rng.uniform(0.05, 0.5), 3))
    companions = [one.name for one in kinds if one.brief and one is not kind]
    if not kind.promotes or rng.random() >= COMPANIONS:
        return step
    return step._replace(
        companion=rng.choice(companions), companion_after=round(rng.uniform(0.0, 0.6), 3)
    )
