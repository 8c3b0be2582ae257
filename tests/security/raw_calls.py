"""gRPC calls as raw HTTP/2, with headers that gRPC's client refuses to send."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from hpack import Decoder, Encoder
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, RstStreamFrame
from hyperframe.frame import SettingsFrame as Settings

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD = 9
_WITHIN = 60
"""Seconds to wait for an answer, on a machine that is busy."""

Headers = Sequence[tuple[bytes, bytes]]


class Call(NamedTuple):
    """One call."""

    path: bytes
    headers: Headers
    request: bytes = b""


class RawConnection:
    """A connection that makes one call after the other."""

    def __init__(self, raw: socket.socket) -> None:
        """Begin HTTP/2 on ``raw``."""
        self._raw = raw
        self._received = b""
        self._encoder, self._decoder = Encoder(), Decoder()
        self._stream = -1
        raw.sendall(PREFACE + Settings(0).serialize())

    def call(self, call: Call) -> str:
        """Return the gRPC status of ``call``, or ``reset`` if its stream was."""
        self._stream += 2
        usual = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", call.path),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        ]
        names = {name for name, _ in call.headers}
        headers = [pair for pair in usual if pair[0] not in names] + list(call.headers)
        block = self._encoder.encode(headers, huffman=False)
        packet = b"\0" + len(call.request).to_bytes(4, "big") + call.request
        self._raw.sendall(
            HeadersFrame(self._stream, block, flags=["END_HEADERS"]).serialize()
            + DataFrame(self._stream, packet, flags=["END_STREAM"]).serialize()
        )
        return self._status()

    def _status(self) -> str:
        while True:
            frame = self._frame()
            if isinstance(frame, HeadersFrame):
                found = dict(self._decoder.decode(frame.data, raw=True))
                if b"grpc-status" in found and frame.stream_id == self._stream:
                    return found[b"grpc-status"].decode()
            elif isinstance(frame, RstStreamFrame) and frame.stream_id == self._stream:
                return "reset"
            elif isinstance(frame, GoAwayFrame):
                raise ConnectionError(f"the server ended the connection: {frame.additional_data!r}")
            elif isinstance(frame, Settings) and "ACK" not in frame.flags:
                self._raw.sendall(Settings(0, flags=["ACK"]).serialize())

    def _frame(self) -> Frame:
        frame, length = Frame.parse_frame_header(memoryview(self._exactly(_HEAD)))
        frame.parse_body(memoryview(self._exactly(length)))
        return frame

    def _exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            more = self._raw.recv(65_536)
            if not more:
                raise ConnectionError("the server closed the connection")
            self._received += more
        taken, self._received = self._received[:size], self._received[size:]
        return taken


@contextmanager
def connected(address: str, source: str = "127.0.0.1") -> Iterator[RawConnection]:
    """Connect to ``address`` from the address ``source``; Linux has all of 127.0.0.0/8."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), _WITHIN, (source, 0)) as raw:
        yield RawConnection(raw)
