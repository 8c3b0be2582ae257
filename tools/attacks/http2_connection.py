"""HTTP/2 connections of an attacker, over TLS on the loopback interface.

`Connection` keeps to the protocol, by the library ``h2``, and can leave out what a good client
does: read answers, finish requests. `Flood` sends any bytes and only counts the frames received.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from tools.attacks import frames
from tools.attacks.frames import Pairs, call_headers
from tools.attacks.loopback import SOURCE
from tools.attacks.plan import Pace, Target

_CODES = {str(code.value[0]): code.name for code in grpc.StatusCode}
_HANDSHAKE = 20.0
"""Seconds for connecting."""
_READ = 65_536
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@cache
def tls_context(ca: Path) -> ssl.SSLContext:
    """Return the TLS configuration of a client that trusts ``ca``."""
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["h2"])
    return context


@asynccontextmanager
async def connected(target: Target, pace: Pace) -> AsyncIterator[Streams]:
    """Open a TLS connection from `SOURCE`; abort it at the end."""
    pace.connect()
    reader, writer = await asyncio.wait_for(
        asyncio.open_connection(
            *target.rpc,
            ssl=tls_context(target.ca),
            server_hostname="localhost",
            local_addr=(SOURCE, 0),
        ),
        _HANDSHAKE,
    )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


class Connection:
    """Connection that keeps to HTTP/2. Use `opened`."""

    def __init__(self, streams: Streams, pace: Pace, *, reads: bool) -> None:
        self._reader, self._writer = streams
        self._pace = pace
        self._reads = reads
        self._http2 = H2Connection(
            H2Configuration(client_side=True, header_encoding=None, validate_outbound_headers=False)
        )
        self._changed = asyncio.Condition()
        self.begun = 0
        """Streams that were opened."""
        self.answered = 0
        """Streams that ended."""
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._closed

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, target: Target, pace: Pace, *, reads: bool = True
    ) -> AsyncIterator[Connection]:
        """Open a connection. Without ``reads``, its windows stay closed: no answer can be sent."""
        async with connected(target, pace) as streams:
            connection = cls(streams, pace, reads=reads)
            await connection.start()
            pump = asyncio.create_task(connection.pump())
            try:
                yield connection
            finally:
                pump.cancel()
                await asyncio.gather(pump, return_exceptions=True)

    async def start(self) -> None:
        """Send the preface."""
        window = 1 << 20 if self._reads else 0
        self._http2.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = window
        self._http2.initiate_connection()
        if self._reads:
            self._http2.increment_flow_control_window(1 << 30)
        await self._flush()

    async def begin(self, path: str, token: str | None = None, more: Pairs = ()) -> int:
        """Send the headers of a call; return its stream."""
        stream = self._http2.get_next_available_stream_id()
        self._http2.send_headers(stream, call_headers(path, token, more))
        self.begun += 1
        await self._flush()
        return stream

    async def body(self, stream: int, data: bytes, *, end: bool = True) -> None:
        """Send ``data`` as fast as the server allows; ``end`` completes the request."""
        at = 0
        while at < len(data) and not self._closed:
            room = await self._room(stream)
            piece = data[at : at + room]
            at += len(piece)
            self._http2.send_data(stream, piece, end_stream=end and at == len(data))
            await self._flush()

    async def drip(self, stream: int, data: bytes) -> None:
        """Send a few bytes of an unfinished request; does nothing if the server has ended it."""
        with contextlib.suppress(ProtocolError):
            if self._http2.local_flow_control_window(stream) >= len(data):
                self._http2.send_data(stream, data)
                await self._flush()

    async def call(
        self, path: str, body: bytes, token: str | None = None, more: Pairs = ()
    ) -> None:
        """Send a whole request. The server may end the call before it is complete."""
        with contextlib.suppress(ProtocolError):
            stream = await self.begin(path, token, more)
            await self.body(stream, body)

    async def all_answered(self, count: int) -> None:
        """Wait until ``count`` streams have ended, the connection, or the attack."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._pace.left)), self._changed:
                await self._changed.wait_for(lambda: self._closed or self.answered >= count)

    async def pump(self) -> None:
        """Read until the connection ends."""
        try:
            while data := await self._reader.read(_READ):
                for event in self._http2.receive_data(data):
                    self._note(event)
                await self._flush()
                async with self._changed:
                    self._changed.notify_all()
        except (OSError, ProtocolError):
            pass
        finally:
            self._closed = True
            self._pace.outcomes["connection closed"] += 1
            with contextlib.suppress(RuntimeError):
                async with self._changed:
                    self._changed.notify_all()

    def _note(self, event: Event) -> None:
        if isinstance(event, ResponseReceived | TrailersReceived):
            status = dict(event.headers or ()).get(b"grpc-status")
            if status is not None:
                self._ended(_CODES.get(status.decode(), "?"))
        elif isinstance(event, StreamReset):
            self._ended(f"reset {int(event.error_code or 0)}")
        elif isinstance(event, ConnectionTerminated):
            self._pace.outcomes["GOAWAY"] += 1
        elif isinstance(event, DataReceived) and self._reads and event.stream_id is not None:
            length = event.flow_controlled_length or 0
            self._http2.acknowledge_received_data(length, event.stream_id)

    def _ended(self, outcome: str) -> None:
        self.answered += 1
        self._pace.outcomes[outcome] += 1

    async def _room(self, stream: int) -> int:
        """Wait until the server accepts data of ``stream``; return how much."""

        def room() -> int:
            window = self._http2.local_flow_control_window(stream)
            return min(window, self._http2.max_outbound_frame_size)

        async with asyncio.timeout(max(0.0, self._pace.left)), self._changed:
            await self._changed.wait_for(lambda: self._closed or room() > 0)
        return room()

    async def _flush(self) -> None:
        data = self._http2.data_to_send()
        if data:
            self._pace.spend(len(data))
            self._writer.write(data)
            await self._writer.drain()


class Flood:
    """Connection for frames that need no answer, at the highest rate. Use `opened`."""

    def __init__(self, streams: Streams, pace: Pace) -> None:
        self._reader, self._writer = streams
        self._pace = pace
        self._next = 1
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def opened(cls, target: Target, pace: Pace) -> AsyncIterator[Flood]:
        """Open a connection, and count the frames received on it until the end."""
        async with connected(target, pace) as streams:
            flood = cls(streams, pace)
            await flood.send(frames.PREFACE + frames.frame(frames.SETTINGS, 0, 0))
            pump = asyncio.create_task(flood.pump())
            try:
                yield flood
            finally:
                pump.cancel()
                await asyncio.gather(pump, return_exceptions=True)

    @property
    def closed(self) -> bool:
        """Whether the server has closed the connection."""
        return self._closed

    def stream_ids(self, count: int) -> Iterable[int]:
        """Return the next ``count`` streams of this connection."""
        first = self._next
        self._next += 2 * count
        return range(first, self._next, 2)

    async def send(self, data: bytes) -> None:
        """Send ``data``; does nothing once the connection is closed."""
        if self._closed:
            return
        self._pace.spend(len(data))
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError:
            self._closed = True

    async def pump(self) -> None:
        """Count the frames of the server, and acknowledge its settings and pings."""
        try:
            while True:
                head = await self._reader.readexactly(frames.HEAD)
                length = int.from_bytes(head[:3])
                kind, flags, _ = struct.unpack(">BBI", head[3:])
                payload = await self._reader.readexactly(length)
                await self._note(kind, flags, payload)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._closed = True
            self._pace.outcomes["connection closed"] += 1

    async def _note(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == frames.SETTINGS and not flags & frames.ACK:
            await self.send(frames.frame(frames.SETTINGS, frames.ACK, 0))
        elif kind == frames.PING and not flags & frames.ACK:
            await self.send(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.RST_STREAM:
            self._pace.outcomes["reset"] += 1
        elif kind == frames.HEADERS and flags & frames.END_STREAM:
            self._pace.outcomes["answer"] += 1
        elif kind == frames.GOAWAY:
            self._pace.outcomes["GOAWAY"] += 1
