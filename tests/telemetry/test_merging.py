"""Metrics of several processes, merged."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.parser import text_string_to_metric_families

from sagastore_server.telemetry.merging import MergedCollector, merged

LABELS = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 1000), max_size=3)


def metrics_of(counts: dict[str, int]) -> list[Metric]:
    """Return a counter, a histogram and gauges of a worker."""
    counter = CounterMetricFamily("calls", "Calls.", labels=["kind"])
    histogram = HistogramMetricFamily("seconds", "Seconds.", labels=["kind"])
    for kind, count in counts.items():
        counter.add_metric([kind], count)
        buckets = [("1.0", count / 2), ("+Inf", float(count))]
        histogram.add_metric([kind], buckets, 2.0 * count)
    total = float(sum(counts.values()))
    return [
        counter,
        histogram,
        GaugeMetricFamily("sagastore_calls_in_flight", "Calls.", value=total),
        GaugeMetricFamily("sagastore_store_up", "Up.", value=total),
        GaugeMetricFamily("sagastore_messages", "Messages.", value=total),
    ]


def value(metrics: Sequence[Metric], sample_name: str, kind: str = "") -> float:
    """Return the value of one sample; 0 if it does not exist."""
    found = [
        sample.value
        for metric in metrics
        for sample in metric.samples
        if sample.name == sample_name
        and sample.labels.get("kind", "") == kind
        and sample.labels.get("le") != "1.0"
    ]
    assert len(found) <= 1
    return found[0] if found else 0.0


@given(st.lists(LABELS, min_size=1, max_size=5))
def test_merged_metrics_are_those_of_one_process(workers: list[dict[str, int]]) -> None:
    found = merged(metrics_of(counts) for counts in workers)
    for kind in ("a", "b", "c"):
        total = sum(counts.get(kind, 0) for counts in workers)
        assert value(found, "calls_total", kind) == total
        assert value(found, "seconds_count", kind) == total
        assert value(found, "seconds_bucket", kind) == total
        assert value(found, "seconds_sum", kind) == 2 * total
    totals = [sum(counts.values()) for counts in workers]
    assert value(found, "sagastore_calls_in_flight") == sum(totals)
    assert value(found, "sagastore_store_up") == min(totals)
    assert value(found, "sagastore_messages") == max(totals)
    expected = {(one.name, one.documentation, one.type) for one in metrics_of({})}
    assert {(one.name, one.documentation, one.type) for one in found} == expected


@given(st.lists(LABELS, min_size=1, max_size=5))
def test_counters_of_ended_workers_stay(workers: list[dict[str, int]]) -> None:
    registry = CollectorRegistry()
    collector = MergedCollector(CollectorRegistry())
    registry.register(collector)
    running = [metrics_of(counts) for counts in workers]
    collector.update(running)
    before = list(collector.collect())
    while running:
        collector.retire(running.pop())
        collector.update(running)
        after = list(collector.collect())
        for kind in ("a", "b", "c"):
            for name in ("calls_total", "seconds_count", "seconds_sum", "seconds_bucket"):
                assert value(after, name, kind) == value(before, name, kind)
    assert value(after, "sagastore_calls_in_flight") == 0
    text = generate_latest(registry).decode()
    assert {family.name for family in text_string_to_metric_families(text)} == {"calls", "seconds"}
