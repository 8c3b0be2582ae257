"""The workers as the supervising process sees them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import closing

import pytest
from prometheus_client import CollectorRegistry

from sagastore_server.config.address import Address
from sagastore_server.config.settings import Settings
from sagastore_server.runtime.supervisor import Supervisor
from sagastore_server.telemetry.merging import MergedCollector
from sagastore_server.workers.fleet import Fleet
from sagastore_server.workers.port import SharedPort
from sagastore_server.workers.readiness import FleetReadiness
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers need Linux")


@pytest.fixture
async def fleet(dsn: str) -> AsyncIterator[Fleet]:
    """Run two workers, which are watched by the test."""
    supervisor = Supervisor()
    with closing(SharedPort(Address("127.0.0.1", 0))) as port:
        settings = Settings(postgres=dsn, workers=2)  # type: ignore[arg-type]
        metrics = MergedCollector(CollectorRegistry())
        running = Fleet(settings, port.address, supervisor, metrics, lambda _: None)
        running.start()
        try:
            await running.serving()
            yield running
        finally:
            await running.close()
            await supervisor.close()


async def test_worker_that_hangs_is_reported_and_replaced(fleet: Fleet) -> None:
    readiness = FleetReadiness()
    readiness.watch(fleet, tuple)
    hung, other = fleet.workers
    os.kill(hung.pid, signal.SIGSTOP)
    seen: set[tuple[bool, bool, str]] = set()
    while hung in fleet.workers:
        # Each round stands for half a second, and ends as soon as the other worker has answered.
        before = other.report
        fleet.watch()
        await until(lambda report=before: other.report is not report)  # type: ignore[misc]
        readiness.beat()
        warnings = [finding.reason for finding in readiness.warnings()]
        seen.add((readiness.live, not readiness.reasons(), ", ".join(warnings)))
    assert (True, True, "") in seen
    assert (False, True, "WORKERS_MISSING") in seen
    await fleet.serving()
    assert hung not in fleet.workers
