"""Metrics of several worker processes, merged into those of one server.

`prometheus_client` has a mode for several processes. It writes every value to a shared file when it
changes, and only for its own classes: those of `counters`, and collectors, would be missing.
Here each worker collects its registry on request, and the supervising process merges the results.
Names, types and descriptions stay the same:

* counters and histograms are added; those of a worker that has ended stay in the sum, so that no
  rate becomes negative;
* gauges that count something of the process (`_SUMMED`) are added;
* of all other gauges, the largest value is shown (of `_LEAST`, the smallest): they describe the
  database, which is the same for all, or the worst case is what matters.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

_SUMMED = frozenset(
    {
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "sagastore_answer_memory_bytes",
        "sagastore_answer_memory_bytes_limit",
        "sagastore_calls_in_flight",
        "sagastore_calls_limit",
        "sagastore_client_connections",
        "sagastore_client_connections_limit",
        "sagastore_connections_busy",
        "sagastore_connections_limit",
        "sagastore_connections_open",
        "sagastore_connections_wanted",
        "sagastore_file_descriptors",
        "sagastore_file_descriptors_limit",
        "sagastore_replica_connections_busy",
        "sagastore_replica_connections_limit",
        "sagastore_replica_connections_open",
        "sagastore_request_memory_bytes",
        "sagastore_request_memory_bytes_limit",
        "sagastore_streams_limit",
        "sagastore_streams_open",
        "sagastore_writes_waiting",
    }
)
"""Gauges of which each worker has a part."""

_LEAST = frozenset(
    {
        "process_start_time_seconds",
        "sagastore_replica_in_rotation",
        "sagastore_store_up",
        "sagastore_tls_certificate_end_timestamp_seconds",
    }
)
"""Gauges of which the smallest value matters."""

_OF_THE_SERVICE = frozenset({"sagastore_ready", "sagastore_not_ready", "sagastore_warning"})
"""Gauges that the supervising process derives from all workers; those of a worker are left out."""

_ADDED = frozenset({"counter", "histogram", "summary"})

_Key = tuple[str, tuple[tuple[str, str], ...]]


class MergedCollector(Collector):
    """Collects the latest merged metrics. `update` and `retire` belong to one thread."""

    def __init__(self, own: CollectorRegistry) -> None:
        """Merge with the metrics of this process, which ``own`` collects."""
        self._own = own
        self._retired: list[Metric] = []
        self._latest: list[Metric] = []

    def retire(self, metrics: Iterable[Metric]) -> None:
        """Keep the counters of a worker that has ended."""
        kept = [metric for metric in metrics if metric.type in _ADDED]
        self._retired = merged([self._retired, kept])

    def update(self, workers: Iterable[Iterable[Metric]]) -> None:
        """Merge the latest metrics of the ``workers``."""
        shown = (
            [metric for metric in metrics if metric.name not in _OF_THE_SERVICE]
            for metrics in workers
        )
        self._latest = merged([list(self._own.collect()), *shown, self._retired])

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the latest update."""
        yield from self._latest


def merged(members: Iterable[Iterable[Metric]]) -> list[Metric]:
    """Return the metrics of all ``members`` as if one process had them."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[_Key, Sample]] = {}
    for member in members:
        for metric in member:
            if metric.name not in families:
                families[metric.name] = Metric(metric.name, metric.documentation, metric.type)
                values[metric.name] = {}
            _add(values[metric.name], metric)
    for name, family in families.items():
        family.samples = list(values[name].values())
    return list(families.values())


def _add(found: dict[_Key, Sample], metric: Metric) -> None:
    combine = _combination(metric)
    for sample in metric.samples:
        key = sample.name, tuple(sorted(sample.labels.items()))
        before = found.get(key)
        if before is not None:
            sample = sample._replace(value=combine(before.value, sample.value))  # noqa: PLW2901
        found[key] = sample


def _combination(metric: Metric) -> Callable[[float, float], float]:
    if metric.type in _ADDED or metric.name in _SUMMED:
        return operator.add
    return min if metric.name in _LEAST else max
