"""Telemetry of the server: metrics, readiness and traces, built from the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import structlog

from sagastore_server.config.address import Address
from sagastore_server.config.settings import OFF, Settings
from sagastore_server.interfaces.backups import BackupRecord
from sagastore_server.interfaces.forwarding import ForwardingCounts, ForwardingState
from sagastore_server.interfaces.instruments import Instruments
from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.interfaces.usage import Usage
from sagastore_server.runtime.supervisor import SupervisedTask, Supervisor
from sagastore_server.storage.load import Load
from sagastore_server.storage.migration import MigrationControl
from sagastore_server.storage.phase import Phase
from sagastore_server.telemetry.readiness import Readiness, not_forwarding
from sagastore_server.telemetry.sampler import Sampler

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from sagastore_server.telemetry.collectors import AdmissionLoad
    from sagastore_server.telemetry.metrics import Metrics
    from sagastore_server.telemetry.ops_pages import Probes, Refresh
    from sagastore_server.telemetry.ops_server import OpsServer
    from sagastore_server.telemetry.tracing import OpenTelemetryTracer

Publish = Callable[[Readiness, "CollectorRegistry"], None]
"""Receives what the ops port of another process shows."""

_log = structlog.get_logger(__name__)


class TelemetryError(Exception):
    """Telemetry could not be started. The message is one line: the reason and the remedy."""


class Sources(NamedTuple):
    """Where the sampled values come from."""

    calls: Callable[[], float]
    """Number of unary calls in progress. Safe in any thread."""
    streams: Callable[[], float]
    """Number of open streams. Safe in any thread."""
    loads: Callable[[], list[Load]]
    """Load of the stores."""
    control: MigrationControl
    certificate_ends: Callable[[], float] | None
    """Expiry of the certificate, in seconds since 1970. Safe in any thread. None without TLS."""
    audit_lost: Callable[[], float] = float
    """Number of audit lines that could not be written. Safe in any thread."""
    usage: Callable[[], Sequence[Usage]] = tuple
    """Usage of limited resources. Safe in any thread."""
    forwarding: Callable[[], ForwardingState | None] = not_forwarding
    """Returns whether and where to calls are forwarded. Safe in any thread."""
    forwarding_counts: Callable[[], ForwardingCounts] = ForwardingCounts
    """Returns the counts of forwarded calls. Safe in any thread."""
    backups: Callable[[], BackupRecord | None] | None = None
    """Reads the outcome of the last backups of the file. Safe in any thread. None without one."""


class Telemetry:
    """Metrics, readiness and traces of the server.

    Call in this order: the constructor, `begin`, `opened`, `draining`, `stop_sampling`, `end`.
    Without an ops port no metrics are collected.
    """

    def __init__(
        self,
        settings: Settings,
        version: str,
        methods: Iterable[str],
        publish: Publish | None = None,
    ) -> None:
        """Bind the ops port, and start tracing if the settings ask for it.

        Args:
            settings: Settings of the server.
            version: Version of the server.
            methods: The names of the RPCs, for example ``sagastore.v1.StorageService/Save``.
            publish: Receives metrics and readiness; then no ops port is bound.

        Raises:
            TelemetryError: ``ops_listen`` is set and unavailable, or can be reached from other
                machines although no setting accepts that, or a package is missing.

        """
        self._settings = settings
        self.readiness = Readiness()
        self._tracer: OpenTelemetryTracer | None = None
        self._server: OpsServer | None = None
        self._answering: SupervisedTask | None = None
        self._metrics: Metrics | None = None
        self._sampler: Sampler | None = None
        self._unavailable = ""
        """Why the default ops port is not available; empty if it is, or is not wanted."""
        check_exposure(settings)
        if publish is not None or settings.ops_listen != OFF:
            self._begin_metrics(version, methods, publish)
        if settings.otlp_endpoint is not None:
            self._start_tracing(settings.otlp_endpoint, version)

    @property
    def instruments(self) -> Instruments:
        """Receives the events that are counted."""
        return Instruments() if self._metrics is None else self._metrics

    @property
    def tracer(self) -> Tracer:
        """Tracer of this server; `NO_TRACER` if tracing is off."""
        return NO_TRACER if self._tracer is None else self._tracer

    @property
    def address(self) -> Address | None:
        """Address of the ops port; None if there is none."""
        return None if self._server is None else self._server.address

    def begin(self, sources: Sources, supervisor: Supervisor | None = None) -> None:
        """Answer on the ops port from now on. Needs the running event loop.

        The tasks of ``supervisor`` (default: a new one) that fail appear in readiness.
        """
        tasks = supervisor or Supervisor(self.instruments)
        self.readiness.watch_tasks(lambda: tasks.failing)
        self.readiness.watch_usage(sources.usage)
        self.readiness.watch_forwarding(sources.forwarding)
        metrics, server = self._metrics, self._server
        if metrics is None:
            return
        from sagastore_server.telemetry.collectors import (  # noqa: PLC0415 - as in _bind
            AuditCollector,
            BackupCollector,
            ForwardingCollector,
            ReadinessCollector,
            StoreCollector,
        )

        self._sampler = Sampler(
            sources.loads, sources.control, self.readiness, metrics.loop_delayed, tasks
        )
        admission = self._admission_load(sources)
        metrics.registry.register(
            StoreCollector(admission, self._sampler, self.readiness, sources.certificate_ends)
        )
        metrics.registry.register(ReadinessCollector(self.readiness))
        metrics.registry.register(AuditCollector(sources.audit_lost))
        metrics.registry.register(
            ForwardingCollector(sources.forwarding, sources.forwarding_counts)
        )
        if sources.backups is not None:
            metrics.registry.register(BackupCollector(sources.backups, self._is_file_in_use))
        self._sampler.start()
        if server is not None:
            self._answering = tasks.start("ops-server", server.run)

    def opened(self) -> None:
        """Record that the stores are open and the server accepts calls."""
        self.readiness.opened()
        # Only now: a server that fails to start logs its error alone.
        warn_without_metrics(self._unavailable)
        if self._sampler is not None:
            self._sampler.opened()

    def draining(self, seconds: float, calls: Callable[[], int]) -> None:
        """Record that the server stops; ``calls`` counts the calls that have ``seconds`` left."""
        self.readiness.draining(seconds, calls)

    async def stop_sampling(self) -> None:
        """Stop sampling the stores. Call this before they are closed."""
        if self._sampler is not None:
            await self._sampler.stop()

    async def end(self) -> None:
        """Close the ops port and send the remaining spans."""
        await self.stop_sampling()
        if self._answering is not None:
            await self._answering.stop()
        if self._server is not None:
            self._server.close()
        if self._tracer is not None:
            self._tracer.close()

    def _is_file_in_use(self) -> bool:
        """Whether the messages are in the SQLite file; an archived file needs no backups."""
        snapshot = None if self._sampler is None else self._sampler.snapshot
        return snapshot is not None and snapshot.phase is not Phase.POSTGRES_ONLY

    def _admission_load(self, sources: Sources) -> AdmissionLoad:
        from sagastore_server.telemetry.collectors import AdmissionLoad  # noqa: PLC0415 - as in _bind

        settings = self._settings
        return AdmissionLoad(
            sources.calls,
            settings.max_calls,
            sources.streams,
            settings.max_streams,
            sources.usage,
        )

    def _begin_metrics(self, version: str, methods: Iterable[str], publish: Publish | None) -> None:
        # The import takes 0.05 s, which a server without an ops port saves.
        from sagastore_server.telemetry.metrics import Metrics  # noqa: PLC0415

        metrics = Metrics(version, methods)
        if publish is not None:
            publish(self.readiness, metrics.registry)
        else:
            self._server, self._unavailable = bound_ops_port(
                self._settings, self.readiness, metrics.registry
            )
            if self._server is None:
                return
        self._metrics = metrics

    def _start_tracing(self, endpoint: str, version: str) -> None:
        try:
            from sagastore_server.telemetry.tracing import OpenTelemetryTracer  # noqa: PLC0415 - an extra; half a second
        except ImportError as exc:
            raise TelemetryError(
                "otlp_endpoint needs the tracing extra, which is not installed: "
                "pip install 'sagastore-server[tracing]', or remove otlp_endpoint"
            ) from exc
        self._tracer = OpenTelemetryTracer(endpoint, self._settings.trace_share, version)


def bound_ops_port(
    settings: Settings,
    readiness: Probes,
    registry: CollectorRegistry,
    refresh: Refresh | None = None,
) -> tuple[OpsServer | None, str]:
    """Bind the ops port of the settings, which is not `OFF`.

    Returns:
        The server; or None and the reason, if the address is the default and is unavailable.

    Raises:
        TelemetryError: ``ops_listen`` is set and unavailable.

    """
    # The import takes 0.05 s, which a server without an ops port saves.
    from sagastore_server.telemetry.ops_server import OpsServer  # noqa: PLC0415

    address = Address.parse(settings.ops_listen)
    try:
        return OpsServer(address, readiness, registry, refresh), ""
    except OSError as exc:
        if "ops_listen" in settings.model_fields_set:
            raise TelemetryError(
                f"cannot listen on {address} for metrics (ops_listen): "
                f"{exc.strerror or exc}; choose another address, or off"
            ) from exc
        return None, f"cannot listen on {address}: {exc.strerror or exc}"


def warn_without_metrics(reason: str) -> None:
    """Log why there is no ops port; an empty ``reason``: there is one, or none is wanted."""
    if reason:
        _log.warning(
            "no metrics",
            reason=reason,
            remedy="set ops_listen to a free address to collect metrics",
        )


def check_exposure(settings: Settings) -> None:
    """Require an explicit decision for an ops port that other machines can reach.

    It has no TLS and no callers to authenticate, so there is no other way to protect it.

    Raises:
        TelemetryError: Other machines can reach ``ops_listen``, and no setting accepts that.

    """
    if settings.ops_listen == OFF or settings.ops_allow_insecure or settings.allow_insecure:
        return
    address = Address.parse(settings.ops_listen)
    if address.is_loopback:
        return
    raise TelemetryError(
        f"ops_listen {address} can be reached from other machines, unencrypted and without "
        "authentication; listen on 127.0.0.1, or accept it with --ops-allow-insecure"
    )
