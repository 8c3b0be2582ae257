"""The one way into every RPC: the door, decoding, errors.

A thin wrapper around each method instead of gRPC's interceptors: an interceptor
costs every call one more coroutine and a new handler object, and sees neither
the parsed request nor where a stream ends. What is to hold for every call
(authentication, limits, metrics, tracing) is in ``admission``, or here in ``_Calls``.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from typing import Any, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from sagastore_server.interfaces import tracing
from sagastore_server.interfaces.call_context import CallContext, current
from sagastore_server.interfaces.errors import StalledError
from sagastore_server.rpc.admission import AdmissionControl, Context, adopt_id
from sagastore_server.rpc.lifecycle import Lifecycle, ServerDrainingError, ServerStartingError
from sagastore_server.rpc.roles import role_for
from sagastore_server.rpc.status import STATUS_KEY, refusal_of
from sagastore_server.rpc.wire import InvalidText, decoder
from sagastore_server.storage.errors import (
    FencedError,
    InvalidRequestError,
    StorageFullError,
    UnavailableError,
)

_log = structlog.get_logger(__name__)

UnaryMethod = Callable[..., Awaitable[Message]]
StreamMethod = Callable[[Any], AsyncIterator[Message]]
Handler = Callable[[Any, Context], Awaitable[Any]]
TimeLeft = Callable[[], float | None]
"""Tells the seconds that are left of a call; None: its caller set no deadline."""

_FOR_THE_STATUS = 1.0
"""Seconds that a refusal may take to be handed over."""

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
    service: ServiceDescriptor, servicer: object, admission: AdmissionControl
) -> grpc.GenericRpcHandler:
    """Return what serves ``service`` by the methods of ``servicer``, which bear its names.

    A unary method takes the request and returns the answer; a method that
    streams its answer is an asynchronous generator; one whose request is a
    stream takes an asynchronous iterator, whose items may be ``InvalidText``.
    None of them sees gRPC: they raise errors of the storage contract. What one needs
    beyond that it says with ``timed``, ``endless`` or ``interruptible``.

    Raises:
        AttributeError: The servicer lacks a method.

    """
    calls = _Calls(admission)
    handlers = {
        method.name: calls.handler(method, getattr(servicer, method.name))
        for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


class _Calls:
    """Wraps methods."""

    def __init__(self, admission: AdmissionControl) -> None:
        self._admission = admission

    def handler(self, method: MethodDescriptor, target: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """Return gRPC's handler for ``method``, served by ``target``."""
        # Requests arrive as bytes: nothing is parsed for those who are not let in.
        serializer = GetMessageClass(method.output_type).SerializeToString
        coders: dict[str, Any] = {"response_serializer": serializer}
        if method.client_streaming:
            call = _observed(method, self._stream(method, target))
            return grpc.stream_stream_rpc_method_handler(call, **coders)
        if method.server_streaming:
            call = _observed(method, self._stream(method, target))
            return grpc.unary_stream_rpc_method_handler(call, **coders)
        return grpc.unary_unary_rpc_method_handler(
            _observed(method, self._unary(method, target)), **coders
        )

    def _unary(self, method: MethodDescriptor, target: UnaryMethod) -> Handler:
        admission, lifecycle = self._admission, self._admission.lifecycle
        name, role = _name(method), role_for(method)
        decode = decoder(GetMessageClass(method.input_type))
        is_timed = _trait_of(target) is _Trait.TIMED

        async def call(raw: bytes, context: Context) -> Message:
            record, began = admission.begin(name)
            try:
                lifecycle.enter()
                try:
                    admission.admit(record, context, role)
                    admission.enter_call()
                    try:
                        request = _readable(decode(raw))
                        if is_timed:
                            answer = await target(request, context.time_remaining)
                        else:
                            answer = await target(request)
                    finally:
                        admission.leave_call()
                finally:
                    lifecycle.leave()
                record.code = "OK"
                return answer
            except Exception as exc:  # noqa: BLE001 - whatever it is, the table knows what to tell
                await _refuse(context, record, exc)
            finally:
                admission.end(record, _code(record, context), began, context)

        return call

    def _stream(self, method: MethodDescriptor, target: StreamMethod) -> Handler:
        admission = self._admission
        name, role = _name(method), role_for(method)
        decode = decoder(GetMessageClass(method.input_type))
        trait = _trait_of(target)

        async def call(raw: Any, context: Context) -> None:
            record, began = admission.begin(name)
            try:
                with _inside(admission.lifecycle, trait):
                    admission.admit(record, context, role)
                    admission.enter_stream()
                    try:
                        requests = (
                            _decoded(raw, decode, admission, context)
                            if method.client_streaming
                            else _readable(decode(raw))
                        )
                        async with (
                            _ending(admission.lifecycle, trait),
                            admission.supervised(record, context, role),
                        ):
                            await self._write_all(target(requests), context)
                    finally:
                        admission.leave_stream()
                record.code = "OK"
            except Exception as exc:  # noqa: BLE001 - whatever it is, the table knows what to tell
                await _refuse(context, record, exc)
            finally:
                admission.end(record, _code(record, context), began, context)

        return call

    async def _write_all(self, answers: AsyncIterator[Message], context: Context) -> None:
        patience = self._admission.limits.stall_timeout
        # Closing the generator here, not whenever it is collected, ends its tasks with
        # the call, also when the call is cancelled.
        async with aclosing(answers):  # type: ignore[type-var]
            begun = False
            async for answer in answers:
                # Returns when there is room for it on the way to the client.
                try:
                    async with asyncio.timeout(patience):
                        if not begun:
                            await _send_headers(context)
                            begun = True
                        await context.write(answer)
                except TimeoutError:
                    raise StalledError(
                        f"the client has not read for {patience:g} seconds; go on from where it was"
                    ) from None


async def _send_headers(context: Context) -> None:
    """Send what goes before the first answer, whole, also when the call ends meanwhile.

    gRPC takes note that headers were sent when they are on their way. If that is cut short, it
    sends them again with the status, which its core refuses, and the client never hears how
    the call ended. So they are not left to the first answer, which waits for the client.
    """
    sending = asyncio.ensure_future(context.send_initial_metadata(()))
    try:
        await asyncio.shield(sending)
    except asyncio.CancelledError:
        with suppress(TimeoutError, aio.InternalError):
            async with asyncio.timeout(_FOR_THE_STATUS):
                await sending
        raise


def _name(method: MethodDescriptor) -> str:
    """Return the name of a method as gRPC has it in paths, without the first slash."""
    service, _, name = method.full_name.rpartition(".")
    return f"{service}/{name}"


def _readable(request: Message | InvalidText) -> Message:
    if isinstance(request, InvalidText):
        raise InvalidRequestError(request.violations)
    return request


async def _decoded(
    requests: AsyncIterator[bytes],
    decode: Callable[[bytes], Message | InvalidText],
    admission: AdmissionControl,
    context: Context,
) -> AsyncIterator[Message | InvalidText]:
    """Parse the requests of a stream, no faster than its caller may send them."""
    async for raw in requests:
        await admission.pace(context)
        yield decode(raw)


@contextmanager
def _inside(lifecycle: Lifecycle, trait: _Trait | None) -> Iterator[None]:
    """Be counted among those that a drain waits for, unless the method has no end."""
    if trait is _Trait.ENDLESS:
        lifecycle.check()
        yield
        return
    lifecycle.enter()
    try:
        yield
    finally:
        lifecycle.leave()


def _ending(lifecycle: Lifecycle, trait: _Trait | None) -> AbstractAsyncContextManager[None]:
    """End a stream when a drain wants it to, where it does not see to that itself."""
    if trait is _Trait.ENDLESS:
        return _until(lifecycle.draining, lifecycle)
    if trait is _Trait.INTERRUPTIBLE:
        return _until(lifecycle.end_streams, lifecycle)
    return nullcontext()


def _code(record: CallContext, context: Context) -> str:
    """Return the status that a call ended with; who is cut off never set one."""
    if record.code:
        return record.code
    left: float | None = context.time_remaining()  # The type that is published is wrong.
    return "DEADLINE_EXCEEDED" if left is not None and left <= 0 else "CANCELLED"


def _observed(method: MethodDescriptor, call: Handler) -> Handler:
    """Put calls into a span each, where calls are traced; but not those that only look in."""
    tracer = tracing.tracer()
    if tracer is None or not method.full_name.startswith("sagastore."):
        return call

    async def traced(request: Any, context: Context) -> Any:
        metadata = {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}
        with tracer.call(metadata) as span:
            try:
                return await call(request, context)
            finally:
                record = current()
                if record is not None:
                    span.ended(record.method, _code(record, context))

    return traced


@asynccontextmanager
async def _until(event: asyncio.Event, lifecycle: Lifecycle) -> AsyncIterator[None]:
    """End what is done in the context when ``event`` is set, wherever it is.

    Raises:
        UnavailableError: ``lifecycle``'s refusal; it was ended.

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
            raise lifecycle.refusal() from None
        raise


async def _expire(event: asyncio.Event, limit: asyncio.Timeout) -> None:
    await event.wait()
    limit.reschedule(0.0)


async def _refuse(context: Context, call: CallContext, error: Exception) -> NoReturn:
    """End the call with the status that the table gives ``error``."""
    if isinstance(error, aio.InternalError):
        # The client went away while something was on its way to it, or from it.
        call.code = "CANCELLED"
        raise asyncio.CancelledError from error
    adopt_id(call, context)
    refusal = refusal_of(error, call.id)
    call.code = refusal.code.name
    if refusal.code is grpc.StatusCode.INTERNAL:
        _log.error("internal error", method=call.method, call=call.id, exc_info=error)
    elif isinstance(error, UnavailableError | StorageFullError | FencedError):
        _outages.note(call, error)
    abort = context.abort(refusal.code, refusal.message, ((STATUS_KEY, refusal.details),))
    # The status goes behind what the client has not read yet. It is on its way when
    # this is cancelled; who does not read does not get to hold the call open.
    with suppress(TimeoutError, aio.InternalError):
        async with asyncio.timeout(_FOR_THE_STATUS):
            await abort
    # What else is raised gRPC would take for a defect of ours, and log.
    raise asyncio.CancelledError


class _Outages:
    """Logs that a store cannot serve, once a second: every call that comes in meets it."""

    def __init__(self) -> None:
        self._next = 0.0
        self._more = 0

    def note(
        self, call: CallContext, error: UnavailableError | StorageFullError | FencedError
    ) -> None:
        """Log ``error``, or count it."""
        if isinstance(error, ServerStartingError | ServerDrainingError | StalledError):
            return
        now = time.monotonic()
        if now < self._next:
            self._more += 1
            return
        detail = str(error)
        _log.warning(
            "call refused",
            method=call.method,
            reason=error.reason,
            detail=detail,
            call=call.id,
            more=self._more,
        )
        self._next, self._more = now + 1.0, 0


_outages = _Outages()
