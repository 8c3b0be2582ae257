"""Counts and histograms that one thread writes and any may read.

Those of ``prometheus_client`` take a lock for each number that changes, five for a Save, in
case several threads write. Here only the event loop does, in a fifth of the time; a reader
may see the last of thousands of values in the count and not yet in the sum.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class CounterFamily(Collector):
    """A counter: one ``Counter`` for each combination of labels."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = ()) -> None:
        """Describe it; ``name`` without ``_total``."""
        self._about = name, documentation
        self._names = labels
        self._counts: dict[tuple[str, ...], Counter] = {}

    def labels(self, *values: str) -> Counter:
        """Return the count of these labels, which is shown from now on."""
        return self._counts.setdefault(values, Counter())

    def collect(self) -> Iterator[Metric]:
        """Yield what is shown."""
        family = CounterMetricFamily(*self._about, labels=self._names)
        for values, count in list(self._counts.items()):
            family.add_metric(values, count.value)
        yield family


class Histogram:
    """How many values fell below each bound, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Begin with no values; ``bounds`` are in order, and infinity is implied."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Take in a value."""
        # A value that equals a bound belongs below it.
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def read(self) -> tuple[list[int], float]:
        """Return how many values are up to each bound, the last being infinity; and the sum."""
        return list(accumulate(list(self._counts))), self._sum


class HistogramFamily(Collector):
    """A histogram: one ``Histogram`` for each combination of labels."""

    def __init__(
        self, name: str, documentation: str, bounds: Sequence[float], labels: Sequence[str] = ()
    ) -> None:
        """Describe it."""
        self._about = name, documentation
        self._bounds = bounds
        every = (*bounds, float("inf"))
        self._shown = [floatToGoString(bound) for bound in every]  # type: ignore[no-untyped-call]
        self._names = labels
        self._tallies: dict[tuple[str, ...], Histogram] = {}

    def labels(self, *values: str) -> Histogram:
        """Return the tally of these labels, which is shown from now on."""
        return self._tallies.setdefault(values, Histogram(self._bounds))

    def collect(self) -> Iterator[Metric]:
        """Yield what is shown."""
        family = HistogramMetricFamily(*self._about, labels=self._names)
        for values, tally in list(self._tallies.items()):
            counts, total = tally.read()
            buckets = [(bound, float(n)) for bound, n in zip(self._shown, counts, strict=True)]
            family.add_metric(values, buckets, total)
        yield family
