"""Attacks with request bodies: compressed, large, slow, and of text that is not UTF-8."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack

from tools.attacks import frames
from tools.attacks.http2_connection import Connection
from tools.attacks.plan import Attack, Pace, Size, Target

_GZIP = (("grpc-encoding", "gzip"),)
_PER_CONNECTION = 10
_DRIP_SECONDS = 0.25


async def invalid_text_bomb(target: Target, pace: Pace) -> None:
    """Call after call, each waits for its answer."""
    methods = (frames.HEALTH_CHECK, frames.STORAGE + "Save", frames.REFLECTION)
    body = frames.bomb(frames.INVALID_TEXT, 31)
    async with Connection.opened(target, pace) as connection:
        pace.ready()
        for number, method in enumerate(itertools.cycle(methods), 1):
            await connection.call(method, body, more=_GZIP)
            await connection.all_answered(number)
            if connection.closed or not pace.more() or number == pace.count:
                break
        await pace.hold()


async def inflated_bodies(target: Target, pace: Pace) -> None:
    """Concurrent calls without a token, in rounds on new connections."""
    body = frames.bomb(frames.UNKNOWN_FIELD, 31)
    while pace.more():
        await _in_parallel(target, pace, frames.STORAGE + "Save", body, _GZIP)
        pace.ready()


async def inflated_health_bodies(target: Target, pace: Pace) -> None:
    """Concurrent calls of a service that needs no token."""
    body = frames.bomb(frames.UNKNOWN_FIELD, 31)
    while pace.more():
        await _in_parallel(target, pace, frames.HEALTH_CHECK, body, _GZIP)
        pace.ready()


async def _in_parallel(
    target: Target, pace: Pace, path: str, body: bytes, more: frames.Pairs = ()
) -> None:
    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(Connection.opened(target, pace))
            for _ in range(-(-pace.count // _PER_CONNECTION))
        ]
        calls = [
            connections[number // _PER_CONNECTION].call(path, body, more=more)
            for number in range(pace.count)
        ]
        await asyncio.gather(*calls)
        await asyncio.gather(*(one.all_answered(_PER_CONNECTION) for one in connections))


async def large_bodies(target: Target, pace: Pace) -> None:
    """Concurrent large requests, in rounds on new connections."""
    body = frames.message(frames.UNKNOWN_FIELD * (31 * 8192))
    while pace.more():
        await _in_parallel(target, pace, frames.STORAGE + "Save", body)
        pace.ready()


async def unfinished_bodies(target: Target, pace: Pace) -> None:
    """Large requests that lack their last byte."""
    body = frames.message(frames.UNKNOWN_FIELD * (31 * 8192))[:-1]
    async with AsyncExitStack() as stack:
        calls = []
        for _ in range(pace.count):
            connection = await stack.enter_async_context(Connection.opened(target, pace))
            stream = await connection.begin(frames.STORAGE + "Save")
            calls.append(connection.body(stream, body, end=False))
        # A server that does not accept the bytes leaves the senders waiting.
        await asyncio.gather(*calls, return_exceptions=True)
        await pace.hold()


async def dripping_bodies(target: Target, pace: Pace) -> None:
    """Requests that arrive byte by byte."""
    async with Connection.opened(target, pace) as connection:
        streams = [await connection.begin(frames.STORAGE + "Save") for _ in range(pace.count)]
        pace.ready()
        body = iter(frames.message(b"\0" * 4096))
        while pace.more() and not connection.closed:
            byte = bytes([next(body)])
            for stream in streams:
                await connection.drip(stream, byte)
            await asyncio.sleep(_DRIP_SECONDS)
        await pace.hold()


ATTACKS = (
    Attack(
        "invalid-text-bomb",
        "calls of 31 MiB that is not UTF-8, compressed to 32 kB, without a token",
        invalid_text_bomb,
        Size(1, 1, 2),
        Size(1000, 100, 2),
    ),
    Attack(
        "inflated-bodies",
        "concurrent calls of 31 MiB, compressed to 32 kB, without a token",
        inflated_bodies,
        Size(20, 20, 200),
        Size(50, 500, 100_000),
    ),
    Attack(
        "inflated-health-bodies",
        "concurrent health checks of 31 MiB, compressed to 32 kB",
        inflated_health_bodies,
        Size(20, 20, 200),
        Size(50, 500, 100_000),
    ),
    Attack(
        "large-bodies",
        "concurrent calls of 31 MiB, without a token",
        large_bodies,
        Size(8, 300, 10),
        Size(50, 4000, 600),
    ),
    Attack(
        "unfinished-bodies",
        "calls of 31 MiB without their last byte, without a token",
        unfinished_bodies,
        Size(8, 300, 10),
        Size(50, 2000, 60),
    ),
    Attack(
        "dripping-bodies",
        "calls on one connection whose bodies arrive byte by byte, without a token",
        dripping_bodies,
        Size(300, 5, 2),
        Size(2000, 100, 2),
        quiet=True,
    ),
)
