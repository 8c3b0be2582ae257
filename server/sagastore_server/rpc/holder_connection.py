"""Connection of a forwarder to the holder of a migration: probes, calls and their errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from typing import Any, NamedTuple, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from sagastore_server.interfaces.errors import HolderLostError
from sagastore_server.interfaces.tls import ClientTlsMaterial
from sagastore_server.rpc.forwarded_calls import mark
from sagastore_server.rpc.lifecycle import ServerDrainingError, ServerStartingError
from sagastore_server.rpc.status import STATUS_KEY
from sagastore_server.runtime.supervisor import awaited
from sagastore_server.storage.errors import StorageError

PROBE_TIMEOUT = 2.0
"""Seconds that the holder may take to answer a probe: far more than its event loop ever hangs."""

_LOST_RETRY_AFTER = 0.1
"""Seconds after which a client may repeat a call whose connection was lost."""

_KEEPALIVE_MS = 15_000
"""Milliseconds without data until the connection is tested; the server allows 10,000."""

_REFUSED_FOR_NOW = frozenset({ServerStartingError.reason, ServerDrainingError.reason})
"""Reasons of refusals before a call had any effect, which a moment later may not be repeated."""

_OF_THE_CALL = frozenset(
    {
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
"""Codes without details of the service that gRPC gives a call, not a connection."""

_READY = grpc.ChannelConnectivity.READY

Metadata = Sequence[tuple[str, str | bytes]]


class Target(NamedTuple):
    """A server to forward to."""

    address: str
    """``HOST:PORT``."""
    store_id: str
    """Identity of the store that it must serve; empty: not known."""


class ForwardedStatusError(Exception):
    """The status with which the holder has ended a call, to be passed on."""

    def __init__(self, error: aio.AioRpcError) -> None:
        """Keep code, message and details."""
        super().__init__(error.code().name)
        self.code = error.code()
        self.message = error.details() or ""
        self.metadata = tuple(
            (key, value)
            for key, value in error.trailing_metadata() or ()
            if key == STATUS_KEY or not key.startswith("grpc-")
        )

    @property
    def is_refused_for_now(self) -> bool:
        """Whether the call had no effect, and may be sent again in a moment."""
        return (
            self.code is grpc.StatusCode.UNAVAILABLE and _reason(self.metadata) in _REFUSED_FOR_NOW
        )


class HolderConnection:
    """Connection to one server. Belongs to one event loop."""

    def __init__(self, target: Target, tls: ClientTlsMaterial | None) -> None:
        """Connect to ``target``, with the first probe."""
        self.target = target
        self.answers = False
        """Whether the last probe was answered."""
        self.is_serving = False
        """Whether the answer was that the server is ready."""
        self.detail = ""
        """Why the server is not ready; empty if it is, or before the first probe."""
        options = (
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 2000),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.dns_min_time_between_resolutions_ms", 1000),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", 5000),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.primary_user_agent", "sagastore-forwarder"),
        )
        address = f"dns:///{target.address}"
        self._channel = (
            aio.insecure_channel(address, options)
            if tls is None
            else aio.secure_channel(address, _credentials(tls), options)
        )
        self._unary: dict[str, Any] = {}
        self._streams: dict[str, Any] = {}
        self._health = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

    @property
    def is_open(self) -> bool:
        """Whether calls can be sent now."""
        return self.answers and self._channel.get_state() is _READY

    async def close(self, grace: float) -> None:
        """Disconnect; calls in progress have ``grace`` seconds."""
        await self._channel.close(grace)

    async def probe(self) -> None:
        """Ask the server whether it is ready, and whether it is the right one."""
        metadata = (mark(self.target.store_id, "probe"),)
        try:
            found = await self._health(
                health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT, metadata=metadata
            )
        except aio.AioRpcError as exc:
            self.answers = self.is_serving = False
            self.detail = _explained(exc)
            return
        except (asyncio.CancelledError, aio.UsageError):
            if _is_cancelled_here():
                raise
            self.answers = self.is_serving = False  # `close` was called.
            return
        self.answers = True
        self.is_serving = found.status == health_pb2.HealthCheckResponse.SERVING
        self.detail = "" if self.is_serving else "it is not ready"

    async def unary(
        self, method: str, request: bytes, metadata: Metadata, seconds: float | None
    ) -> bytes:
        """Make a call of ``method`` (``service/method``) within ``seconds``.

        Raises:
            ForwardedStatusError, HolderLostError: See `Forwarding.unary`.

        """
        rpc = self._unary.get(method)
        if rpc is None:
            rpc = self._unary[method] = self._channel.unary_unary(f"/{method}")
        try:
            answer: bytes = await rpc(request, timeout=seconds, metadata=metadata)
        except aio.AioRpcError as exc:
            raise self._error(exc) from None
        except aio.UsageError:
            raise self._lost() from None  # `close` was called.
        except asyncio.CancelledError:
            if _is_cancelled_here():
                raise
            raise self._lost() from None
        return answer

    async def stream(
        self,
        method: str,
        requests: AsyncIterator[bytes],
        metadata: Metadata,
        seconds: float | None,
    ) -> AsyncIterator[bytes]:
        """Make a streaming call of ``method`` within ``seconds``, and yield the answers.

        Raises:
            ForwardedStatusError, HolderLostError: See `Forwarding.stream`.
            StorageError: As ``requests``.

        """
        rpc = self._streams.get(method)
        if rpc is None:
            rpc = self._streams[method] = self._channel.stream_stream(f"/{method}")
        try:
            call = rpc(timeout=seconds, metadata=metadata)
        except aio.UsageError:
            raise self._lost() from None  # `close` was called.
        sender = awaited(_send(call, requests))
        try:
            while (answer := await call.read()) is not aio.EOF:
                yield cast("bytes", answer)
        except aio.AioRpcError as exc:
            raise self._error(exc) from None
        except asyncio.CancelledError:
            if _is_cancelled_here():
                raise
            raise _failure_of(sender) or self._lost() from None
        finally:
            sender.cancel()
            call.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    def _error(self, error: aio.AioRpcError) -> ForwardedStatusError | HolderLostError:
        """Return the status of the holder, or that the connection was lost."""
        if _has_details(error) or error.code() in _OF_THE_CALL:
            return ForwardedStatusError(error)
        return self._lost()

    def _lost(self) -> HolderLostError:
        self.answers = False  # Until the next probe.
        return HolderLostError(
            f"the connection to the server with the SQLite file ({self.target.address}) was lost "
            "during the call; whether it took effect is not known; try again",
            retry_after=_LOST_RETRY_AFTER,
        )


def _credentials(tls: ClientTlsMaterial) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(tls.authorities, tls.key, tls.chain)


async def _send(call: Any, requests: AsyncIterator[bytes]) -> None:
    """Send the requests, and cancel the call if they fail."""
    try:
        # Raised when the call has ended; reading reports its status.
        with suppress(aio.AioRpcError, asyncio.InvalidStateError, aio.UsageError):
            async with aclosing(requests):  # type: ignore[type-var]
                async for request in requests:
                    await call.write(request)
            await call.done_writing()
    except StorageError:
        call.cancel()
        raise


def _failure_of(sender: asyncio.Task[None]) -> StorageError | None:
    """Return why the requests of the client have ended early, if they have."""
    if not sender.done() or sender.cancelled():
        return None
    error = sender.exception()
    return error if isinstance(error, StorageError) else None


def _is_cancelled_here() -> bool:
    """Return whether the task of the call itself was cancelled, and not its call to the holder."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _has_details(error: aio.AioRpcError) -> bool:
    return any(key == STATUS_KEY for key, _ in error.trailing_metadata() or ())


def _reason(metadata: Metadata) -> str:
    """Return the reason of a status, or an empty string."""
    for key, value in metadata:
        if key == STATUS_KEY and isinstance(value, bytes):
            info = error_details_pb2.ErrorInfo()
            with suppress(DecodeError):
                for detail in status_pb2.Status.FromString(value).details:
                    if detail.Unpack(info):
                        return str(info.reason)
    return ""


def _explained(error: aio.AioRpcError) -> str:
    """Return in one line why a probe failed."""
    text = " ".join((error.details() or "").split())
    if _has_details(error):
        return text
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"it did not answer within {PROBE_TIMEOUT:g} s"
    low = text.lower()
    for part, cause in _CAUSES:
        if part in low:
            return cause
    return f"the connection failed ({error.code().name})"


_CAUSES = (
    ("connection refused", "connection refused"),
    ("certificate_verify_failed", "its certificate is not trusted; check forward_ca"),
    ("hostname verification", "its certificate is for another name; check its advertise"),
    ("wrong_version_number", "it does not use TLS on this port; remove forward_ca"),
    ("resolv", "its name cannot be resolved"),
    ("name not found", "its name cannot be resolved"),
    ("socket closed", "it closed the connection; if it requires TLS, set forward_ca"),
    ("connection reset", "it closed the connection; if it requires TLS, set forward_ca"),
    ("handshake", "the TLS handshake failed; check forward_ca, forward_cert and forward_key"),
)
"""Parts of gRPC's texts in lower case, and what they mean for an operator."""
