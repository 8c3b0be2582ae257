"""Scrapes of the ops port: shared, fresh, and limited in processor time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sagastore_server.telemetry.ops_pages import SCRAPE_SHARE, OpsPages
from sagastore_server.telemetry.readiness import Readiness

SECONDS = 0.02
"""Duration of one collection."""


class Slow(Collector):
    """A collector that takes `SECONDS`, and counts."""

    collections = 0

    def collect(self) -> Iterable[Metric]:
        """Return the number of this collection."""
        time.sleep(SECONDS)
        self.collections += 1
        yield GaugeMetricFamily("collections", "Number of collections.", self.collections)


class Connection:
    """Receives what the server would."""

    def requested(self) -> None:
        """Accept the request."""


async def scrape(pages: OpsPages) -> float:
    """Return the sample of `Slow`, as a client gets it."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the pages read no body")

    state = {"connection": Connection()}
    scope = {"method": "GET", "path": "/metrics", "headers": [], "state": state}
    await pages(scope, receive, send)
    assert sent[0]["status"] == 200
    return float(sent[1]["body"].splitlines()[-1].split()[-1])


def pages_of(collector: Slow) -> OpsPages:
    registry = CollectorRegistry()
    registry.register(collector)
    # Registration collects once, for the names.
    collector.collections = 0
    return OpsPages(Readiness(), registry)


async def test_concurrent_scrapes_share_the_work() -> None:
    collector = Slow()
    pages = pages_of(collector)
    found = await asyncio.gather(*(scrape(pages) for _ in range(100)))
    # Those that arrived before the first collection began share it; none is older.
    assert set(found) <= {1.0, 2.0}
    assert collector.collections <= 2


async def test_scrape_has_values_of_its_own_time() -> None:
    collector = Slow()
    pages = pages_of(collector)
    for number in range(1, 4):
        assert await scrape(pages) == number


async def test_scrapes_use_a_share_of_the_time() -> None:
    collector = Slow()
    pages = pages_of(collector)
    began = time.monotonic()
    for _ in range(6):
        await scrape(pages)
    # The pause after the last one is not part of the time.
    assert 5 * SECONDS / (time.monotonic() - began) <= SCRAPE_SHARE * 1.05
