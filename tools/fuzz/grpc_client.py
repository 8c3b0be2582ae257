"""Sends inputs that a gRPC client can send."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any
from weakref import WeakSet

import grpc
from grpc import aio

from tools.fuzz.answer_check import DETAILS, Answer
from tools.fuzz.fuzz_input import METHODS, Input

OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Answers with large metadata must be visible to the checks, not rejected by the client.
    ("grpc.max_metadata_size", 1024 * 1024),
    ("grpc.absolute_max_metadata_size", 2 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)
_STATUS_UNKNOWN = "Internal error from Core"
"""Text that gRPC's client returns instead of the status of a stream that ends while it sends."""
_ENDED = (grpc.RpcError, aio.InternalError, asyncio.InvalidStateError)
_ANSWERED: WeakSet[Any] = WeakSet()
"""Calls that have received an answer."""
_UNREAD = 400
"""Maximum number of messages to send without reading an answer."""


def channel(address: str) -> aio.Channel:
    """Return a separate connection."""
    return aio.insecure_channel(address, options=OPTIONS)


async def call(channel: aio.Channel, one: Input) -> list[Answer]:
    """Make the calls of ``one`` and return their results."""
    return await asyncio.gather(*(_call(channel, one) for _ in range(one.crowd)))


async def _call(channel: aio.Channel, one: Input) -> Answer:
    method = METHODS.get(one.method)
    options: dict[str, Any] = {
        "timeout": one.deadline,
        "metadata": aio.Metadata(*one.metadata),
        "compression": grpc.Compression.Gzip if one.gzip else None,
    }
    if one.as_stream or (method is not None and method.takes_stream):
        stream: Any = channel.stream_stream(one.method)(**options)
        return await _finished(stream, _exchange(stream, one))
    if method is not None and method.gives_stream:
        server_stream: Any = channel.unary_stream(one.method)
        answers = server_stream(one.payloads[0], **options)
        return await _finished(answers, _listen(answers, one))
    unary: Any = channel.unary_unary(one.method)
    single = unary(one.payloads[0], **options)
    return await _finished(single, _wait(single, one))


async def _finished(under_way: Any, work: Coroutine[Any, Any, None]) -> Answer:
    """Run ``work`` until it or the call has ended.

    In gRPC's client, a write to a call that was cancelled early never returns.
    """
    working, ending = asyncio.create_task(work), asyncio.create_task(under_way.code())
    try:
        await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done() and not working.cancelled():
            failure = working.exception()
            if failure is not None and not isinstance(failure, _ENDED):
                raise failure
        under_way.cancel()
        return await answer_of(under_way)
    finally:
        under_way.cancel()
        working.cancel()
        ending.cancel()
        await asyncio.gather(working, ending, return_exceptions=True)


async def answer_of(under_way: Any) -> Answer:
    """Return the result of a call."""
    details: bytes | None = None
    for key, value in await under_way.trailing_metadata() or ():
        if key == DETAILS:
            details = value
    code, message = await under_way.code(), await under_way.details() or ""
    if message == _STATUS_UNKNOWN:
        return Answer(grpc.StatusCode.CANCELLED, "the client did not receive the status")
    return Answer(code, message, details, answered=under_way in _ANSWERED)


async def _wait(under_way: Any, one: Input) -> None:
    if one.behaviour:
        await asyncio.sleep(one.after)
        under_way.cancel()
    await under_way


async def _listen(under_way: Any, one: Input) -> None:
    if one.behaviour == "abandon":
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(one.after):
                await under_way.read()
        under_way.cancel()
        return
    async with _cancelled_after(under_way, one):
        async for _ in under_way:
            _ANSWERED.add(under_way)


async def _exchange(under_way: Any, one: Input) -> None:
    if one.behaviour == "never-read":
        await _send_only(under_way, one)
        return
    async with _cancelled_after(under_way, one):
        if one.behaviour != "half-close":
            for payload in one.payloads:
                await under_way.write(payload)
        elif one.payloads:
            await under_way.write(one.payloads[0])
        await under_way.done_writing()
        await _listen(under_way, one)


async def _send_only(under_way: Any, one: Input) -> None:
    """Send messages without reading, then abandon the call."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(one.after):
            for number in range(_UNREAD if one.payloads else 0):
                await under_way.write(one.payloads[number % len(one.payloads)])
    under_way.cancel()


@contextlib.asynccontextmanager
async def _cancelled_after(under_way: Any, one: Input) -> AsyncIterator[None]:
    """Cancel the call after a delay if the input says so."""
    if one.behaviour != "cancel":
        yield
        return
    timer = asyncio.get_running_loop().call_later(one.after, under_way.cancel)
    try:
        yield
    finally:
        timer.cancel()
