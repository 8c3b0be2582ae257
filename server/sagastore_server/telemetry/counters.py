"""Counters and histograms with one writer thread and any number of readers.

Those of ``prometheus_client`` take a lock for every number that changes, five for a Save, because
several threads might write. Here the event loop is the only writer, which takes a fifth of the
time. A reader may see the last of thousands of values in the count and not yet in the sum.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Counter:
    """A number that only increases."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class CounterFamily(Collector):
    """A counter metric: one `Counter` for each combination of label values."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = ()) -> None:
        """Define the metric; ``name`` is without ``_total``."""
        self._description = name, documentation
        self._names = labels
        self._counts: dict[tuple[str, ...], Counter] = {}

    def labels(self, *values: str) -> Counter:
        """Return the counter of these label values; it is exported from now on."""
        return self._counts.setdefault(values, Counter())

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        family = CounterMetricFamily(*self._description, labels=self._names)
        for values, count in list(self._counts.items()):
            family.add_metric(values, count.value)
        yield family


class Histogram:
    """Number of values up to each bound, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Create an empty histogram; ``bounds`` ascend, and infinity is implied."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Record a value."""
        # A value equal to a bound counts as below it.
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def read(self) -> tuple[list[int], float]:
        """Return the number of values up to each bound, infinity last, and their sum."""
        return list(accumulate(list(self._counts))), self._sum


class HistogramFamily(Collector):
    """A histogram metric: one `Histogram` for each combination of label values."""

    def __init__(
        self, name: str, documentation: str, bounds: Sequence[float], labels: Sequence[str] = ()
    ) -> None:
        """Define the metric."""
        self._description = name, documentation
        self._bounds = bounds
        all_bounds = (*bounds, float("inf"))
        self._bound_labels = [floatToGoString(bound) for bound in all_bounds]  # type: ignore[no-untyped-call]
        self._names = labels
        self._histograms: dict[tuple[str, ...], Histogram] = {}

    def labels(self, *values: str) -> Histogram:
        """Return the histogram of these label values; it is exported from now on."""
        return self._histograms.setdefault(values, Histogram(self._bounds))

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        family = HistogramMetricFamily(*self._description, labels=self._names)
        for values, histogram in list(self._histograms.items()):
            counts, total = histogram.read()
            buckets = [
                (bound, float(n)) for bound, n in zip(self._bound_labels, counts, strict=True)
            ]
            family.add_metric(values, buckets, total)
        yield family
