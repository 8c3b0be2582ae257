"""Attacks with connections: idle, silent, and as many as there are file descriptors."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from tools.attacks.http2_connection import Flood, Streams
from tools.attacks.loopback import SOURCE, Address
from tools.attacks.plan import Attack, Pace, Size, Target
from tools.attacks.service import Service

_CONNECT = 5.0
"""Seconds for opening one connection."""
_BLOCKED = 20
"""Failed connections after which the server counts as full."""
_DRIP_SECONDS = 0.5
_REPLACE_SECONDS = 10.0
"""Seconds until the connections that the server has closed are replaced. A source that reconnects
all the time has to be limited by a front, see docs/how-to/security.md."""
_POLL = 0.1
_REVOKED_WITHIN = 20.0
"""Seconds within which a revocation must apply; the access file is read every second."""


async def idle_connections(target: Target, pace: Pace) -> None:
    """TLS connections without a call; those that the server closes are replaced."""
    async with AsyncExitStack() as stack:
        floods: list[Flood] = []
        while pace.more():
            floods = [flood for flood in floods if not flood.closed]
            failed = 0
            while len(floods) < pace.count and failed < _BLOCKED and pace.more():
                try:
                    floods.append(await stack.enter_async_context(Flood.opened(target, pace)))
                except (OSError, TimeoutError):
                    failed += 1
            pace.ready()
            await pace.rest(_REPLACE_SECONDS)
        await pace.hold()


async def silent_connections(target: Target, pace: Pace) -> None:
    """TCP connections without a TLS handshake; those that the server closes are replaced."""
    async with AsyncExitStack() as stack:
        opened: list[Streams] = []
        while pace.more():
            opened = [one for one in opened if _is_open(one)]
            opened += await _connect(target.rpc, pace, stack, pace.count - len(opened))
            pace.ready()
            await pace.rest(_REPLACE_SECONDS)
        await pace.hold()


def _is_open(streams: Streams) -> bool:
    reader, writer = streams
    return not (reader.at_eof() or writer.transport.is_closing())


async def dripping_handshakes(target: Target, pace: Pace) -> None:
    """TCP connections that send the head of a TLS record, and then a byte now and then."""
    async with AsyncExitStack() as stack:
        opened = await _connect(target.rpc, pace, stack, pace.count)
        pace.ready()
        await _drip(pace, opened, b"\x16\x03\x01\x02\x00" + b"\x01" * 400)


async def dripping_ops_requests(target: Target, pace: Pace) -> None:
    """HTTP connections to the ops port whose requests arrive byte by byte."""
    async with AsyncExitStack() as stack:
        opened = await _connect(target.ops, pace, stack, pace.count)
        pace.ready()
        while pace.more():
            await _drip(pace, opened, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
            # The server may have closed some; replace all.
            for _, writer in opened:
                writer.transport.abort()
            opened = await _connect(target.ops, pace, stack, pace.count)


async def unread_metrics(target: Target, pace: Pace) -> None:
    """HTTP connections to the ops port that request the metrics and read nothing."""
    async with AsyncExitStack() as stack:
        opened = await _connect(target.ops, pace, stack, pace.count)
        for _, writer in opened:
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
            writer.transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport
        await pace.hold()


async def _connect(
    address: Address, pace: Pace, stack: AsyncExitStack, count: int
) -> list[Streams]:
    """Open ``count`` connections, fewer if the server does not accept them.

    Readers are returned too: a connection without its reader is closed by garbage collection.
    """
    opened: list[Streams] = []
    failed = 0
    while len(opened) < count and failed < _BLOCKED and pace.more():
        pace.connect()
        try:
            streams = await asyncio.wait_for(
                asyncio.open_connection(*address, local_addr=(SOURCE, 0)), _CONNECT
            )
        except (OSError, TimeoutError):
            failed += 1
            continue
        stack.callback(streams[1].transport.abort)
        opened.append(streams)
    return opened


async def _drip(pace: Pace, opened: list[Streams], data: bytes) -> None:
    for byte in data:
        if not pace.more():
            return
        for _, writer in opened:
            if not writer.transport.is_closing():
                pace.spend(1)
                writer.write(bytes([byte]))
        await pace.rest(_DRIP_SECONDS)


def revocation_applies(service: Service) -> list[str]:
    """Revoke a token, and check that the server refuses it."""
    before = service.get_with("revoked")
    if before != "NOT_FOUND":
        return [f"a call with a valid token was refused with {before}"]
    service.revoke("revoked")
    until = time.monotonic() + _REVOKED_WITHIN
    while (answer := service.get_with("revoked")) != "UNAUTHENTICATED":
        if time.monotonic() > until:
            return [f"{_REVOKED_WITHIN:g} s after its revocation, a token is answered {answer}"]
        time.sleep(_POLL)
    return []


_FEW_CONNECTIONS = {"SAGASTORE_MAX_CONNECTIONS": "200"}

ATTACKS = (
    Attack(
        "idle-connections",
        "TLS connections without a call",
        idle_connections,
        Size(250, 10, 10_000),
        Size(1100, 100, 100_000),
        seconds=15,
        settings=_FEW_CONNECTIONS,
        quiet=True,
    ),
    Attack(
        "silent-connections",
        "TCP connections without a TLS handshake",
        silent_connections,
        Size(250, 10, 10_000),
        Size(1100, 100, 100_000),
        seconds=15,
        settings=_FEW_CONNECTIONS,
        quiet=True,
    ),
    Attack(
        "dripping-handshakes",
        "TCP connections with a TLS handshake that arrives byte by byte",
        dripping_handshakes,
        Size(250, 10, 10_000),
        Size(1100, 100, 100_000),
        seconds=15,
        settings=_FEW_CONNECTIONS,
        quiet=True,
    ),
    Attack(
        "file-limit",
        "TCP connections to a server that may open 1,024 files; meanwhile a token is revoked",
        silent_connections,
        Size(1100, 10, 10_000),
        Size(1100, 100, 100_000),
        seconds=45,
        file_limit=1024,
        meanwhile=revocation_applies,
        quiet=True,
    ),
    Attack(
        "dripping-ops-requests",
        "HTTP connections to the ops port with requests that arrive byte by byte",
        dripping_ops_requests,
        Size(40, 10, 4000),
        Size(100, 100, 100_000),
        seconds=6,
        quiet=True,
    ),
    Attack(
        "unread-metrics",
        "HTTP connections to the ops port that request metrics and read nothing",
        unread_metrics,
        Size(40, 10, 4000),
        Size(100, 100, 100_000),
        seconds=6,
        quiet=True,
    ),
)
