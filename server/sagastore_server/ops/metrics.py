"""What is counted, in the words of Prometheus; docs/observability.md explains each.

Names are Prometheus's convention: base units, ``_total`` for what only grows. Those of calls
are gRPC's own (its proposal A66), so that dashboards for gRPC fit. What happens is counted as
it happens; what *is*, is looked at when somebody asks, or was a moment ago (``sampler``).
No label has values from outside: none of callers, ids or addresses.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

from sagastore_server.ports.errors import OverloadedError, RateLimitedError
from sagastore_server.ports.instruments import Instruments
from sagastore_server.storage.model import Store

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
    """Counts what happens. Each hook takes about a microsecond."""

    def __init__(self, version: str, methods: Iterable[str] = ()) -> None:
        """Count in a registry of its own; ``methods`` are shown before they are called."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self._started = Counter(
            "grpc_server_call_started",
            "Calls that came in.",
            ["grpc_method"],
            registry=registry,
        )
        self._duration = Histogram(
            "grpc_server_call_duration_seconds",
            "Time from when a call came in to its end; streams last as long as they are open.",
            ["grpc_method", "grpc_status"],
            buckets=CALL_SECONDS,
            registry=registry,
        )
        self._shed = Counter(
            "sagastore_calls_shed",
            "Calls refused at the door because there is too much to do.",
            ["reason"],
            registry=registry,
        )
        self._writes = Histogram(
            "sagastore_group_commit_writes",
            "Writes that shared a transaction.",
            ["store"],
            buckets=GROUP_WRITES,
            registry=registry,
        )
        self._seconds = Histogram(
            "sagastore_group_commit_duration_seconds",
            "Time that such a transaction took, synced to disk.",
            ["store"],
            buckets=COMMIT_SECONDS,
            registry=registry,
        )
        self._rows = Counter(
            "sagastore_messages_written",
            "Messages in these transactions, unchanged ones included.",
            ["store"],
            registry=registry,
        )
        self._delay = Histogram(
            "sagastore_event_loop_delay_seconds",
            "By how much the event loop was late when a timer of half a second had run out.",
            buckets=DELAY_SECONDS,
            registry=registry,
        )
        build = Info("sagastore_build", "What runs.", registry=registry)
        build.info({"version": version, "python": platform.python_version()})
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self._known = frozenset(methods)
        self._prepare()

    def _prepare(self) -> None:
        """Make what is certain to come, because a rate needs a beginning."""
        self._starts = {name: self._started.labels(name) for name in (*self._known, OTHER)}
        # Beside what goes well, what must never come: an alert sees the first one of it.
        self._ends = {
            (name, code): self._duration.labels(name, code)
            for name in self._known
            for code in ("OK", "INTERNAL")
        }
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

    def call_started(self, method: str) -> None:
        """See the contract."""
        (self._starts.get(method) or self._starts[OTHER]).inc()

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """See the contract."""
        found = self._ends.get((method, code))
        if found is None:
            name = method if method in self._known else OTHER
            found = self._ends[method, code] = self._duration.labels(name, code)
        found.observe(seconds)

    def call_shed(self, reason: str) -> None:
        """See the contract."""
        self._shed.labels(reason).inc()

    def group_committed(self, store: Store, writes: int, rows: int, seconds: float) -> None:
        """See the contract."""
        group, duration, messages = self._commits[store]
        group.observe(writes)
        duration.observe(seconds)
        messages.inc(rows)

    def loop_delayed(self, seconds: float) -> None:
        """Note by how much the event loop was late."""
        self._delay.observe(seconds)
