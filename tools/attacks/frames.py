"""HTTP/2 frames and gRPC messages as bytes, built without state."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterable
from functools import cache

from hpack import Encoder, NeverIndexedHeaderTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0, 1, 3, 4, 6, 7, 8, 9,
)  # fmt: skip
END_STREAM, ACK, END_HEADERS = 1, 1, 4
CANCEL = struct.pack(">I", 8)
"""Payload of RST_STREAM: the error code CANCEL."""
HEAD = 9
"""Bytes before the payload of a frame."""

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
STORAGE = "/sagastore.v1.StorageService/"

Pairs = Iterable[tuple[str, str | bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    head = struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream)
    return head + payload


def header_block(
    path: str, token: str | None = None, more: Pairs = (), *, scheme: str = "https"
) -> bytes:
    """Return a compressed header list that changes no compression state, so it can be repeated."""
    pairs = [
        (name.encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in call_headers(path, token, more, scheme=scheme)
    ]
    return Encoder().encode(NeverIndexedHeaderTuple(*pair) for pair in pairs)


def call_headers(
    path: str, token: str | None = None, more: Pairs = (), *, scheme: str = "https"
) -> list[tuple[str, str | bytes]]:
    """Return the headers of a gRPC call."""
    usual: list[tuple[str, str | bytes]] = [
        (":method", "POST"),
        (":scheme", scheme),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    if token is not None:
        usual.append(("authorization", f"Bearer {token}"))
    return [*usual, *more]


def message(payload: bytes, *, compressed: bool = False) -> bytes:
    """Return a gRPC message: flag, length and payload."""
    return struct.pack(">BI", compressed, len(payload)) + payload


def field(number: int, value: bytes) -> bytes:
    """Return a field of bytes, a string or a message in protobuf's encoding."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """Return a number in protobuf's encoding."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


@cache
def bomb(pattern: bytes, megabytes: int) -> bytes:
    """Return a compressed gRPC message of ``pattern``, repeated up to ``megabytes`` MiB."""
    inflated = pattern * (megabytes * 1024 * 1024 // len(pattern))
    return message(gzip.compress(inflated, 9), compressed=True)


INVALID_TEXT = b"\x0a\x01\xff"
"""Field 1 with a string that is not UTF-8."""
UNKNOWN_FIELD = b"\xfa\x01\x7e" + b"\0" * 126
"""Field 31 with 126 bytes, which no request has."""
