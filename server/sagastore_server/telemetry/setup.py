"""Telemetry: metrics, readiness and traces, put together from the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import structlog

from sagastore_server.config.address import Address
from sagastore_server.config.settings import OFF, Settings
from sagastore_server.interfaces.instruments import Instruments
from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.storage.load import Load
from sagastore_server.storage.migration import MigrationControl
from sagastore_server.telemetry.readiness import Readiness
from sagastore_server.telemetry.sampler import Sampler

if TYPE_CHECKING:
    from sagastore_server.telemetry.collectors import AdmissionLoad
    from sagastore_server.telemetry.metrics import Metrics
    from sagastore_server.telemetry.ops_server import OpsServer
    from sagastore_server.telemetry.tracing import OpenTelemetryTracer

_log = structlog.get_logger(__name__)


class TelemetryError(Exception):
    """What shall be seen cannot be shown; the line says why, and what to do."""


class Subject(NamedTuple):
    """What is looked at."""

    calls: Callable[[], float]
    """Single calls inside; from any thread."""
    streams: Callable[[], float]
    """Streams inside; from any thread."""
    loads: Callable[[], list[Load]]
    """How busy the stores are."""
    control: MigrationControl
    certificate_ends: Callable[[], float] | None
    """When the certificate ends, in seconds since 1970; from any thread. None: no TLS."""


class Telemetry:
    """In this order: make it, ``begin``, ``opened``, ``draining``, ``end``.

    Where the ops port is off or cannot be had, nothing is counted.
    """

    def __init__(self, settings: Settings, version: str, methods: Iterable[str]) -> None:
        """Take the ops port, and trace from now on if the settings say so.

        ``methods`` are the names of the RPCs, like ``sagastore.v1.StorageService/Save``.

        Raises:
            TelemetryError: A port that was named cannot be had, or what traces is missing.

        """
        self._settings = settings
        self.readiness = Readiness()
        self._traces: OpenTelemetryTracer | None = None
        self._server: OpsServer | None = None
        self._metrics: Metrics | None = None
        self._sampler: Sampler | None = None
        self._missing = ""
        """Why there is no ops port although one was not refused."""
        if settings.ops_listen != OFF:
            self._take_port(Address.parse(settings.ops_listen), version, methods)
        if settings.otlp_endpoint is not None:
            self._trace(settings.otlp_endpoint, version)

    @property
    def instruments(self) -> Instruments:
        """What hears of calls and commits."""
        return Instruments() if self._metrics is None else self._metrics

    @property
    def tracer(self) -> Tracer:
        """Tracer of this server; `NO_TRACER` if tracing is off."""
        return NO_TRACER if self._traces is None else self._traces

    @property
    def address(self) -> Address | None:
        """Where the ops port is; None: there is none."""
        return None if self._server is None else self._server.address

    def begin(self, subject: Subject) -> None:
        """Answer on the ops port from now on, as a server that is starting. On the event loop."""
        metrics, server = self._metrics, self._server
        if metrics is None or server is None:
            return
        from sagastore_server.telemetry.collectors import StoreCollector  # noqa: PLC0415 - as in _take_port

        self._sampler = Sampler(
            subject.loads, subject.control, self.readiness, metrics.loop_delayed
        )
        doorway = self._doorway(subject)
        metrics.registry.register(
            StoreCollector(doorway, self._sampler, self.readiness, subject.certificate_ends)
        )
        self._sampler.start()
        server.start()

    def opened(self) -> None:
        """Take note that the stores are open and calls are taken."""
        self.readiness.opened()
        # Only now, lest a server that cannot start says more than why.
        if self._missing:
            _log.warning(
                "no metrics",
                reason=self._missing,
                remedy="set ops_listen to another address if this server shall be watched",
            )
        if self._sampler is not None:
            self._sampler.opened()

    def draining(self, seconds: float, calls: Callable[[], int]) -> None:
        """Take note that the server stops: ``calls`` under way have ``seconds``."""
        self.readiness.draining(seconds, calls)

    async def close_eyes(self) -> None:
        """Stop looking at the stores, which are going to be closed."""
        if self._sampler is not None:
            await self._sampler.stop()

    async def end(self) -> None:
        """Stop answering, and send the traces that are left."""
        await self.close_eyes()
        if self._server is not None:
            self._server.close()
        if self._traces is not None:
            self._traces.close()

    def _doorway(self, subject: Subject) -> AdmissionLoad:
        from sagastore_server.telemetry.collectors import AdmissionLoad  # noqa: PLC0415 - as in _take_port

        settings = self._settings
        return AdmissionLoad(
            subject.calls, settings.max_calls, subject.streams, settings.max_streams
        )

    def _take_port(self, address: Address, version: str, methods: Iterable[str]) -> None:
        # Half a tenth of a second, which those without an ops port need not wait.
        from sagastore_server.telemetry.metrics import Metrics  # noqa: PLC0415
        from sagastore_server.telemetry.ops_server import OpsServer  # noqa: PLC0415

        _check_exposure(address, self._settings)
        metrics = Metrics(version, methods)
        try:
            self._server = OpsServer(address, self.readiness, metrics.registry)
        except OSError as exc:
            if "ops_listen" in self._settings.model_fields_set:
                raise TelemetryError(
                    f"cannot listen on {address} for metrics (ops_listen): "
                    f"{exc.strerror or exc}; choose another address, or off"
                ) from exc
            self._missing = f"{address} cannot be listened on: {exc.strerror or exc}"
            return
        self._metrics = metrics

    def _trace(self, endpoint: str, version: str) -> None:
        try:
            from sagastore_server.telemetry.tracing import OpenTelemetryTracer  # noqa: PLC0415 - an extra; half a second
        except ImportError as exc:
            raise TelemetryError(
                "otlp_endpoint needs what is not installed: "
                "pip install 'sagastore-server[tracing]', or leave otlp_endpoint out"
            ) from exc
        self._traces = OpenTelemetryTracer(endpoint, self._settings.trace_share, version)


def _check_exposure(address: Address, settings: Settings) -> None:
    if address.is_loopback or settings.allow_insecure:
        return
    raise TelemetryError(
        f"ops_listen {address} can be reached from other machines, and what is told there is in "
        "plain text and for everybody; listen on 127.0.0.1, or accept that with --allow-insecure"
    )
