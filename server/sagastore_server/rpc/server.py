"""gRPC server: options, TLS, services and lifecycle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import grpc
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from sagastore.v1 import file_pb2, migration_pb2, session_pb2, storage_pb2
from sagastore_server.interfaces.access import AccessControl
from sagastore_server.interfaces.audit import Audit
from sagastore_server.interfaces.forwarding import ForwardingCounts
from sagastore_server.interfaces.instruments import Instruments
from sagastore_server.interfaces.tls import TlsMaterial, TlsSource
from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.interfaces.usage import Usage
from sagastore_server.rpc.admission import AdmissionControl, Limits
from sagastore_server.rpc.client_certificates import ClientCertificates
from sagastore_server.rpc.connections import Connections
from sagastore_server.rpc.error_responder import ErrorResponder
from sagastore_server.rpc.file_service import FileServicer
from sagastore_server.rpc.forwarded_calls import ForwardedCalls
from sagastore_server.rpc.forwarding import Forwarding
from sagastore_server.rpc.grpc_internals import create_server
from sagastore_server.rpc.handlers import service_handler
from sagastore_server.rpc.health_service import Health, health_admission, health_handlers
from sagastore_server.rpc.lifecycle import Lifecycle, LifecycleState
from sagastore_server.rpc.load_shedding import LoadShedder
from sagastore_server.rpc.migration_service import MigrationServicer
from sagastore_server.rpc.session_service import SessionServicer
from sagastore_server.rpc.storage_service import StorageServicer
from sagastore_server.runtime.descriptors import RESERVED, in_use, raise_limit
from sagastore_server.runtime.memory import trim_regularly
from sagastore_server.runtime.session_deletion import SessionDeletion
from sagastore_server.runtime.supervisor import SupervisedTask, Supervisor, awaited
from sagastore_server.runtime.worker_pool import WorkerPool
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.migration import MigrationControl

_MAX_PENDING = 8192
"""Calls that may wait inside gRPC before it drops some; each takes about 14 KiB.

gRPC drops further calls with a rising probability, and all of them from twice this number on.
"""

_STREAMS_PER_CONNECTION = 1024
"""Least number of concurrent calls that a connection may carry."""

_HANDSHAKE_MS = 10_000
"""Milliseconds for the handshakes of TLS and HTTP/2."""

_CONNECTION_IDLE_MS = 600_000
"""Milliseconds without a call after which a client is asked to reconnect with its next call."""

_CONNECTION_GRACE = 3600.0
"""Seconds that calls may continue on a connection that has reached its maximum age."""

_STOP_GRACE = 1.0
"""Seconds that ``stop`` gives to responses being sent and to health watchers."""

_SERVICES = (
    storage_pb2.DESCRIPTOR.services_by_name["StorageService"],
    session_pb2.DESCRIPTOR.services_by_name["SessionService"],
    file_pb2.DESCRIPTOR.services_by_name["FileService"],
    migration_pb2.DESCRIPTOR.services_by_name["MigrationService"],
)
METHODS = tuple(
    f"{service.full_name}/{method.name}" for service in _SERVICES for method in service.methods
)
"""The names of the RPCs: ``sagastore.v1.StorageService/Save``, …"""
_HEALTH_NAMES = ("", *(service.full_name for service in _SERVICES))
_STORE_NAMES = ("", *(service.full_name for service in _SERVICES[:3]))
"""Health names that depend on the store."""
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def _streams_per_connection(limits: Limits) -> int:
    return max(_STREAMS_PER_CONNECTION, 2 * (limits.max_calls + limits.max_streams))


def _channel_options(limits: Limits, *, shares_port: bool = False) -> tuple[tuple[str, int], ...]:
    options: tuple[tuple[str, int], ...] = (
        ("grpc.max_receive_message_length", limits.max_request_bytes),
        # Responses are bounded by their content (storage.limits, MAX_BATCH_GET_BYTES). A second
        # limit here would only turn a response into an error.
        ("grpc.max_send_message_length", -1),
        # gRPC inflates a message before anybody can decide about it.
        ("grpc.compression_enabled_algorithms_bitset", -1 if limits.request_compression else 1),
        # Without it, a stream's initial window grows, and unread requests with it.
        ("grpc.http2.bdp_probe", 0),
        # Detect dead peers within 80 s, and allow clients to ping every 10 s, also when idle.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # gRPC refuses further streams without a call, which costs a hundredth: 60,000 streams
        # without a request, or a client that resets each of its streams, keep no other client
        # waiting. It also resets some streams that a client begins within the limit just as others
        # end; therefore the limit is twice what admission control accepts.
        ("grpc.max_concurrent_streams", _streams_per_connection(limits)),
        # A client that connects and does not speak keeps its connection for 120 s by default.
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        # Beyond this, gRPC drops calls with a bare CANCELLED. Admission control refuses long
        # before, with a reason; this limit is for floods faster than it can refuse.
        ("grpc.server.max_pending_requests", _MAX_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _MAX_PENDING),
    )
    options = (
        *options,
        ("grpc.max_connection_idle_ms", _CONNECTION_IDLE_MS),
        # By default gRPC shares its port. A second server on the port must fail to start instead.
        ("grpc.so_reuseport", int(shares_port)),
    )
    if not limits.connection_age:
        return options
    return (
        *options,
        ("grpc.max_connection_age_ms", int(limits.connection_age * 1000)),
        ("grpc.max_connection_age_grace_ms", int(_CONNECTION_GRACE * 1000)),
    )


class ServerOptions(NamedTuple):
    """Options of `RpcServer`."""

    limits: Limits = Limits()
    access: AccessControl | None = None
    """Authenticates callers; None: every caller may call everything."""
    tls: TlsSource | None = None
    """TLS material; None: plain text."""
    certificate_end: Callable[[bytes], float] | None = None
    """Returns the end of validity of a client certificate in PEM; None: it is not checked after
    the TLS handshake."""
    instruments: Instruments | None = None
    """Receives metrics."""
    tracer: Tracer = NO_TRACER
    supervisor: Supervisor | None = None
    """Runs the background tasks; None: a supervisor of the server's own."""
    reflection: bool = True
    """Whether the reflection service is offered."""
    log_calls: bool = False
    """Whether each call is logged when it ends."""
    audit: Audit | None = None
    """Records changes and refused callers."""
    forwarding: Forwarding | None = None
    """Forwards calls until `serve_here`; None: this server answers calls from the start."""
    store_id: Callable[[], str] = str
    """Returns the identity of the store, once it is open; an empty string: not known."""
    shares_port: bool = False
    """Whether other processes of this service listen on the same port."""


class CannotListenError(Exception):
    """The server cannot listen on its address."""


class RpcServer:
    """Serves a backend and its migration control over gRPC.

    Call the methods in this order: ``start``, which answers health checks with NOT_SERVING;
    ``start_accepting``, once the backend is open; ``drain``; ``stop``.
    """

    def __init__(
        self,
        backend: StorageBackend,
        control: MigrationControl,
        options: ServerOptions = ServerOptions(),  # noqa: B008 - immutable
    ) -> None:
        """Create a server that does not listen yet. Requires a running event loop."""
        descriptors = raise_limit()
        connections = max(1, min(options.limits.max_connections, descriptors - RESERVED))
        options = options._replace(limits=options.limits._replace(max_connections=connections))
        limits = options.limits
        self._options = options
        self._descriptors = descriptors
        self._connections = Connections(limits.max_connections, limits.caller_share)
        self._supervisor = options.supervisor or Supervisor(options.instruments)
        self._lifecycle = Lifecycle()
        self._health = Health(_HEALTH_NAMES)
        # One process: it is for batches, and a second one would compete with the event loop.
        self._worker_pool = WorkerPool(1)
        self._server, call_counts = create_server(
            _channel_options(limits, shares_port=options.shares_port)
        )
        forwarded_calls = ForwardedCalls(self._store_id, self._is_forwarding)
        health = health_admission(limits, forwarded_calls)
        shedder = LoadShedder(
            limits.max_calls,
            call_counts,
            lambda: self.admission.streams + health.streams,
            handed_over=lambda: self.admission.begun + health.begun,
            calls=lambda: self.admission.calls + health.calls,
        )
        self.admission = AdmissionControl(
            self._lifecycle,
            limits,
            options.access,
            options.instruments,
            load_shedder=shedder,
            client_certificates=(
                ClientCertificates(options.certificate_end) if options.certificate_end else None
            ),
            log_calls=options.log_calls,
            audit=options.audit,
            forwarded_calls=forwarded_calls,
        )
        self._session_deletion = SessionDeletion(backend, self._supervisor)
        self._probes = health
        self._tasks: list[SupervisedTask] = []
        self._termination: asyncio.Task[bool] | None = None
        self._add_services(backend, control, health)

    def _store_id(self) -> str:
        """Return the identity of the store, or an empty string while it is not open."""
        is_open = self._lifecycle.state is not LifecycleState.STARTING
        return self._options.store_id() if is_open else ""

    def _is_forwarding(self) -> bool:
        forwarding = self._options.forwarding
        return forwarding is not None and forwarding.active

    def _add_services(
        self, backend: StorageBackend, control: MigrationControl, health: AdmissionControl
    ) -> None:
        options, responder = self._options, ErrorResponder()
        timeout = options.limits.search_timeout
        storage = StorageServicer(
            backend, self._lifecycle, self._worker_pool, search_timeout=timeout
        )
        sessions = SessionServicer(backend, self._session_deletion, self._worker_pool)
        servicers = (
            storage,
            sessions,
            FileServicer(backend, self._worker_pool),
            MigrationServicer(backend, control),
        )
        handlers = [
            service_handler(
                service,
                servicer,
                self.admission,
                responder,
                options.tracer,
                pool=self._worker_pool,
                forwarding=options.forwarding,
            )
            for service, servicer in zip(_SERVICES, servicers, strict=True)
        ]
        handlers += health_handlers(
            self._health, _HEALTH_NAMES[1:], health, responder, reflection=options.reflection
        )
        self._server.add_generic_rpc_handlers(tuple(handlers))

    async def start(self, address: str) -> int:
        """Listen on ``address`` (``host:port``; port 0: any free port) and return the port.

        Raises:
            CannotListenError: The address is in use, or does not belong to this machine.

        """
        try:
            port = self._bind(address)
        except RuntimeError as exc:
            raise CannotListenError(f"cannot listen on {address}") from exc
        await self._server.start()
        self._connections.listen_on(port)
        self._termination = awaited(self._server.wait_for_termination(), name="grpc-termination")
        self._tasks = [
            self._supervisor.start("load-sampler", self.admission.load_shedder.run),
            self._supervisor.start("call-watcher", self.admission.watch),
            self._supervisor.start("probe-watcher", self._probes.watch),
            self._supervisor.start("memory-trimmer", self._trim_regularly),
            self._supervisor.start("connection-watcher", self._connections.run),
        ]
        return port

    async def _trim_regularly(self) -> None:
        requests, answers = self.admission.requests, self.admission.answers
        await trim_regularly(lambda: requests.used + answers.used)

    def _bind(self, address: str) -> int:
        if self._options.tls is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, _credentials(self._options.tls))

    async def start_accepting(self) -> None:
        """Accept calls from now on; the backend must be open, unless calls are forwarded."""
        if self._is_forwarding():
            self._lifecycle.start_accepting()
        else:
            self.serve_here()

    def serve_here(self) -> None:
        """Answer calls from the backend, which is open now, instead of forwarding them."""
        if self._options.forwarding is not None:
            self._options.forwarding.end()
        if self._lifecycle.state is LifecycleState.DRAINING:
            return
        self._lifecycle.start_accepting()
        self._session_deletion.start()
        self._health.set(_SERVING)

    def set_forwarding_health(self, *, answers: bool, serving: bool) -> None:
        """Report to health checks whether the holder ``answers``, and whether it is ``serving``."""
        if self._lifecycle.state is LifecycleState.ACCEPTING:
            self._health.set(_SERVING if answers else _NOT_SERVING)
            self._health.set(_SERVING if serving else _NOT_SERVING, _STORE_NAMES)

    async def set_ready(self, ready: bool) -> None:
        """Report to health checks whether the store is available. Calls are accepted either way.

        The health of MigrationService does not change: it serves without the store.
        """
        if self._lifecycle.state is LifecycleState.ACCEPTING:
            self._health.set(_SERVING if ready else _NOT_SERVING, _STORE_NAMES)

    async def drain(self, grace: float) -> bool:
        """Refuse new calls, and wait up to ``grace`` seconds for those in progress.

        Returns:
            False if calls are still in progress after ``grace``.

        """
        self._health.set(_NOT_SERVING)
        # Refuses calls before it waits for anything.
        drained = await self._lifecycle.drain(grace)
        await self._session_deletion.stop()
        return drained

    async def wait_for_termination(self) -> None:
        """Wait until the server has stopped, after ``stop`` or through a defect of gRPC."""
        if self._termination is not None:
            await asyncio.shield(self._termination)

    async def stop(self) -> None:
        """Stop listening, and end the calls that are still in progress."""
        await self._session_deletion.stop()
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*(task.stop() for task in tasks))
        if self._options.forwarding is not None:
            await self._options.forwarding.stop()
        try:
            # gRPC fails to stop a server that has terminated.
            if self._termination is None or not self._termination.done():
                await self._server.stop(_STOP_GRACE)
                if self._termination is not None:
                    await self._termination
        finally:
            await self._worker_pool.close()

    def usage(self) -> tuple[Usage, ...]:
        """Return the usage of memory, connections and file descriptors. Safe in any thread."""
        requests, answers = self.admission.requests, self.admission.answers
        limits = self._options.limits
        return (
            Usage(
                "request_memory_bytes",
                "bytes of requests in memory",
                requests.used,
                requests.limit,
                "request_memory",
            ),
            Usage(
                "answer_memory_bytes",
                "bytes of answers that clients have not read",
                answers.used,
                answers.limit,
                "answer_memory",
            ),
            Usage(
                "client_connections",
                "connections of clients",
                self._connections.open,
                limits.max_connections,
                "max_connections, and the limit of open files",
            ),
            Usage(
                "file_descriptors",
                "open files and connections",
                in_use(),
                self._descriptors,
                "the limit of open files (LimitNOFILE of systemd)",
            ),
        )

    def forwarding_counts(self) -> ForwardingCounts:
        """Return the counts of forwarded calls."""
        forwarding = self._options.forwarding
        return ForwardingCounts() if forwarding is None else forwarding.counts

    @property
    def calls_in_progress(self) -> int:
        """Number of calls in progress, except health, reflection and endless streams."""
        return self._lifecycle.in_flight


def _credentials(source: TlsSource) -> grpc.ServerCredentials:
    """Return credentials that read ``source`` at each handshake, so that certificates can rotate.

    Clients need a certificate if the first material has a ``client_ca``. Open connections keep
    the material of their handshake. TLS 1.2 and later, with gRPC's ciphers.
    """
    first = latest = source()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal latest
        material = source()
        if material is latest:
            return None
        latest = material
        return _certificates(material)

    return grpc.dynamic_ssl_server_credentials(
        _certificates(first),
        fetch,  # type: ignore[arg-type] # The published type lacks None.
        require_client_authentication=first.client_ca is not None,
    )


def _certificates(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    pairs = [(material.key, material.chain)]
    return grpc.ssl_server_certificate_configuration(pairs, material.client_ca)
