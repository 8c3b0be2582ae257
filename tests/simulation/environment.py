"""Clock and randomness of a simulated process."""

from __future__ import annotations

import itertools
from random import Random

from tests.simulation.loop import SimulationLoop
from tests.simulation.models.process import Process

EPOCH = 1_900_000_000
"""Wall-clock time at the start of a round, in seconds since 1970."""


class SimulationClock:
    """The clock of a process; see ``sagastore_server.storage.environment.Clock``."""

    def __init__(self, loop: SimulationLoop, process: Process) -> None:
        """Return the virtual time of ``loop`` as ``process`` sees it."""
        self._loop = loop
        self._process = process

    def monotonic(self) -> float:
        """See ``Clock``."""
        return self._loop.time()

    def now(self) -> int:
        """See ``Clock``."""
        return int((EPOCH + self._loop.time() + self._process.clock_offset) * 1_000_000)


class SimulationRandomness:
    """Seeded randomness; see ``sagastore_server.storage.environment.Randomness``."""

    def __init__(self, seed: str) -> None:
        """Draw from ``seed``."""
        self._draw = Random(seed)
        self._tokens = itertools.count(1)

    def fraction(self) -> float:
        """See ``Randomness``."""
        return self._draw.random()

    def token(self) -> str:
        """See ``Randomness``; tokens are unique within a round."""
        return f"session-{next(self._tokens)}"
