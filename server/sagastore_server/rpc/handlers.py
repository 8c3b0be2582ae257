"""Method dispatch: wraps each RPC in admission control, decoding and error mapping.

Each method gets a thin wrapper instead of gRPC's interceptors: an interceptor costs every call
another coroutine and another handler object, and sees neither the parsed request nor the end of
a stream. Whatever applies to every call is in `AdmissionControl` or in `_Dispatcher`.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from grpc import aio

from sagastore_server.interfaces.access import Role
from sagastore_server.interfaces.call_context import CallContext, current
from sagastore_server.interfaces.errors import StalledError
from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.rpc.admission import AdmissionControl, Context, required_role
from sagastore_server.rpc.change_details import noting_changes
from sagastore_server.rpc.consistency import Locate, Require, position_writer, requirement_reader
from sagastore_server.rpc.error_responder import STATUS_TIMEOUT, ErrorResponder
from sagastore_server.rpc.forwarding import Forwarding
from sagastore_server.rpc.lifecycle import Lifecycle
from sagastore_server.rpc.places import Place
from sagastore_server.rpc.receiving import REPAIRED, Parse, messages, parsed, parser, receiver
from sagastore_server.rpc.wire import InvalidText
from sagastore_server.runtime.supervisor import awaited
from sagastore_server.runtime.worker_pool import WorkerPool
from sagastore_server.storage.errors import InvalidRequestError
from sagastore_server.storage.limits import MAX_PAGE_BYTES

UnaryMethod = Callable[..., Awaitable[Message | bytes]]
StreamMethod = Callable[[Any], AsyncIterator[Message | bytes]]
Handler = Callable[[Any, Context], Awaitable[Any]]
TimeLeft = Callable[[], float | None]
"""Returns the seconds until the deadline of a call; None: it has no deadline."""
Reserve = Callable[[int], None]
"""Reserves memory for an answer of this size in bytes; raises OverloadedError if there is none."""

Respond = Callable[[Message, Context, Place], Awaitable[Message | bytes]]

_WRITES_WITH_LARGE_ANSWERS = frozenset({"TruncateSession"})
"""Writes whose answer holds messages. Room for it is reserved before the write, because a write
that was stored must not be reported as refused."""

F = TypeVar("F", bound=Callable[..., object])


class _Trait(enum.Enum):
    """How a method is called and ended; set by the decorators of the same names."""

    TIMED = "timed"
    SIZED = "sized"
    ENDLESS = "endless"
    INTERRUPTIBLE = "interruptible"


def timed(method: F) -> F:
    """Mark a unary method that takes a ``TimeLeft`` as its second argument."""
    return _marked(method, _Trait.TIMED)


def sized(method: F) -> F:
    """Mark a unary method that takes a ``Reserve`` as its second argument."""
    return _marked(method, _Trait.SIZED)


def endless(method: F) -> F:
    """Mark a stream that lasts until the caller ends it.

    A drain does not wait for it, but ends it at once with UNAVAILABLE.
    """
    return _marked(method, _Trait.ENDLESS)


def interruptible(method: F) -> F:
    """Mark a stream that a drain may cancel at any point, with UNAVAILABLE.

    It is cancelled when streams must end. Other streams check `Lifecycle.end_streams`.
    """
    return _marked(method, _Trait.INTERRUPTIBLE)


def _marked(method: F, trait: _Trait) -> F:
    vars(method)["trait"] = trait
    return method


def _trait_of(method: object) -> _Trait | None:
    trait = getattr(method, "trait", None)
    return trait if isinstance(trait, _Trait) else None


def service_handler(
    service: ServiceDescriptor,
    servicer: object,
    admission: AdmissionControl,
    responder: ErrorResponder,
    tracer: Tracer = NO_TRACER,
    *,
    pool: WorkerPool | None = None,
    forwarding: Forwarding | None = None,
) -> grpc.GenericRpcHandler:
    """Return gRPC's handler for ``service``, which calls the methods of ``servicer`` by name.

    A unary method takes the request and returns the response. A method with a streaming response
    is an asynchronous generator. A method with a streaming request takes an asynchronous
    iterator, whose items may be ``InvalidText``. Methods do not see gRPC: they raise errors of
    the storage contract. The decorators `timed`, `endless` and `interruptible` change this. A
    response may also be its serialized form, with its position. `consistency` of requests and
    `position` of responses are handled here, for every method that has them. Requests of many
    fields are examined in ``pool``, or without one in a thread. While ``forwarding`` is active,
    calls go to the holder of a migration instead.

    Raises:
        AttributeError: The servicer lacks a method.

    """
    dispatcher = _Dispatcher(admission, responder, tracer, pool, forwarding)
    handlers = {}
    for method in service.methods:
        target = noting_changes(method, getattr(servicer, method.name), admission.audit)
        handlers[method.name] = dispatcher.handler(method, target)
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


class _Dispatcher:
    """Wraps the methods of one service."""

    def __init__(
        self,
        admission: AdmissionControl,
        responder: ErrorResponder,
        tracer: Tracer,
        pool: WorkerPool | None,
        forwarding: Forwarding | None,
    ) -> None:
        self._admission = admission
        self._forwarding = forwarding
        self._responder = responder
        self._tracer = tracer
        self._pool = pool

    def handler(self, method: MethodDescriptor, target: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """Return gRPC's handler for ``method``, served by ``target``.

        Every method is registered as one with a streaming request of raw bytes. gRPC receives
        the message of a unary method before it calls the handler; that of a stream when the
        handler asks for it, which is after admission.
        """
        if method.client_streaming or method.server_streaming:
            stream = self._traced(method, self._stream(method, target))
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.stream_unary_rpc_method_handler(
            self._traced(method, self._unary(method, target))
        )

    def _unary(self, method: MethodDescriptor, target: UnaryMethod) -> Handler:
        admission, lifecycle = self._admission, self._admission.lifecycle
        name, role = _name(method), required_role(method)
        receive, parse = receiver(method, admission), parser(method, self._pool)
        valid = _any if method.name in REPAIRED else _valid
        respond, may_refuse = _responding(method, target), _may_refuse(method)
        answer_reserve = MAX_PAGE_BYTES if method.name in _WRITES_WITH_LARGE_ANSWERS else 0
        forward = None if self._forwarding is None else self._forwarding.unary

        async def call(_: Any, context: Context) -> bytes:
            record, began = admission.record_start(name)
            try:
                lifecycle.enter()
                try:
                    admission.admit(record, context, role)
                    place = admission.acquire_call(record, context)
                    if answer_reserve:
                        place.reserve_answer(answer_reserve)
                    else:
                        place.check_answer_memory()
                    raw = await receive(context, place)
                    answer = await forward(name, raw, context) if forward else None
                    if answer is None:
                        request: Any = valid(await parse(raw))
                        answer = _serialized(await respond(request, context, place))
                    place.send(len(answer), may_refuse=may_refuse)
                finally:
                    lifecycle.leave()
                record.code = "OK"
                return answer
            except Exception as exc:  # noqa: BLE001 - every error has a status
                request = raw = answer = None  # type: ignore[assignment]
                await self._responder.refuse(context, record, exc)
            finally:
                admission.record_end(record, _code(record, context), began, context)

        return call

    def _stream(self, method: MethodDescriptor, target: StreamMethod) -> Handler:
        admission = self._admission
        name, role = _name(method), required_role(method)
        receive, parse = receiver(method, admission), parser(method, self._pool)
        own_trait, may_refuse = _trait_of(target), _may_refuse(method)
        require, locate = requirement_reader(method), position_writer(method)

        async def call(_: Any, context: Context) -> None:
            record, began = admission.record_start(name)
            try:
                with _counted(admission.lifecycle, own_trait):
                    admission.admit(record, context, role)
                    place = admission.acquire_stream(record, context)
                    raw: bytes | AsyncIterator[bytes] = (
                        messages(receive, admission, context, place)
                        if method.client_streaming
                        else await receive(context, place)
                    )
                    trait = own_trait
                    responses = await self._forwarded(name, raw, context)
                    if responses is None:
                        responses = await _answered(target, raw, parse, require)
                    elif trait is None:
                        trait = _Trait.INTERRUPTIBLE
                    async with (
                        _ended_by_drain(admission.lifecycle, trait),
                        admission.revocable(record, context, role),
                    ):
                        await self._write_all(
                            responses, context, place, locate, may_refuse=may_refuse
                        )
                record.code = "OK"
            except Exception as exc:  # noqa: BLE001 - every error has a status
                raw = responses = None  # type: ignore[assignment]
                await self._responder.refuse(context, record, exc)
            finally:
                admission.record_end(record, _code(record, context), began, context)

        return call

    async def _forwarded(
        self, name: str, requests: bytes | AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[Message | bytes] | None:
        """Return the holder's answers to a stream; None if this server must answer."""
        forwarding = self._forwarding
        connection = None if forwarding is None else await forwarding.connected()
        if forwarding is None or connection is None:
            return None
        if isinstance(requests, bytes):
            requests = _only(requests)
        return forwarding.stream(connection, name, requests, context)

    async def _write_all(
        self,
        responses: AsyncIterator[Message | bytes],
        context: Context,
        place: Place,
        locate: Locate | None,
        *,
        may_refuse: bool,
    ) -> None:
        stall_timeout = self._admission.limits.stall_timeout
        # Closes the generator with the call, also if the call is cancelled, and with it the
        # tasks of the generator. Garbage collection would do so too late.
        async with aclosing(responses):  # type: ignore[type-var]
            headers_sent = False
            async for response in responses:
                if locate is not None:
                    locate(response)
                answer = _serialized(response)
                place.send(len(answer), may_refuse=may_refuse)
                # `write` returns when flow control accepts the message.
                try:
                    async with asyncio.timeout(stall_timeout):
                        if not headers_sent:
                            await _send_headers(context)
                            headers_sent = True
                        await context.write(answer)
                except TimeoutError:
                    raise StalledError(
                        f"the client did not read for {stall_timeout:g} seconds; resume the stream"
                    ) from None
                place.sent()

    def _traced(self, method: MethodDescriptor, call: Handler) -> Handler:
        """Wrap ``call`` in a span if tracing is on; health and reflection have no spans."""
        tracer = self._tracer
        if tracer is NO_TRACER or not method.full_name.startswith("sagastore."):
            return call

        async def traced(request: Any, context: Context) -> Any:
            # Unauthenticated callers must not decide what is sampled.
            known = self._admission.is_known(context)
            headers = context.invocation_metadata() if known else ()
            metadata = {k: v for k, v in headers or () if isinstance(v, str)}
            with tracer.call(metadata) as span:
                try:
                    return await call(request, context)
                finally:
                    record = current()
                    if record is not None:
                        span.ended(record.method, _code(record, context))

        return traced


async def _send_headers(context: Context) -> None:
    """Send the initial metadata completely, even if the call is cancelled meanwhile.

    gRPC marks headers as sent only after sending them. If the first write, which waits for the
    client, is cancelled while it sends them, gRPC sends them again with the status; its core
    rejects that, and the client never receives the status.
    """
    sending = awaited(_initial_metadata(context))
    try:
        await asyncio.shield(sending)
    except asyncio.CancelledError:
        with suppress(TimeoutError, aio.InternalError):
            async with asyncio.timeout(STATUS_TIMEOUT):
                await sending
        raise


async def _initial_metadata(context: Context) -> None:
    await context.send_initial_metadata(())


def _name(method: MethodDescriptor) -> str:
    """Return the name of a method as in gRPC's paths, without the leading slash."""
    service, _, name = method.full_name.rpartition(".")
    return f"{service}/{name}"


def _responding(method: MethodDescriptor, target: UnaryMethod) -> Respond:
    """Return a function that answers a request of ``method`` by ``target``, with its position."""
    call = _calling(target)
    require, locate = requirement_reader(method), position_writer(method)

    async def respond(request: Any, context: Context, place: Place) -> Message | bytes:
        if require is not None:
            require(request)
        response = await call(request, context, place)
        if locate is not None:
            locate(response)
        return response

    return respond


def _calling(target: UnaryMethod) -> Respond:
    """Return a function that calls ``target`` with the arguments that its trait requires."""
    trait = _trait_of(target)
    if trait is _Trait.TIMED:
        return lambda request, context, _: target(request, context.time_remaining)
    if trait is _Trait.SIZED:
        return lambda request, _, place: target(request, place.reserve_answer)
    return lambda request, _, __: target(request)


async def _answered(
    target: StreamMethod,
    requests: bytes | AsyncIterator[bytes],
    parse: Parse,
    require: Require | None,
) -> AsyncIterator[Message | bytes]:
    """Return the answers of ``target`` to one request or to a stream of them."""
    if not isinstance(requests, bytes):
        return target(parsed(requests, parse))
    request = _valid(await parse(requests))
    if require is not None:
        require(request)
    return target(request)


async def _only(request: bytes) -> AsyncIterator[bytes]:
    yield request


def _valid(request: Message | InvalidText) -> Message:
    if isinstance(request, InvalidText):
        raise InvalidRequestError(request.violations)
    return request


def _any(request: Message | InvalidText) -> Message | InvalidText:
    return request


def _may_refuse(method: MethodDescriptor) -> bool:
    """Return whether an answer may be replaced by an error: not if a write was stored."""
    return not method.full_name.startswith("sagastore.") or required_role(method) is Role.READER


def _serialized(response: Message | bytes) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


@contextmanager
def _counted(lifecycle: Lifecycle, trait: _Trait | None) -> Iterator[None]:
    """Count the stream among the calls that a drain waits for, unless it is endless."""
    if trait is _Trait.ENDLESS:
        lifecycle.check()
        yield
        return
    lifecycle.enter()
    try:
        yield
    finally:
        lifecycle.leave()


def _ended_by_drain(
    lifecycle: Lifecycle, trait: _Trait | None
) -> AbstractAsyncContextManager[None]:
    """Cancel the stream in a drain, at the time that its trait requires."""
    if trait is _Trait.ENDLESS:
        return _cancelled_on(lifecycle.draining, lifecycle)
    if trait is _Trait.INTERRUPTIBLE:
        return _cancelled_on(lifecycle.end_streams, lifecycle)
    return nullcontext()


def _code(record: CallContext, context: Context) -> str:
    """Return the status code of a call; a call that the client or gRPC ended has set none."""
    if record.code:
        return record.code
    left: float | None = context.time_remaining()  # The published type lacks None.
    return "DEADLINE_EXCEEDED" if left is not None and left <= 0 else "CANCELLED"


@asynccontextmanager
async def _cancelled_on(event: asyncio.Event, lifecycle: Lifecycle) -> AsyncIterator[None]:
    """Cancel the body of the context when ``event`` is set.

    Raises:
        UnavailableError: The body was cancelled; the error of ``lifecycle``.

    """
    try:
        async with asyncio.timeout(None) as limit:
            expiry = awaited(_expire(event, limit))
            try:
                yield
            finally:
                expiry.cancel()
    except TimeoutError:
        if limit.expired():
            raise lifecycle.refusal() from None
        raise


async def _expire(event: asyncio.Event, limit: asyncio.Timeout) -> None:
    await event.wait()
    limit.reschedule(0.0)
