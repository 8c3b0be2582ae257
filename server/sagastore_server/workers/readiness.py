"""Readiness and liveness of the service, from those of its workers.

* *Live*: the event loops of this process and of every worker run. A worker that hangs is replaced
  before an orchestrator would restart the service (`fleet.HUNG_AFTER`).
* *Ready*: all workers have been ready once, and at least one is. The port leads new connections to
  the workers that listen; one that is missing reduces the throughput, and is a warning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sagastore_server.runtime.supervisor import Failure
from sagastore_server.telemetry.readiness import (
    LIVE_WITHIN,
    Finding,
    Notice,
    Reason,
    task_failing,
    unresponsive,
)
from sagastore_server.workers.fleet import Fleet
from sagastore_server.workers.worker import Worker


class FleetReadiness:
    """Readiness and liveness of the service. Written on the event loop, read in any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start in the state of a service that is starting."""
        self._clock = clock
        self._beat = clock()
        self._fleet: Fleet | None = None
        self._failing: Callable[[], Sequence[Failure]] = tuple
        self._drain_until: float | None = None

    def watch(self, fleet: Fleet, failing: Callable[[], Sequence[Failure]]) -> None:
        """Report the state of ``fleet``, and the tasks of this process that fail."""
        self._fleet, self._failing = fleet, failing

    def beat(self) -> None:
        """Record that the event loop of this process runs."""
        self._beat = self._clock()

    def draining(self, seconds: float) -> None:
        """Record that new calls are refused; those in progress have ``seconds``."""
        self._drain_until = self._clock() + seconds

    @property
    def silence(self) -> float:
        """Seconds since the last heartbeat, of the event loop for which it is longest ago."""
        own = max(0.0, self._clock() - self._beat)
        return max([own, *(worker.silence for worker in self._workers)])

    @property
    def live(self) -> bool:
        """Whether all event loops run."""
        return self.silence <= LIVE_WITHIN

    def reasons(self) -> list[Finding]:
        """Return why the service is not ready; an empty list if it is."""
        own = max(0.0, self._clock() - self._beat)
        found = [unresponsive(own)] if own > LIVE_WITHIN else []
        if self._drain_until is not None:
            return [*found, _draining(max(0.0, self._drain_until - self._clock()))]
        fleet = self._fleet
        if fleet is None or not fleet.has_served:
            return [*found, _starting(self._workers, 1 if fleet is None else fleet.number)]
        if any(worker.is_ready for worker in self._workers):
            return found
        of_workers = list(_told(self._workers, _reasons))
        return [*found, *(of_workers or [_no_worker()])]

    def warnings(self) -> list[Finding]:
        """Return the problems that leave the service ready."""
        found = [task_failing(one) for one in self._failing()]
        fleet = self._fleet
        if fleet is not None and fleet.has_served and self._drain_until is None:
            found += _missing(fleet)
        return [*found, *_told(self._workers, _warnings)]

    def document(self) -> dict[str, Any]:
        """Return the body of `/readyz`."""
        reasons = self.reasons()
        reports = [worker.report for worker in self._workers if worker.report is not None]
        return {
            "ready": not reasons,
            "phase": next((report.phase for report in reports if report.phase), None),
            "reasons": [finding._asdict() for finding in reasons],
            "warnings": [finding._asdict() for finding in self.warnings()],
            "progress": next((report.progress for report in reports if report.progress), None),
            "workers": [
                {"worker": worker.number, "ready": worker.is_ready} for worker in self._workers
            ],
        }

    @property
    def _workers(self) -> tuple[Worker, ...]:
        return () if self._fleet is None else self._fleet.workers


class FleetCollector(Collector):
    """Collects the metrics of the supervising process about its workers."""

    def __init__(self, fleet: Fleet) -> None:
        """Collect from ``fleet``."""
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        fleet = self._fleet
        ready = sum(worker.is_ready for worker in fleet.workers)
        yield GaugeMetricFamily(
            "sagastore_workers", "Worker processes as set (workers).", value=float(fleet.number)
        )
        yield GaugeMetricFamily(
            "sagastore_workers_ready", "Worker processes that are ready.", value=float(ready)
        )
        yield CounterMetricFamily(
            "sagastore_worker_restarts", "Worker processes that were replaced.", fleet.restarts
        )


def _reasons(worker: Worker) -> list[Finding]:
    return [] if worker.report is None else worker.report.reasons


def _warnings(worker: Worker) -> list[Finding]:
    return [] if worker.report is None else worker.report.warnings


def _told(
    workers: Sequence[Worker], findings: Callable[[Worker], Iterable[Finding]]
) -> Iterator[Finding]:
    """Yield each finding once, with the numbers of the workers if not all report it."""
    by: dict[Finding, list[int]] = {}
    for worker in workers:
        for finding in findings(worker):
            by.setdefault(finding, []).append(worker.number)
    for finding, numbers in by.items():
        if len(numbers) == len(workers):
            yield finding
            continue
        of = ", ".join(map(str, numbers))
        detail = f"worker{'s' if len(numbers) > 1 else ''} {of}: {finding.detail}"
        yield finding._replace(detail=detail)


def _missing(fleet: Fleet) -> list[Finding]:
    ready = sum(worker.is_ready for worker in fleet.workers)
    if ready == fleet.number:
        return []
    return [
        Finding(
            Notice.WORKERS_MISSING.value,
            f"{ready} of {fleet.number} worker processes are ready; the others start, have ended "
            "or do not respond",
            "none needed; they are replaced automatically. If this persists, see the log",
        )
    ]


def _starting(workers: Sequence[Worker], number: int) -> Finding:
    ready = sum(worker.is_ready for worker in workers)
    return Finding(
        Reason.STARTING.value,
        f"{ready} of {number} worker processes have opened the store",
        "wait; the server becomes ready once all have",
    )


def _draining(left: float) -> Finding:
    return Finding(
        Reason.DRAINING.value,
        f"the server is stopping; calls in progress have up to {left:.0f} s",
        "none needed; send calls to another server, or restart this one after it has exited",
    )


def _no_worker() -> Finding:
    return Finding(
        Reason.NO_WORKER.value,
        "no worker process accepts calls",
        "wait; they are replaced automatically. If this persists, see the log",
    )
