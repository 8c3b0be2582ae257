"""Receiving requests: the messages of a call within their limits, and their parsing.

Receiving and parsing are separate steps, because a call that is forwarded is not parsed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from sagastore_server.interfaces.errors import NoRequestError, RequestTooLargeError
from sagastore_server.rpc.admission import AdmissionControl, Context
from sagastore_server.rpc.places import Place
from sagastore_server.rpc.request_limits import request_limit
from sagastore_server.rpc.wire import LARGE, InvalidText, decoder, examine, has_few_fields
from sagastore_server.runtime.worker_pool import WorkerPool

REPAIRED = frozenset({"BatchSave"})
"""Unary methods whose requests are parsed although some of their text is not valid UTF-8: the parts
of such a request succeed or fail separately. They get an ``InvalidText``, as streams do."""

Receive = Callable[..., Awaitable[bytes]]
Parse = Callable[[bytes], Awaitable[Message | InvalidText]]


def receiver(method: MethodDescriptor, admission: AdmissionControl) -> Receive:
    """Return a function that receives the next message of a call.

    It raises NoRequestError at the end of the messages, RequestTooLargeError, and the errors of
    `PendingReads.read` and `Place.hold_request`.
    """
    limit = request_limit(method, admission.limits.max_request_bytes)

    async def receive(context: Context, place: Place, seconds: float | None = None) -> bytes:
        raw: Any = await admission.reads.read(context, place.owner, seconds)
        if raw is aio.EOF:
            raise NoRequestError("the method requires one message, and the client sent none")
        size = len(raw)
        if size > limit:
            raise RequestTooLargeError(
                f"the request has {size:,} bytes; this method accepts {limit:,}"
            )
        place.hold_request(size)
        return cast("bytes", raw)

    return receive


async def messages(
    receive: Receive, admission: AdmissionControl, context: Context, place: Place
) -> AsyncIterator[bytes]:
    """Receive the messages of a streaming request, at the rate that the caller is allowed.

    The first must arrive as soon as the request of a unary method, a later one within
    ``stall_timeout``.
    """
    seconds: float | None = None
    while True:
        try:
            request = await receive(context, place, seconds)
        except NoRequestError:
            return
        await admission.wait_for_rate(place.owner)
        yield request
        seconds = admission.limits.stall_timeout


def parser(method: MethodDescriptor, pool: WorkerPool | None) -> Parse:
    """Return a function that parses a message of a call.

    Requests of many fields are examined in ``pool``, or without one in a thread.
    """
    request_type = GetMessageClass(method.input_type)
    repair = method.client_streaming or method.name in REPAIRED
    decode = decoder(request_type, repair=repair)

    async def examined(raw: bytes) -> InvalidText | None:
        if pool is None:
            return await asyncio.to_thread(examine, request_type, raw, repair)
        (rejected,) = await pool.map(examine, [(request_type, raw, repair)])
        return rejected

    async def parse(raw: bytes) -> Message | InvalidText:
        if len(raw) >= LARGE and not has_few_fields(request_type, raw):
            rejected = await examined(raw)
            if rejected is not None:
                return rejected
        return decode(raw)

    return parse


async def parsed(
    requests: AsyncIterator[bytes], parse: Parse
) -> AsyncIterator[Message | InvalidText]:
    """Parse the messages of a streaming request."""
    async with aclosing(requests):  # type: ignore[type-var]
        async for raw in requests:
            yield await parse(raw)
