"""The gRPC channels of a client: one per address, used round robin."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio

from sagastore import _wire
from sagastore._retry import Deadline
from sagastore._target import Address
from sagastore._tls import Credentials
from sagastore._trace import trace_headers
from sagastore._transport import Security
from sagastore.errors import SagaStoreError, UnauthenticatedError, WrongEventLoopError
from sagastore.v1 import (
    file_pb2_grpc,
    migration_pb2_grpc,
    session_pb2_grpc,
    storage_pb2,
    storage_pb2_grpc,
)

if TYPE_CHECKING:
    BulkCall = grpc.aio.StreamStreamMultiCallable[bytes, storage_pb2.BulkSaveResponse]

__all__ = ["Endpoint", "Metadata", "Pool"]

Metadata = tuple[tuple[str, str], ...]

_READY = grpc.ChannelConnectivity.READY
_FAILING = grpc.ChannelConnectivity.TRANSIENT_FAILURE

# Enough for every response: a BatchGet has at most 64 MiB, a page of messages 3 MiB, or
# one message of up to 6 MiB. gRPC's default is 4 MiB.
_MAX_RECEIVE_BYTES = 64 * 1024 * 1024

_OPTIONS: tuple[tuple[str, Any], ...] = (
    # Balances over the addresses of one name.
    ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}'),
    ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
    ("grpc.max_send_message_length", -1),
    # gRPC's default is up to two minutes between connection attempts; a server
    # restarts much faster. A connected client costs a returning server one attempt,
    # however many calls wait.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # The time limit of one attempt, in spite of its name; by default 20 s. A host that
    # dropped packets while it restarted is tried again soon, and a silent port is reported.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # By default 30 s: a server that restarts with another address is found sooner.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # Also makes the kernel drop a connection whose peer vanished without closing it
    # (TCP_USER_TIMEOUT). The server allows a ping every 10 s.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)

_POLL_SECONDS = 0.01
_CONNECT_SECONDS = 5.0

# Id of the process that started gRPC's asyncio support.
_started_in: int | None = None


class Endpoint:
    """One server: its channel and its RPCs."""

    __slots__ = (
        "address",
        "bulk_save",
        "channel",
        "files",
        "health",
        "migration",
        "security",
        "sessions",
        "storage",
    )

    def __init__(self, address: str, channel: grpc.aio.Channel, security: Security) -> None:
        self.address = address
        self.security = security
        self.channel = channel
        self.storage = storage_pb2_grpc.StorageServiceStub(channel)
        self.sessions = session_pb2_grpc.SessionServiceStub(channel)
        self.files = file_pb2_grpc.FileServiceStub(channel)
        self.migration = migration_pb2_grpc.MigrationServiceStub(channel)
        # Takes serialized requests.
        self.bulk_save = cast(
            "BulkCall",
            channel.stream_stream(
                "/sagastore.v1.StorageService/BulkSave",
                request_serializer=None,
                response_deserializer=storage_pb2.BulkSaveResponse.FromString,
            ),
        )
        self.health: grpc.aio.UnaryUnaryMultiCallable[Any, Any] = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=_serialize,
            response_deserializer=_wire.message_class(
                "grpc.health.v1.HealthCheckResponse"
            ).FromString,
        )

    def connected(self) -> bool:
        """Report whether there is a connection now."""
        return self.channel.get_state() is _READY

    def state(self) -> grpc.ChannelConnectivity:
        """Return the state of the connection; connects if there is none."""
        return self.channel.get_state(try_to_connect=True)


def _security(tls: Credentials | None) -> Security:
    if tls is None:
        return Security()
    return Security(tls=True, certificate=tls.cert is not None, ends=tls.ends)


def _serialize(message: Any) -> bytes:
    return cast("bytes", message.SerializeToString())


class Pool:
    """Opens the channels on first use and selects one for each call.

    Bound to the event loop of its first use, as gRPC channels are.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        tls: Credentials | None,
        token: Callable[[], str] | None,
        user_agent: str,
    ) -> None:
        self.addresses = tuple(addresses)
        self._tls = tls
        self._token = token
        self._user_agent = user_agent
        self._endpoints: tuple[Endpoint, ...] = ()
        self._next = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closed = False

    def metadata(self) -> Metadata | None:
        """Return the metadata of each call."""
        return (*self._authorization(), *trace_headers()) or None

    def _authorization(self) -> Metadata:
        if self._token is None:
            return ()
        return (("authorization", f"Bearer {self._token()}"),)

    def note_token(self, error: SagaStoreError, sent: Metadata | None) -> None:
        """Record in an authentication error whether the token has changed since the call."""
        if isinstance(error, UnauthenticatedError):
            error.outdated = not set(self._authorization()) <= set(sent or ())

    async def acquire(self, deadline: Deadline | None = None) -> Endpoint:
        """Return the server for the next call: round robin, connected servers first.

        Raises:
            WrongEventLoopError: The client belongs to another event loop.
            RuntimeError: The client is closed, or belongs to another process.
        """
        endpoints = self.open()
        if len(endpoints) == 1:
            return endpoints[0]
        for _ in range(int(_CONNECT_SECONDS / _POLL_SECONDS)):
            states = [endpoint.state() for endpoint in endpoints]
            if _READY in states or all(state is _FAILING for state in states):
                break
            if deadline is not None and not deadline.leaves_room_for(2 * _POLL_SECONDS):
                break
            await asyncio.sleep(_POLL_SECONDS)
            if self.closed:
                raise RuntimeError("the client is closed")
        return self._rotate(endpoints, [state is _READY for state in states])

    def _rotate(self, endpoints: tuple[Endpoint, ...], ready: list[bool]) -> Endpoint:
        count = len(endpoints)
        turns = [(self._next + step) % count for step in range(count)]
        chosen = next((turn for turn in turns if ready[turn]), turns[0])
        self._next = (chosen + 1) % count
        return endpoints[chosen]

    def open(self) -> tuple[Endpoint, ...]:
        """Return all servers; opens their channels on first use.

        Raises:
            WrongEventLoopError: The client belongs to another event loop.
            RuntimeError: The client is closed, or belongs to another process.
        """
        global _started_in  # noqa: PLW0603 - one per process
        if self._endpoints:
            self._require_own_loop()
            return self._endpoints
        if self.closed:
            raise RuntimeError("the client is closed")
        if _started_in not in (None, os.getpid()):
            raise RuntimeError(
                "this process used gRPC before it forked, and gRPC does not work after a fork; "
                "create clients after forking, or start processes with spawn"
            )
        _started_in = os.getpid()
        self._loop = asyncio.get_running_loop()
        credentials = None if self._tls is None else self._tls.for_grpc()
        security = _security(self._tls)
        self._endpoints = tuple(
            Endpoint(address.text, self._channel(address, credentials), security)
            for address in self.addresses
        )
        return self._endpoints

    def _require_own_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise WrongEventLoopError(
                "this AsyncClient belongs to another event loop: the connections of gRPC are bound "
                "to the loop that first used them, and each asyncio.run() starts a new loop; "
                "create one client for each loop, or use the blocking Client"
            )

    def _channel(
        self, address: Address, credentials: grpc.ChannelCredentials | None
    ) -> grpc.aio.Channel:
        options = [*_OPTIONS, ("grpc.primary_user_agent", self._user_agent)]
        if address.loopback:
            # The loopback address of a proxy (http_proxy) is another machine.
            options.append(("grpc.enable_http_proxy", 0))
        if credentials is None:
            return grpc.aio.insecure_channel(address.target, options=options)
        if self._tls is not None and self._tls.server_name:
            options.append(("grpc.ssl_target_name_override", self._tls.server_name))
        return grpc.aio.secure_channel(address.target, credentials, options=options)

    async def close(self) -> None:
        """Close the channels and cancel calls in progress. Can be called more than once.

        Raises:
            WrongEventLoopError: The client belongs to another event loop.
        """
        if self._endpoints:
            self._require_own_loop()
        self.closed = True
        endpoints, self._endpoints = self._endpoints, ()
        for endpoint in endpoints:
            await endpoint.channel.close()
