"""Health and reflection, by the same way in as every other RPC.

The servicers that gRPC brings along answer a request that does not parse with UNKNOWN and
the text of an exception; and their health has one lock for the readers and for who sets it,
held while an answer is written: a watcher that does not read would keep the server from
ever changing its health, and so from draining.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import grpc
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection, reflection_pb2  # type: ignore[import-untyped]

from sagastore_server.rpc.admission import AdmissionControl
from sagastore_server.rpc.handlers import service_handler
from sagastore_server.rpc.lifecycle import Lifecycle
from sagastore_server.rpc.limits import Limits
from sagastore_server.rpc.wire import InvalidText
from sagastore_server.storage.errors import InvalidRequestError, NotFoundError, StorageError

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
_REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
_Status = health_pb2.HealthCheckResponse


class UnknownServiceError(NotFoundError):
    """No service has the name."""

    reason = "SERVICE_NOT_FOUND"

    def __init__(self, name: str) -> None:
        """Name the service that was asked for."""
        shown = name if len(name) <= 100 else name[:100] + "…"
        StorageError.__init__(self, f"no service has the name {shown!r}")
        self.message_id = shown


class Health:
    """Serves ``grpc.health.v1.Health``: a status for each name."""

    def __init__(self, names: Sequence[str]) -> None:
        """Begin with NOT_SERVING for each of ``names``."""
        self._statuses = dict.fromkeys(names, _Status.NOT_SERVING)
        self._changed = asyncio.Event()

    def tell(self, status: int, names: Sequence[str] = ()) -> None:
        """Let everybody know the ``status`` of ``names``, or of all; nobody is waited for."""
        self._statuses |= dict.fromkeys(names or self._statuses, status)
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        """Tell the status of one name."""
        status = self._statuses.get(request.service)
        if status is None:
            raise UnknownServiceError(request.service)
        return _Status(status=status)

    async def List(self, request: health_pb2.HealthListRequest) -> health_pb2.HealthListResponse:
        """Tell the status of every name."""
        answer = health_pb2.HealthListResponse()
        for name, status in self._statuses.items():
            answer.statuses[name].status = status
        return answer

    async def Watch(
        self, request: health_pb2.HealthCheckRequest
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Tell the status of one name now, and whenever it changes."""
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _Status.SERVICE_UNKNOWN)
            if status != told:
                yield _Status(status=status)
            told = status
            await changed.wait()


class Reflection:
    """Serves ``grpc.reflection.v1alpha.ServerReflection``."""

    def __init__(self, names: Sequence[str]) -> None:
        """Tell of the services of these ``names``."""
        self._served = reflection.aio.ReflectionServicer(names)

    async def ServerReflectionInfo(
        self, requests: AsyncIterator[reflection_pb2.ServerReflectionRequest | InvalidText]
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        """Answer each request, in order."""
        answers = self._served.ServerReflectionInfo(_readable(requests), None)
        async with aclosing(answers):
            async for answer in answers:
                yield answer


async def _readable(
    requests: AsyncIterator[reflection_pb2.ServerReflectionRequest | InvalidText],
) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
    async for request in requests:
        if isinstance(request, InvalidText):
            raise InvalidRequestError(request.violations)
        yield request


def probe_handlers(
    health: Health, names: Sequence[str], limits: Limits, *, reflected: bool
) -> tuple[grpc.GenericRpcHandler, ...]:
    """Return what serves health and, if ``reflected``, tells of the services ``names``.

    Both are open to everybody and in every state of the server, and have a share of
    ``limits`` of their own, so that neither keeps calls from being let in. Clients may
    watch the health over each connection that they have.
    """
    lifecycle = Lifecycle()
    lifecycle.open()
    streams = limits.max_streams + limits.max_connections
    admission = AdmissionControl(lifecycle, limits._replace(caller_rate=0.0, max_streams=streams))
    handlers = [service_handler(_HEALTH, health, admission)]
    if reflected:
        served = (*names, _HEALTH.full_name, _REFLECTION.full_name)
        handlers.append(service_handler(_REFLECTION, Reflection(served), admission))
    return tuple(handlers)
