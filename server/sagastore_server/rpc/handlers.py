"""The one way into every RPC: gate, decoding, errors.

A thin wrapper around each method instead of gRPC's interceptors: an interceptor
costs every call one more coroutine and a new handler object, and sees neither
the parsed request nor where a stream ends. What is to hold for every call
(authentication, limits, metrics, tracing) belongs into ``_Calls``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from sagastore_server.rpc.gate import Gate, ServerDrainingError, ServerStartingError
from sagastore_server.rpc.status import STATUS_KEY, refusal_of
from sagastore_server.rpc.wire import Undecodable, decoder
from sagastore_server.storage.errors import (
    InvalidRequestError,
    StorageFullError,
    UnavailableError,
)

_log = structlog.get_logger(__name__)

Context = aio.ServicerContext[Any, Any]
UnaryMethod = Callable[[Any], Awaitable[Message]]
StreamMethod = Callable[[Any], AsyncIterator[Message]]


def service_handler(
    service: ServiceDescriptor, servicer: object, gate: Gate
) -> grpc.GenericRpcHandler:
    """Return what serves ``service`` by the methods of ``servicer``, which bear its names.

    A unary method takes the request and returns the answer; a method that
    streams its answer is an asynchronous generator; one whose request is a
    stream takes an asynchronous iterator, whose items may be ``Undecodable``.
    None of them sees gRPC: they raise errors of the storage contract.

    Raises:
        AttributeError: The servicer lacks a method.

    """
    calls = _Calls(gate)
    handlers = {
        method.name: calls.handler(method, getattr(servicer, method.name))
        for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


class _Calls:
    """Wraps methods."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def handler(self, method: MethodDescriptor, target: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """Return gRPC's handler for ``method``, served by ``target``."""
        coders: dict[str, Any] = {
            "request_deserializer": decoder(GetMessageClass(method.input_type)),
            "response_serializer": GetMessageClass(method.output_type).SerializeToString,
        }
        name = method.full_name
        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(self._stream(name, target), **coders)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(name, target), **coders)
        return grpc.unary_unary_rpc_method_handler(self._unary(name, target), **coders)

    def _unary(self, name: str, target: UnaryMethod) -> Callable[[Any, Context], Awaitable[Any]]:
        gate = self._gate

        async def call(request: Any, context: Context) -> Message:
            try:
                gate.enter()
                try:
                    if type(request) is Undecodable:
                        raise InvalidRequestError(request.violations)
                    return await target(request)
                finally:
                    gate.leave()
            except Exception as exc:  # noqa: BLE001 - whatever it is, the table knows what to tell
                await _refuse(context, name, exc)

        return call

    def _stream(self, name: str, target: StreamMethod) -> Callable[[Any, Context], Awaitable[None]]:
        gate = self._gate

        async def call(request: Any, context: Context) -> None:
            try:
                gate.enter()
                try:
                    if type(request) is Undecodable:
                        raise InvalidRequestError(request.violations)
                    # Closing the generator here, not whenever it is collected, ends
                    # its tasks with the call, also when the call is cancelled.
                    async with aclosing(target(request)) as answers:  # type: ignore[type-var]
                        async for answer in answers:
                            await context.write(answer)
                finally:
                    gate.leave()
            except Exception as exc:  # noqa: BLE001 - whatever it is, the table knows what to tell
                await _refuse(context, name, exc)

        return call


async def _refuse(context: Context, method: str, error: Exception) -> NoReturn:
    """End the call with the status that the table gives ``error``."""
    refusal = refusal_of(error)
    if refusal.reference is not None:
        _log.error("internal error", method=method, reference=refusal.reference, exc_info=error)
    elif isinstance(error, UnavailableError | StorageFullError):
        _outages.note(method, error)
    await context.abort(refusal.code, refusal.message, ((STATUS_KEY, refusal.details),))


class _Outages:
    """Logs that a store cannot serve, once a second: every call that comes in meets it."""

    def __init__(self) -> None:
        self._next = 0.0
        self._more = 0

    def note(self, method: str, error: UnavailableError | StorageFullError) -> None:
        """Log ``error``, or count it."""
        if isinstance(error, ServerStartingError | ServerDrainingError):
            return
        now = time.monotonic()
        if now < self._next:
            self._more += 1
            return
        detail = str(error)
        _log.warning(
            "call refused", method=method, reason=error.reason, detail=detail, more=self._more
        )
        self._next, self._more = now + 1.0, 0


_outages = _Outages()
