"""Random durations of a simulated device."""

from __future__ import annotations

from random import Random


class Latency:
    """Device whose operations take random time, usually short, sometimes the maximum."""

    def __init__(self, draw: Random, scale: float = 1.0) -> None:
        """Draw from ``draw``; ``scale`` 0 makes every pause empty, for tests in real time."""
        self.draw = draw
        self.scale = scale
        self.slow = 1.0
        """Slowdown factor of an overloaded device."""

    def pause(self, most: float = 0.002) -> float:
        """Return the seconds of one operation, below ``most`` unless the device is slow."""
        return self.draw.random() ** 3 * most * self.slow * self.scale
