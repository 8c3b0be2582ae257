"""What is counted, in the words of Prometheus; docs/reference/observability.md explains each.

Names are Prometheus's convention: base units, ``_total`` for what only grows. Those of calls
are gRPC's own (its proposal A66), so that dashboards for gRPC fit. What happens is counted as
it happens; what *is*, is looked at when somebody asks, or was a moment ago (``sampler``).
No label has values from outside: none of callers, ids or addresses.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, Info, ProcessCollector

from sagastore_server.interfaces.errors import OverloadedError, RateLimitedError
from sagastore_server.interfaces.instruments import Instruments
from sagastore_server.storage.model import Store
from sagastore_server.telemetry.counters import CounterFamily, HistogramFamily

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

CALL_SECONDS = (
    *(0.001, 0.002, 0.004, 0.006, 0.01, 0.016, 0.025, 0.04, 0.065),
    *(0.1, 0.16, 0.25, 0.5, 1, 2, 5, 10, 20),
)
"""A choice of the bounds in A66, closer where ours lie: a Save takes 2 to 20 ms, a read 1 to 10;
beyond a second it matters only how many. All 41 would triple what is stored."""

COMMIT_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 5)
"""A synced commit takes 0.3 ms (NVMe) to 20 ms (disk); doubling shows on what it runs."""

GROUP_WRITES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Writes share a transaction; doubling tells whether they gather at all, and how far."""

DELAY_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""5 ms is as long as anything of ours should hold the event loop; seconds are an accident."""

OTHER = "other"
"""The method of calls that none of ours is called; A66 says so."""


class Metrics(Instruments):
    """Counts what happens. Each hook takes about half a microsecond."""

    def __init__(self, version: str, methods: Iterable[str] = ()) -> None:
        """Count in a registry of its own; ``methods`` are shown before they are called."""
        self.registry = CollectorRegistry()
        self._known = frozenset(methods)
        self._started = CounterFamily(
            "grpc_server_call_started", "Calls that came in.", ["grpc_method"]
        )
        self._duration = HistogramFamily(
            "grpc_server_call_duration_seconds",
            "Time from when a call came in to its end; streams last as long as they are open.",
            CALL_SECONDS,
            ["grpc_method", "grpc_status"],
        )
        self._defects = CounterFamily(
            "sagastore_internal_errors", "Calls that ended with INTERNAL."
        )
        self._shed = CounterFamily(
            "sagastore_calls_shed",
            "Calls refused at the door because there is too much to do.",
            ["reason"],
        )
        self._writes = HistogramFamily(
            "sagastore_group_commit_writes",
            "Writes that shared a transaction.",
            GROUP_WRITES,
            ["store"],
        )
        self._seconds = HistogramFamily(
            "sagastore_group_commit_duration_seconds",
            "Time that such a transaction took, synced to disk.",
            COMMIT_SECONDS,
            ["store"],
        )
        self._rows = CounterFamily(
            "sagastore_messages_written",
            "Messages in these transactions, unchanged ones included.",
            ["store"],
        )
        self._delay = HistogramFamily(
            "sagastore_event_loop_delay_seconds",
            "By how much the event loop was late when a timer of half a second had run out.",
            DELAY_SECONDS,
        )
        self._prepare()
        self._register(version)

    def _prepare(self) -> None:
        """Make what is certain to come, because a rate needs a beginning."""
        self._starts = {name: self._started.labels(name) for name in (*self._known, OTHER)}
        self._ends = {(name, "OK"): self._duration.labels(name, "OK") for name in self._known}
        self._defect = self._defects.labels()
        self._late = self._delay.labels()
        for reason in (OverloadedError.reason, RateLimitedError.reason):
            self._shed.labels(reason)
        self._commits = {
            store: (
                self._writes.labels(store.value),
                self._seconds.labels(store.value),
                self._rows.labels(store.value),
            )
            for store in Store
        }

    def _register(self, version: str) -> None:
        counted: tuple[Collector, ...] = (
            *(self._started, self._duration, self._defects, self._shed),
            *(self._writes, self._seconds, self._rows, self._delay),
        )
        for collector in counted:
            self.registry.register(collector)
        build = Info("sagastore_build", "What runs.", registry=self.registry)
        build.info({"version": version, "python": platform.python_version()})
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def call_started(self, method: str) -> None:
        """See the contract."""
        (self._starts.get(method) or self._starts[OTHER]).value += 1

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """See the contract."""
        found = self._ends.get((method, code))
        if found is None:
            name = method if method in self._known else OTHER
            found = self._duration.labels(name, code)
            if name == method:
                self._ends[method, code] = found
        found.observe(seconds)
        if code == "INTERNAL":
            self._defect.value += 1

    def call_shed(self, reason: str) -> None:
        """See the contract."""
        self._shed.labels(reason).value += 1

    def group_committed(self, store: Store, writes: int, rows: int, seconds: float) -> None:
        """See the contract."""
        group, duration, messages = self._commits[store]
        group.observe(writes)
        duration.observe(seconds)
        messages.value += rows

    def loop_delayed(self, seconds: float) -> None:
        """Note by how much the event loop was late."""
        self._late.observe(seconds)
