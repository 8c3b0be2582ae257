"""HTTP/2 connections from a chosen source address, for callers and attackers."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import Message
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

FIRST, SECOND = "127.0.0.1", "127.0.0.2"
"""Two sources; every address of 127.0.0.0/8 belongs to the local machine."""
WITHIN = 60.0
"""Seconds in which a peer must react, also on a busy machine."""
STORAGE = "/sagastore.v1.StorageService"


class Outcome(NamedTuple):
    """The end of a call."""

    status: str
    """The code of gRPC; ``reset`` or ``closed`` without one."""
    message: str = ""


class Connection:
    """An HTTP/2 connection over TLS."""

    def __init__(
        self,
        to: int | socket.socket,
        ca: Path,
        source: str = FIRST,
        token: str = "",
        call_id: str = "",
    ) -> None:
        """Connect to a port from the address ``source``, or use a connection.

        Calls carry ``token``, and ``call_id`` as their id.
        """
        raw = tcp(to, source) if isinstance(to, int) else to
        context = ssl.create_default_context(cafile=str(ca))
        context.set_alpn_protocols(["h2"])
        self.socket = context.wrap_socket(raw, server_hostname="localhost")
        self.http2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._own_headers = [("authorization", f"Bearer {token}")] if token else []
        self._own_headers += [("x-request-id", call_id)] if call_id else []
        self.http2.initiate_connection()
        self.flush()

    def close(self) -> None:
        self.socket.close()

    def flush(self) -> None:
        """Send what is due."""
        self.socket.sendall(self.http2.data_to_send())

    def headers(self, path: str) -> list[tuple[str, str]]:
        """Return the headers of a call."""
        return [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *self._own_headers,
        ]

    def begin(self, path: str, request: Message) -> int:
        """Queue a call and return the number of its stream; ``flush`` sends it."""
        stream = self.http2.get_next_available_stream_id()
        payload = request.SerializeToString()
        self.http2.send_headers(stream, self.headers(path))
        self.http2.send_data(stream, struct.pack(">BI", 0, len(payload)) + payload, end_stream=True)
        return stream

    def events(self) -> Iterator[Event]:
        """Yield events until the peer closes the connection."""
        while received := self.socket.recv(65536):
            for event in self.http2.receive_data(received):
                if isinstance(event, DataReceived) and event.flow_controlled_length:
                    self.http2.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
                yield event
            self.flush()

    def outcome(self, stream: int) -> Outcome:
        """Wait for the end of a call."""
        headers: dict[str, str] = {}
        for event in self.events():
            if isinstance(event, ConnectionTerminated):
                break
            if getattr(event, "stream_id", None) != stream:
                continue
            if isinstance(event, ResponseReceived | TrailersReceived):
                headers.update(event.headers)  # type: ignore[arg-type]
            if isinstance(event, StreamReset):
                return Outcome("reset")
            if isinstance(event, StreamEnded):
                return Outcome(headers["grpc-status"], headers.get("grpc-message", ""))
        return Outcome("closed")

    def call(self, path: str, request: Message) -> Outcome:
        """Call a method and wait for the end of the call."""
        stream = self.begin(path, request)
        self.flush()
        return self.outcome(stream)


def tcp(port: int, source: str = FIRST) -> socket.socket:
    """Connect from the address ``source``."""
    return socket.create_connection(("127.0.0.1", port), WITHIN, source_address=(source, 0))


def is_open(connection: socket.socket) -> bool:
    """Report whether the peer has not closed a connection yet; drops what was received."""
    connection.setblocking(False)
    try:
        return bool(connection.recv(65536))
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False
