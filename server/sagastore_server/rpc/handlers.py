"""The one way into every RPC: gate, decoding, errors.

A thin wrapper around each method instead of gRPC's interceptors: an interceptor
costs every call one more coroutine and a new handler object, and sees neither
the parsed request nor where a stream ends. What is to hold for every call
(authentication, limits, metrics, tracing) belongs into ``_Calls``.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, NoReturn, TypeVar

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
    FencedError,
    InvalidRequestError,
    StorageFullError,
    UnavailableError,
)

_log = structlog.get_logger(__name__)

Context = aio.ServicerContext[Any, Any]
UnaryMethod = Callable[..., Awaitable[Message]]
StreamMethod = Callable[[Any], AsyncIterator[Message]]
TimeLeft = Callable[[], float | None]
"""Tells the seconds that are left of a call; None: its caller set no deadline."""

F = TypeVar("F", bound=Callable[..., object])


class _Trait(enum.Enum):
    """What a method asks of those who call it."""

    TIMED = "timed"
    ENDLESS = "endless"
    INTERRUPTIBLE = "interruptible"


def timed(method: F) -> F:
    """Mark a unary method that takes a ``TimeLeft`` behind the request."""
    return _marked(method, _Trait.TIMED)


def endless(method: F) -> F:
    """Mark a method whose answers go on until the caller ends the call.

    A drain does not wait for it: it ends at once, with UNAVAILABLE.
    """
    return _marked(method, _Trait.ENDLESS)


def interruptible(method: F) -> F:
    """Mark a method that streams and may be ended anywhere.

    In a drain it ends when streams must end, with UNAVAILABLE. Others do that themselves.
    """
    return _marked(method, _Trait.INTERRUPTIBLE)


def _marked(method: F, trait: _Trait) -> F:
    vars(method)["trait"] = trait
    return method


def _trait_of(method: object) -> _Trait | None:
    trait = getattr(method, "trait", None)
    return trait if isinstance(trait, _Trait) else None


def service_handler(
    service: ServiceDescriptor, servicer: object, gate: Gate
) -> grpc.GenericRpcHandler:
    """Return what serves ``service`` by the methods of ``servicer``, which bear its names.

    A unary method takes the request and returns the answer; a method that
    streams its answer is an asynchronous generator; one whose request is a
    stream takes an asynchronous iterator, whose items may be ``Undecodable``.
    None of them sees gRPC: they raise errors of the storage contract. What one needs
    beyond that it says with ``timed``, ``endless`` or ``interruptible``.

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
        if _trait_of(target) is _Trait.ENDLESS:
            return grpc.unary_stream_rpc_method_handler(self._endless(name, target), **coders)
        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(self._stream(name, target), **coders)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(name, target), **coders)
        return grpc.unary_unary_rpc_method_handler(self._unary(name, target), **coders)

    def _unary(self, name: str, target: UnaryMethod) -> Callable[[Any, Context], Awaitable[Any]]:
        gate = self._gate
        is_timed = _trait_of(target) is _Trait.TIMED

        async def call(request: Any, context: Context) -> Message:
            try:
                gate.enter()
                try:
                    if type(request) is Undecodable:
                        raise InvalidRequestError(request.violations)
                    if is_timed:
                        return await target(request, context.time_remaining)
                    return await target(request)
                finally:
                    gate.leave()
            except Exception as exc:  # noqa: BLE001 - whatever it is, the table knows what to tell
                await _refuse(context, name, exc)

        return call

    def _stream(self, name: str, target: StreamMethod) -> Callable[[Any, Context], Awaitable[None]]:
        gate = self._gate
        is_interruptible = _trait_of(target) is _Trait.INTERRUPTIBLE

        async def call(request: Any, context: Context) -> None:
            try:
                gate.enter()
                try:
                    if is_interruptible:
                        async with _until(gate.end_streams, gate):
                            await _write_all(target, request, context)
                    else:
                        await _write_all(target, request, context)
                finally:
                    gate.leave()
            except Exception as exc:  # noqa: BLE001 - whatever it is, the table knows what to tell
                await _refuse(context, name, exc)

        return call

    def _endless(
        self, name: str, target: StreamMethod
    ) -> Callable[[Any, Context], Awaitable[None]]:
        gate = self._gate

        async def call(request: Any, context: Context) -> None:
            try:
                gate.check()
                async with _until(gate.draining, gate):
                    await _write_all(target, request, context)
            except Exception as exc:  # noqa: BLE001 - whatever it is, the table knows what to tell
                await _refuse(context, name, exc)

        return call


async def _write_all(target: StreamMethod, request: Any, context: Context) -> None:
    if type(request) is Undecodable:
        raise InvalidRequestError(request.violations)
    # Closing the generator here, not whenever it is collected, ends its tasks with
    # the call, also when the call is cancelled.
    async with aclosing(target(request)) as answers:  # type: ignore[type-var]
        async for answer in answers:
            await context.write(answer)


@asynccontextmanager
async def _until(event: asyncio.Event, gate: Gate) -> AsyncIterator[None]:
    """End what is done in the context when ``event`` is set, wherever it is.

    Raises:
        UnavailableError: ``gate``'s refusal; it was ended.

    """
    try:
        async with asyncio.timeout(None) as limit:
            expiring = asyncio.create_task(_expire(event, limit))
            try:
                yield
            finally:
                expiring.cancel()
    except TimeoutError:
        if limit.expired():
            raise gate.refusal() from None
        raise


async def _expire(event: asyncio.Event, limit: asyncio.Timeout) -> None:
    await event.wait()
    limit.reschedule(0.0)


async def _refuse(context: Context, method: str, error: Exception) -> NoReturn:
    """End the call with the status that the table gives ``error``."""
    refusal = refusal_of(error)
    if refusal.reference is not None:
        _log.error("internal error", method=method, reference=refusal.reference, exc_info=error)
    elif isinstance(error, UnavailableError | StorageFullError | FencedError):
        _outages.note(method, error)
    await context.abort(refusal.code, refusal.message, ((STATUS_KEY, refusal.details),))


class _Outages:
    """Logs that a store cannot serve, once a second: every call that comes in meets it."""

    def __init__(self) -> None:
        self._next = 0.0
        self._more = 0

    def note(self, method: str, error: UnavailableError | StorageFullError | FencedError) -> None:
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
