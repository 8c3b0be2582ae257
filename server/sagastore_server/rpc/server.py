"""The gRPC server: what is served, on which terms, and how it begins and ends."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from sagastore.v1 import migration_pb2, storage_pb2
from sagastore_server.interfaces.access import AccessControl
from sagastore_server.interfaces.instruments import Instruments
from sagastore_server.rpc.admission import AdmissionControl
from sagastore_server.rpc.handlers import service_handler
from sagastore_server.rpc.health_service import Health, probe_handlers
from sagastore_server.rpc.lifecycle import Lifecycle, LifecycleState
from sagastore_server.rpc.limits import Limits
from sagastore_server.rpc.load_shedding import LoadShedder, figures_of_newest_server
from sagastore_server.rpc.migration_service import MigrationServicer
from sagastore_server.rpc.storage_service import StorageServicer
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.migration import MigrationControl

_MAX_PENDING = 8192
"""Calls that may wait in gRPC, of which each takes about 20 KiB."""

_CONNECTION_GRACE = 3600.0
"""Seconds that calls may go on over a connection that has reached its age."""


def _options(limits: Limits) -> tuple[tuple[str, int], ...]:
    options = (
        ("grpc.max_receive_message_length", limits.max_request_bytes),
        # Answers are bounded by what they carry (storage.limits, MAX_BATCH_GET_BYTES);
        # a second limit here could only turn an answer into an error.
        ("grpc.max_send_message_length", -1),
        # A second server on the port must fail, not share its calls by chance.
        ("grpc.so_reuseport", 0),
        # Find dead peers within 80 s, and allow clients to probe every 10 s, also when idle.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # There is no limit of streams in one connection: gRPC resets some of those that a
        # client begins within the limit, just as others end, and its calls fail.
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        # gRPC drops calls beyond that with a bare CANCELLED. We refuse long before, and say
        # why; this is for floods that come faster than anything can be refused.
        ("grpc.server.max_pending_requests", _MAX_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _MAX_PENDING),
        # For rpc.pressure.
        ("grpc.enable_channelz", 1),
    )
    if not limits.connection_age:
        return options
    return (
        *options,
        ("grpc.max_connection_age_ms", int(limits.connection_age * 1000)),
        ("grpc.max_connection_age_grace_ms", int(_CONNECTION_GRACE * 1000)),
    )


_LAST_ANSWERS = 1.0
"""Seconds for answers on their way out, and for health watchers, at the very end."""

_SERVICES = (
    storage_pb2.DESCRIPTOR.services_by_name["StorageService"],
    migration_pb2.DESCRIPTOR.services_by_name["MigrationService"],
)
METHODS = tuple(
    f"{service.full_name}/{method.name}" for service in _SERVICES for method in service.methods
)
"""The names of the RPCs: ``sagastore.v1.StorageService/Save``, …"""
_HEALTH_NAMES = ("", *(service.full_name for service in _SERVICES))
_STORE_NAMES = ("", _SERVICES[0].full_name)
"""Those that need a store which answers."""
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class ServerOptions(NamedTuple):
    """What holds for all calls."""

    limits: Limits = Limits()
    access: AccessControl | None = None
    """Who may call; None: everybody."""
    credentials: grpc.ServerCredentials | None = None
    """TLS; None: plain text."""
    instruments: Instruments | None = None
    """Who hears of the calls."""
    reflection: bool = True
    """Whether callers may ask which services there are."""
    log_calls: bool = False
    """Whether every call is logged as it ends."""


class CannotListenError(Exception):
    """The address cannot be listened on; the line says why."""


class RpcServer:
    """Serves a backend, and the control of its migration, over gRPC.

    In this order: ``start`` (probes are answered: NOT_SERVING), ``open_gate``
    once the backend is open, ``drain`` and ``stop``.
    """

    def __init__(
        self,
        backend: StorageBackend,
        control: MigrationControl,
        terms: ServerOptions = ServerOptions(),  # noqa: B008 - immutable
    ) -> None:
        """Make a server that does not listen yet. Needs a running event loop."""
        self._lifecycle = Lifecycle()
        self._terms = terms
        self._health = Health(_HEALTH_NAMES)
        self._server = aio.server(options=_options(terms.limits))
        load_shedder = LoadShedder(terms.limits.max_calls, figures_of_newest_server())
        admission = AdmissionControl(
            self._lifecycle,
            terms.limits,
            terms.access,
            terms.instruments,
            load_shedder=load_shedder,
            log_calls=terms.log_calls,
        )
        self.admission = admission
        self._watching: asyncio.Task[None] | None = None
        self._serving: asyncio.Task[bool] | None = None
        timeout = terms.limits.search_timeout
        servicers = (
            StorageServicer(backend, self._lifecycle, search_timeout=timeout),
            MigrationServicer(backend, control),
        )
        handlers = map(service_handler, _SERVICES, servicers, (admission, admission))
        self._server.add_generic_rpc_handlers(tuple(handlers))
        probes = probe_handlers(
            self._health, _HEALTH_NAMES[1:], terms.limits, reflected=terms.reflection
        )
        self._server.add_generic_rpc_handlers(probes)

    async def start(self, address: str) -> int:
        """Listen on ``address`` (``host:port``, port 0: any) and return the port.

        Raises:
            CannotListenError: It is in use, or not an address of this machine.

        """
        try:
            port = self._bind(address)
        except RuntimeError as exc:
            raise CannotListenError(f"cannot listen on {address}") from exc
        await self._server.start()
        self._serving = asyncio.create_task(self._server.wait_for_termination())
        self._watching = asyncio.create_task(self.admission.load_shedder.watch())
        return port

    def _bind(self, address: str) -> int:
        if self._terms.credentials is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._terms.credentials)

    async def open_gate(self) -> None:
        """Take calls from now on: the backend is open."""
        self._lifecycle.open()
        self._health.tell(_SERVING)

    async def set_ready(self, ready: bool) -> None:
        """Tell probes whether the store can be used now; calls are taken in any case.

        MigrationService serves without it: it tells what is the matter.
        """
        if self._lifecycle.state is LifecycleState.OPEN:
            self._health.tell(_SERVING if ready else _NOT_SERVING, _STORE_NAMES)

    async def drain(self, grace: float) -> bool:
        """Refuse new calls and let those under way finish, for up to ``grace`` seconds.

        Returns:
            False when calls were still under way at the end.

        """
        self._health.tell(_NOT_SERVING)
        return await self._lifecycle.drain(grace)

    async def ended(self) -> None:
        """Wait until nothing is served any more: after ``stop``, or by a defect of gRPC."""
        if self._serving is not None:
            await asyncio.shield(self._serving)

    async def stop(self) -> None:
        """Stop listening, and end what is left."""
        if self._watching is not None:
            self._watching.cancel()
        if self._serving is not None and self._serving.done():
            return  # It has ended by itself; to end it again fails.
        await self._server.stop(_LAST_ANSWERS)
        if self._serving is not None:
            await self._serving

    @property
    def calls_under_way(self) -> int:
        """How many calls have come in and not ended, health and reflection aside."""
        return self._lifecycle.in_flight
