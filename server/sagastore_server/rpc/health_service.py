"""Health and reflection services, dispatched like every other RPC.

gRPC's own servicers are not used directly. They answer a request that does not parse with
UNKNOWN and the text of an exception. Their health servicer holds one lock while it writes a
response and while the status is set, so that a watcher that does not read blocks every status
change, and with it the drain.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import grpc
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection as grpc_reflection  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2

from sagastore_server.rpc.admission import AdmissionControl, Limits
from sagastore_server.rpc.error_responder import ErrorResponder
from sagastore_server.rpc.forwarded_calls import ForwardedCalls
from sagastore_server.rpc.handlers import service_handler
from sagastore_server.rpc.lifecycle import Lifecycle
from sagastore_server.rpc.wire import InvalidText
from sagastore_server.storage.errors import InvalidRequestError, NotFoundError, StorageError

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
_REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]

_SLOW_READS = 1
"""Requests that are received at a time: each can take ``max_request_bytes``."""

_ANSWER_MEMORY = 16 * 1024 * 1024
"""Bytes of answers that were not sent yet. The longest, of reflection, has about 30 KiB."""

_MESSAGE_TIMEOUT = 5.0
"""Seconds until a request must have arrived."""

_Status = health_pb2.HealthCheckResponse


class UnknownServiceError(NotFoundError):
    """The health of an unknown service was requested."""

    reason = "SERVICE_NOT_FOUND"

    def __init__(self, name: str) -> None:
        """Create the error with the requested name, shortened to 100 characters."""
        shown = name if len(name) <= 100 else name[:100] + "…"
        StorageError.__init__(self, f"unknown service {shown!r}")
        self.message_id = shown


class Health:
    """Servicer of ``grpc.health.v1.Health``: one status per name."""

    def __init__(self, names: Sequence[str]) -> None:
        """Start with NOT_SERVING for each of ``names``."""
        self._statuses = dict.fromkeys(names, _Status.NOT_SERVING)
        self._changed = asyncio.Event()

    def set(self, status: int, names: Sequence[str] = ()) -> None:
        """Set the ``status`` of ``names``, or of all names, and notify the watchers.

        Returns without waiting for the watchers.
        """
        self._statuses |= dict.fromkeys(names or self._statuses, status)
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        """Return the status of one name."""
        status = self._statuses.get(request.service)
        if status is None:
            raise UnknownServiceError(request.service)
        return _Status(status=status)

    async def List(self, request: health_pb2.HealthListRequest) -> health_pb2.HealthListResponse:
        """Return the status of every name."""
        response = health_pb2.HealthListResponse()
        for name, status in self._statuses.items():
            response.statuses[name].status = status
        return response

    async def Watch(
        self, request: health_pb2.HealthCheckRequest
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Stream the status of one name: the current one, and each change."""
        sent = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _Status.SERVICE_UNKNOWN)
            if status != sent:
                yield _Status(status=status)
            sent = status
            await changed.wait()


class Reflection:
    """Servicer of ``grpc.reflection.v1alpha.ServerReflection``."""

    def __init__(self, names: Sequence[str]) -> None:
        """Describe the services ``names``."""
        self._served = grpc_reflection.aio.ReflectionServicer(names)

    async def ServerReflectionInfo(
        self, requests: AsyncIterator[reflection_pb2.ServerReflectionRequest | InvalidText]
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        """Answer the requests in order."""
        responses = self._served.ServerReflectionInfo(_valid(requests), None)
        async with aclosing(responses):
            async for response in responses:
                yield response


async def _valid(
    requests: AsyncIterator[reflection_pb2.ServerReflectionRequest | InvalidText],
) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
    async for request in requests:
        if isinstance(request, InvalidText):
            raise InvalidRequestError(request.violations)
        yield request


def health_admission(
    limits: Limits, forwarded_calls: ForwardedCalls | None = None
) -> AdmissionControl:
    """Return the admission control of health and reflection.

    It accepts every caller in every state of the server, without a rate limit. Its slots are
    separate from those of the other services, so that neither takes slots from the other. It
    has a stream slot per connection in addition, because clients may watch the health of each. So
    is its memory, which callers without credentials share. Probes of forwarders are refused if
    they are not meant for this server.
    """
    lifecycle = Lifecycle()
    lifecycle.start_accepting()
    own = limits._replace(
        caller_rate=0.0,
        max_streams=limits.max_streams + limits.max_connections,
        request_memory=_SLOW_READS * limits.max_request_bytes,
        answer_memory=_ANSWER_MEMORY,
        message_timeout=min(_MESSAGE_TIMEOUT, limits.message_timeout),
    )
    return AdmissionControl(lifecycle, own, queue_reads=True, forwarded_calls=forwarded_calls)


def health_handlers(
    health: Health,
    names: Sequence[str],
    admission: AdmissionControl,
    responder: ErrorResponder,
    *,
    reflection: bool,
) -> tuple[grpc.GenericRpcHandler, ...]:
    """Return the handlers of health and, if ``reflection``, of reflection on ``names``."""
    handlers = [service_handler(_HEALTH, health, admission, responder)]
    if reflection:
        served = (*names, _HEALTH.full_name, _REFLECTION.full_name)
        handlers.append(service_handler(_REFLECTION, Reflection(served), admission, responder))
    return tuple(handlers)
