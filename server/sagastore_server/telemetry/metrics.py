"""Prometheus metrics of events: calls, commits and failures.

All are listed in docs/reference/observability.md.

Names follow the conventions of Prometheus: base units, ``_total`` for counters. Those of calls are
gRPC's own (proposal A66), so that dashboards for gRPC fit. Events are counted when they happen;
the current state is collected at each scrape (`collectors`), from samples (`sampler`).
No label has values from outside: no callers, no ids, no addresses.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, Info, ProcessCollector

from sagastore_server.interfaces.consistency import Level
from sagastore_server.interfaces.errors import OverloadedError, RateLimitedError
from sagastore_server.interfaces.instruments import PRIMARY, Fallback, Instruments
from sagastore_server.storage.model import Store
from sagastore_server.telemetry.counters import CounterFamily, HistogramFamily

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

CALL_SECONDS = (
    *(0.001, 0.002, 0.004, 0.006, 0.01, 0.016, 0.025, 0.04, 0.065),
    *(0.1, 0.16, 0.25, 0.5, 1, 2, 5, 10, 20),
)
"""A subset of the bounds in A66, dense where the values lie: a Save takes 2 to 20 ms, a read 1 to
10. All 41 bounds would triple the stored data."""

COMMIT_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 5)
"""A synced commit takes 0.3 ms (NVMe) to 20 ms (hard disk), hence powers of two."""

GROUP_WRITES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Group commit collects from 1 to 1024 writes, hence powers of two."""

DELAY_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""The server's own code should hold the event loop for 5 ms at most."""

WAIT_SECONDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.1, 0.25, 0.5, 1, 5)
"""A standby replays a commit within some milliseconds; a read waits for 0.05 s by default."""

OTHER = "other"
"""Label for unknown methods, as A66 defines it."""


class Metrics(Instruments):
    """Counts events. Each hook takes about half a microsecond."""

    def __init__(self, version: str, methods: Iterable[str] = ()) -> None:
        """Create a new registry; the series of ``methods`` exist before the first call."""
        self.registry = CollectorRegistry()
        self._known = frozenset(methods)
        self._started = CounterFamily(
            "grpc_server_call_started", "Calls received.", ["grpc_method"]
        )
        self._duration = HistogramFamily(
            "grpc_server_call_duration_seconds",
            "Time from the arrival of a call to its end; for streams, the time that they are open.",
            CALL_SECONDS,
            ["grpc_method", "grpc_status"],
        )
        self._task_failures = CounterFamily(
            "sagastore_task_failures", "Failures of background tasks.", ["task"]
        )
        self._defects = CounterFamily(
            "sagastore_internal_errors", "Calls that ended with INTERNAL."
        )
        self._shed = CounterFamily(
            "sagastore_calls_shed",
            "Calls rejected by admission control.",
            ["reason"],
        )
        self._writes = HistogramFamily(
            "sagastore_group_commit_writes",
            "Writes per transaction.",
            GROUP_WRITES,
            ["store"],
        )
        self._seconds = HistogramFamily(
            "sagastore_group_commit_duration_seconds",
            "Duration of these transactions, including the sync to disk.",
            COMMIT_SECONDS,
            ["store"],
        )
        self._rows = CounterFamily(
            "sagastore_messages_written",
            "Messages in these transactions, including unchanged ones.",
            ["store"],
        )
        self._reads = CounterFamily(
            "sagastore_postgres_reads",
            "Reads that a server of PostgreSQL has answered, by what they required.",
            ["node", "requirement"],
        )
        self._fallbacks = CounterFamily(
            "sagastore_replica_fallbacks",
            "Reads that the primary of PostgreSQL answered because no replica could.",
            ["reason"],
        )
        self._waits = HistogramFamily(
            "sagastore_replica_wait_seconds",
            "Time that a read waited for a replica to reach its position, if it had to wait.",
            WAIT_SECONDS,
        )
        self._delay = HistogramFamily(
            "sagastore_event_loop_delay_seconds",
            "Delay of the event loop, measured with a timer of 0.5 s.",
            DELAY_SECONDS,
        )
        self._prepare()
        self._register(version)

    def _prepare(self) -> None:
        """Create the series that are certain to be used, because a rate needs a first value."""
        self._starts = {name: self._started.labels(name) for name in (*self._known, OTHER)}
        self._ends = {(name, "OK"): self._duration.labels(name, "OK") for name in self._known}
        self._defect = self._defects.labels()
        self._late = self._delay.labels()
        self._waited = self._waits.labels()
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
            *(self._started, self._duration, self._defects, self._task_failures, self._shed),
            *(self._writes, self._seconds, self._rows, self._delay),
            *(self._reads, self._fallbacks, self._waits),
        )
        for collector in counted:
            self.registry.register(collector)
        build = Info(
            "sagastore_build", "Version of the server and of Python.", registry=self.registry
        )
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

    def task_started(self, task: str) -> None:
        """See the contract."""
        self._task_failures.labels(task)  # A rate needs a first value of zero.

    def task_failed(self, task: str) -> None:
        """See the contract."""
        self._task_failures.labels(task).value += 1

    def group_committed(self, store: Store, writes: int, rows: int, seconds: float) -> None:
        """See the contract."""
        group, duration, messages = self._commits[store]
        group.observe(writes)
        duration.observe(seconds)
        messages.value += rows

    def replicas_used(self, nodes: Sequence[str]) -> None:
        """See the contract."""
        for level in Level:
            for node in (PRIMARY, *nodes):
                self._reads.labels(node, level.value)
        for reason in Fallback:
            self._fallbacks.labels(reason.value)

    def read_answered(self, node: str, level: Level) -> None:
        """See the contract."""
        self._reads.labels(node, level.value).value += 1

    def read_fell_back(self, reason: Fallback) -> None:
        """See the contract."""
        self._fallbacks.labels(reason.value).value += 1

    def replica_awaited(self, seconds: float) -> None:
        """See the contract."""
        self._waited.observe(seconds)

    def loop_delayed(self, seconds: float) -> None:
        """Record a delay of the event loop."""
        self._late.observe(seconds)
