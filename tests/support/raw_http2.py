"""Bytes of HTTP/2, for what gRPC's client does not send (RFC 9113, RFC 7541)."""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""First bytes of a connection; a SETTINGS frame follows."""

DATA, HEADERS, RST_STREAM, SETTINGS = 0, 1, 3, 4
END_STREAM, END_HEADERS = 1, 4
CANCEL = struct.pack(">I", 8)
"""Payload of RST_STREAM: the error code CANCEL."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def grpc_headers(method: str) -> bytes:
    """Return the header block of a call of ``method``, the path of an RPC."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    # Literal fields without indexing (RFC 7541, section 6.2.2), each shorter than 127 bytes.
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())


def grpc_message(data: bytes) -> bytes:
    """Return the payload of DATA for one uncompressed message."""
    return struct.pack(">BI", 0, len(data)) + data


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()
