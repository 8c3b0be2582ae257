"""Supervising process: composition of the port, the ops port and the workers, and their life."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from typing import NamedTuple

import structlog
from prometheus_client import CollectorRegistry

from sagastore_server import __version__
from sagastore_server.app import ServerError, StartupError
from sagastore_server.banner import Serving, announce
from sagastore_server.config.address import Address
from sagastore_server.config.settings import OFF, Settings
from sagastore_server.runtime.signals import StopSignals
from sagastore_server.runtime.supervisor import Supervisor, awaited
from sagastore_server.runtime.systemd import Notifier
from sagastore_server.telemetry.collectors import ReadinessCollector
from sagastore_server.telemetry.log_handler import LimitedHandler
from sagastore_server.telemetry.merging import MergedCollector
from sagastore_server.telemetry.metrics import Metrics
from sagastore_server.telemetry.ops_pages import Refresh
from sagastore_server.telemetry.setup import (
    TelemetryError,
    bound_ops_port,
    check_exposure,
    warn_without_metrics,
)
from sagastore_server.workers.fleet import Fleet
from sagastore_server.workers.port import PortError, SharedPort
from sagastore_server.workers.readiness import FleetCollector, FleetReadiness
from sagastore_server.workers.worker import REPORT_EVERY, WriteLines

_REFRESH_SECONDS = 2.0
"""Seconds that a scrape waits for the event loop of this process; then it shows older values."""

_log = structlog.get_logger(__name__)


async def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve with `settings.workers` processes until a stop signal arrives, then drain them.

    Args:
        settings: Settings of the service.
        say: Prints the banner.

    Raises:
        ServerError: The service cannot start, or no worker can serve any more.

    """
    metrics, readiness = Metrics(__version__), FleetReadiness()
    merged = MergedCollector(metrics.registry)
    supervisor = Supervisor(metrics)
    with _port(settings) as port:
        fleet = Fleet(settings, port.address, supervisor, merged, _log_writer())
        readiness.watch(fleet, lambda: supervisor.failing)
        metrics.registry.register(ReadinessCollector(readiness))
        metrics.registry.register(FleetCollector(fleet))
        try:
            async with (
                _ops_port(settings, readiness, merged, fleet, supervisor) as ops,
                Notifier(supervisor=supervisor) as systemd,
            ):
                supervisor.start("worker-watch", lambda: _watch(fleet, readiness))
                await _Run(settings, fleet, readiness, systemd, ops=ops, say=say).run()
        finally:
            await supervisor.close()
    _log.info("stopped")


class _OpsPort(NamedTuple):
    address: Address | None
    """None: there is none."""
    unavailable: str
    """Why the default port is not available; empty if it is, or none is wanted."""


class _Run:
    """The life of the service, from the start of the workers to their end."""

    def __init__(
        self,
        settings: Settings,
        fleet: Fleet,
        readiness: FleetReadiness,
        systemd: Notifier,
        *,
        ops: _OpsPort,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._readiness = readiness
        self._systemd = systemd
        self._ops = ops
        self._say = say
        self._signals = StopSignals()

    async def run(self) -> None:
        """Start the workers, serve until a stop signal arrives, and drain.

        Raises:
            ServerError: No worker can serve.

        """
        fleet, grace = self._fleet, self._settings.drain_seconds
        serving = awaited(fleet.serving())
        fleet.start()
        try:
            if await self._stopped_or(serving):
                self._announce(serving.result())
                await self._stopped_or()
            self._systemd.stopping(grace)
            self._readiness.draining(grace)
            _log.info("draining", workers=len(fleet.workers), seconds=grace)
            await fleet.drain(grace, self._signals.second)
        finally:
            serving.cancel()
            await fleet.close()

    async def _stopped_or(self, *others: asyncio.Task[Serving]) -> bool:
        """Wait for a stop signal or one of ``others``; return whether it was one of these.

        Raises:
            ServerError: No worker can serve.

        """
        stop = awaited(self._signals.first.wait())
        failed = awaited(self._fleet.failed())
        await asyncio.wait({stop, failed, *others}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        failed.cancel()
        if self._signals.first.is_set():
            return False
        if self._fleet.failure:
            raise ServerError(self._fleet.failure)
        return True

    def _announce(self, serving: Serving) -> None:
        warn_without_metrics(self._ops.unavailable)
        announce(serving._replace(ops=self._ops.address), self._settings, self._say)
        where = f"serving {serving.store} on {serving.address}"
        self._systemd.ready(f"{where} with {self._fleet.number} workers")


@contextmanager
def _port(settings: Settings) -> Iterator[SharedPort]:
    try:
        port = SharedPort(settings.address)
    except PortError as exc:
        raise StartupError(
            f"cannot listen on {settings.listen}: {exc}; choose another address with --listen"
        ) from exc
    with closing(port):
        yield port


@asynccontextmanager
async def _ops_port(
    settings: Settings,
    readiness: FleetReadiness,
    merged: MergedCollector,
    fleet: Fleet,
    supervisor: Supervisor,
) -> AsyncIterator[_OpsPort]:
    registry = CollectorRegistry()
    registry.register(merged)
    try:
        check_exposure(settings)
        if settings.ops_listen == OFF:
            server, unavailable = None, ""
        else:
            server, unavailable = bound_ops_port(settings, readiness, registry, _refresh(fleet))
    except TelemetryError as exc:
        raise StartupError(str(exc)) from exc
    if server is None:
        yield _OpsPort(None, unavailable)
        return
    answering = supervisor.start("ops-server", server.run)
    try:
        yield _OpsPort(server.address, "")
    finally:
        await answering.stop()
        server.close()


def _refresh(fleet: Fleet) -> Refresh:
    """Return what collects the metrics of the workers, for the thread of the ops server."""
    loop = asyncio.get_running_loop()

    async def refresh() -> None:
        measuring = asyncio.run_coroutine_threadsafe(fleet.measure(), loop)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(measuring), _REFRESH_SECONDS)

    return refresh


async def _watch(fleet: Fleet, readiness: FleetReadiness) -> None:
    while True:
        readiness.beat()
        fleet.watch()
        await asyncio.sleep(REPORT_EVERY)


def _log_writer() -> WriteLines:
    """Return the function that writes lines of the workers to the log of this process."""
    handlers = logging.getLogger().handlers
    handler = next(one for one in handlers if isinstance(one, LimitedHandler))
    return handler.write_lines
