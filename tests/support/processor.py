"""Speed of the processor, for limits of processor time that hold on slower machines too."""

from __future__ import annotations

import time

_REFERENCE = 0.0085
"""Seconds of processor time that `_work` takes on the machine of the documented measurements (2
cores of an AMD EPYC, Python 3.11)."""
_RUNS = 5


def slowness() -> float:
    """Return how many times slower this machine is than the reference; at least 1."""
    return max(1.0, min(_work() for _ in range(_RUNS)) / _REFERENCE)


def _work() -> float:
    began = time.thread_time()
    sum(number * number for number in range(200_000))
    return time.thread_time() - began
