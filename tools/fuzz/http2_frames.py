"""Malformed and hostile HTTP/2 traffic, as bytes for a socket."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from random import Random

import grpc
from hpack import Encoder, HeaderTuple
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tools.fuzz.fuzz_input import METHODS, STORAGE, Input, harmless
from tools.fuzz.request_generator import Generator
from tools.fuzz.values import Values

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Headers = list[tuple[bytes, bytes]]
Steps = tuple[tuple[str, bytes | int], ...]

_LISTEN = 2000
"""Milliseconds to wait for an answer; shorter where no answer is due."""
_BRIEFLY = 60
_TIMEOUTS = (
    b"", b"1", b"1S1", b"0n", b"1n", b"5m", b"-1S", b"99999999H", b"999999999H", b"1x", b"S",
    b" 1S", b"1.5S", b"18446744073709551616S", b"\xc3\xa9", b"00000001S", b"+1S", b"1u",
)  # fmt: skip
NO_TEXT = b"/\xff\xfe"
DIES_OF_PATHS = tuple(map(int, grpc.__version__.split(".")[:2])) >= (1, 84)
"""Since version 1.84.0, the server of ``grpc.aio`` shuts down on a path that is not UTF-8."""
_PATHS = (
    b"", b"/", b"//", b"*", b"/sagastore.v1.StorageService", b"/sagastore.v1.StorageService/",
    b"/sagastore.v1.StorageService/save", b"/sagastore.v1.StorageService/Save/",
    b"/../../etc/passwd", b"/sagastore.v1.StorageService/Save?x=1", b"Save", b"/%00",
    b"/" + b"a" * 5000,
    b"/sagastore.v1.Nothing/Save", b"/ / ", *([] if DIES_OF_PATHS else [NO_TEXT]),
)  # fmt: skip
_TYPES = (
    b"", b"application/json", b"text/html", b"application/grpc+json", b"application/grpcx", b"\xff",
    b"application/grpc-web", b"application/grpc; charset=utf-8", b"APPLICATION/GRPC", b"a" * 4000,
)  # fmt: skip
_AUTHORITIES = (
    b"", b"localhost", b"x" * 3000, b"user:password@host", b"[::1", b"\xff", b"a b",
    b"host:99999999", b"../..", b"%00",
)  # fmt: skip
_BAD_BASE64 = (b"!!!!", b"=", b"====", b"AA=A", b"\xff\xff", b"A", b"AAAAA", b"AA==AA", b"A" * 8001)


def packet(payload: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """Return a gRPC message: five bytes of flag and length, then the payload."""
    return struct.pack(">BI", flag, len(payload) if length is None else length) + payload


def call_headers(path: bytes, *more: tuple[bytes, bytes]) -> Headers:
    """Return the headers of a call; ``more`` replaces headers of the same name."""
    usual = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": path,
        b":authority": b"localhost",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }
    names = {name for name, _ in more}
    return [pair for pair in usual.items() if pair[0] not in names] + [
        pair for pair in more if pair[0] not in {b"-", b""}
    ]


def path_call(path: bytes) -> Input:
    """Return a call to ``path``."""
    sent = PREFACE + SettingsFrame(0).serialize() + _headers_of(1, _block(call_headers(path)))
    steps: Steps = (("send", sent + _data_frames(packet(b""))), ("listen", _LISTEN))
    return Input("path", "metadata:raw", steps=steps)


def raw_call(one: Input) -> Input:
    """Return the same call as raw bytes.

    gRPC's Python client does not report the status of a stream that ends while it sends.
    """
    roomy = {SettingsFrame.INITIAL_WINDOW_SIZE: 2**31 - 1}
    sent = PREFACE + SettingsFrame(0, settings=roomy).serialize()
    sent += WindowUpdateFrame(0, window_increment=2**30).serialize()
    timeout = f"{int(one.deadline * 1000)}m".encode()
    sent += _headers_of(1, _block(call_headers(one.method.encode(), (b"grpc-timeout", timeout))))
    sent += _data_frames(b"".join(map(packet, one.payloads)))
    listen = int(one.deadline * 1000) + 5000
    steps: Steps = (("send", sent), ("listen", listen))
    return replace(one, payloads=(), steps=steps, must_answer=True)


class Frames:
    """Generates inputs of raw bytes."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._values = Values(rng)
        self._generator = Generator(rng)

    def broken(self, name: str) -> Input:
        """Return a connection that violates HTTP/2 or omits a required step."""
        makers: tuple[Callable[[], Steps], ...] = (
            self._random_bytes, self._garbage_after_preface, self._odd_frames, self._no_end,
            self._continuations, self._settings, self._pings, self._rapid_reset, self._lengths,
            self._half_closed, self._slow, self._left, self._window, self._cut_off, self._hpack,
        )  # fmt: skip
        # Broken header blocks may contain such a path.
        maker = self._rng.choice(makers[:-2] if DIES_OF_PATHS else makers)
        return Input(name, f"frames:{maker.__name__.strip('_')}", steps=maker())

    def odd_headers(self, name: str) -> Input:
        """Return a valid HTTP/2 call whose headers violate gRPC."""
        path = self._rng.choice(list(METHODS)).encode()
        headers = self._rng.choice((self._replaced_header, self._added_headers))(path)
        method = METHODS.get(path.decode())
        assert method is not None
        data = packet(harmless(method.path, self._generator.request(method.request)))
        steps = self._call(headers, data, _BRIEFLY if method.endless else _LISTEN)
        return Input(name, "metadata:raw", steps=steps)

    def odd_message(self, name: str) -> Input:
        """Return a call whose message framing or compression does not match its flags."""
        method = self._rng.choice([one for one in METHODS.values() if not one.endless])
        payload = harmless(method.path, self._generator.request(method.request))
        encoding = self._rng.choice((b"identity", b"gzip", b"deflate", b"br", b"", b"\xff"))
        data = self._rng.choice((
            packet(payload, flag=1),
            packet(payload, flag=self._rng.choice((2, 128, 255))),
            packet(payload, length=len(payload) + 10),
            packet(payload, length=0xFFFFFFFF),
            packet(payload, length=0x7FFFFFFF),
            packet(payload, length=max(len(payload) - 1, 0)),
            packet(payload)[: self._rng.randrange(5)],
            packet(payload) * 2,
            b"",
            packet(b""),
            self._rng.randbytes(30),
        ))  # fmt: skip
        headers = call_headers(method.path.encode(), (b"grpc-encoding", encoding))
        return Input(name, "message:framing", steps=self._call(headers, data, _LISTEN))

    # ------------------------------------------------------------------ headers

    def _replaced_header(self, path: bytes) -> Headers:
        choose = self._rng.choice
        odd: tuple[tuple[bytes, bytes], ...] = (
            (b"grpc-timeout", choose(_TIMEOUTS)),
            (b"grpc-timeout", choose(_TIMEOUTS)),
            (b":path", choose(_PATHS)),
            (b":path", choose(_PATHS)),
            (b"content-type", choose(_TYPES)),
            (b":authority", choose(_AUTHORITIES)),
            (b":method", choose((b"GET", b"PUT", b"", b"post", b"CONNECT", b"\xff"))),
            (b":scheme", choose((b"https", b"ftp", b""))),
            (b"te", choose((b"", b"gzip", b"trailers, deflate"))),
            (b"grpc-encoding", choose((b"gzip", b"snappy", b"\x00", b"identity,gzip"))),
            (b"grpc-accept-encoding", choose((b"nothing", b",,,,", b"x" * 3000))),
        )
        return call_headers(path, choose(odd))

    def _added_headers(self, path: bytes) -> Headers:
        choose = self._rng.choice
        odd: tuple[Callable[[], Headers], ...] = (
            lambda: [(b"x-bin", choose(_BAD_BASE64))],
            lambda: [(b"grpc-trace-bin", choose(_BAD_BASE64))],
            lambda: [(b"authorization", choose((b"Bearer ", b"Basic !", b"\xff", b"x" * 7000)))],
            lambda: [(f"x-{n}".encode(), b"v") for n in range(choose((50, 300, 1000)))],
            lambda: [(b"x-long", b"v" * choose((8000, 8192, 16_000, 60_000)))],
            lambda: [(b"X-Upper", b"v")],
            lambda: [(b"", b"v")],
            lambda: [(b"x y", b"v"), (b"x:", b"v")],
            lambda: [(b"x-bytes", bytes([choose((0, 10, 13, 127, 255))]))],
            lambda: [(b":status", b"200")],
            lambda: [(b":path", path)],
            lambda: [(b"connection", b"keep-alive"), (b"transfer-encoding", b"chunked")],
            lambda: [(b"grpc-status", b"13"), (b"grpc-message", b"hello")],
            lambda: [(b"traceparent", choose((b"00-xyz", b"00-" + b"0" * 32 + b"-1-1", b"\xff")))],
            lambda: [(b"host", b"a"), (b"host", b"b")],
            lambda: [(b"content-length", choose((b"-1", b"5", b"99999999999999999999")))],
            lambda: [(b"grpc-previous-rpc-attempts", b"999"), (b"user-agent", b"\xf0" * 200)],
        )
        return call_headers(path) + choose(odd)()

    def _call(self, headers: Headers, data: bytes, listen: int) -> Steps:
        block = _block(headers)
        sent = PREFACE + SettingsFrame(0).serialize() + _headers_of(1, block)
        return (("send", sent + _data_frames(data)), ("listen", listen))

    # ------------------------------------------------------------------ connections

    def _hello(self) -> bytes:
        return PREFACE + SettingsFrame(0).serialize()

    def _valid_call(self, stream: int, *, end: bool = True) -> bytes:
        path = f"{STORAGE}Get".encode()
        sent = _headers_of(stream, _block(call_headers(path)))
        flags = ["END_STREAM"] if end else []
        return sent + DataFrame(stream, packet(b"\x0a\x01x"), flags=flags).serialize()

    def _random_bytes(self) -> Steps:
        texts = (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"\r\n" * 50)
        size = self._rng.choice((1, 9, 24, 200, 5000))
        data = self._rng.choice((*texts, self._rng.randbytes(size)))
        return (("send", data), ("listen", _BRIEFLY))

    def _garbage_after_preface(self) -> Steps:
        garbage = self._rng.randbytes(self._rng.choice((1, 9, 100, 3000)))
        return (("send", self._hello() + garbage), ("listen", _BRIEFLY))

    def _odd_frames(self) -> Steps:
        sent = self._hello()
        for _ in range(self._rng.randint(1, 20)):
            if self._values.chance(0.3):
                sent += self._valid_call(self._rng.choice((1, 3, 5, 7)))
            sent += self._odd_frame()
        return (("send", sent), ("listen", _BRIEFLY))

    def _odd_frame(self) -> bytes:
        """Return a frame of random type, flags, stream and body."""
        body = self._rng.randbytes(self._rng.choice((0, 1, 4, 5, 6, 8, 30)))
        return _frame(
            self._rng.randrange(256) if self._values.chance(0.1) else self._rng.randrange(11),
            self._rng.randrange(256),
            self._rng.choice((0, 1, 2, 3, 2**31 - 1, 2**32 - 1)),
            body,
        )

    def _lengths(self) -> Steps:
        """Return frames whose length is wrong or not allowed."""
        kind = self._rng.randrange(10)
        length = self._rng.choice((0, 1, 16_385, 2**24 - 1))
        head = length.to_bytes(3, "big") + bytes([kind, 0]) + (1).to_bytes(4, "big")
        body = self._rng.randbytes(min(length, 20_000))
        return (("send", self._hello() + head + body), ("listen", _BRIEFLY))

    def _no_end(self) -> Steps:
        """Return HEADERS without END_HEADERS, followed by another frame than CONTINUATION."""
        block = _block(call_headers(f"{STORAGE}Save".encode()))
        sent = self._hello() + HeadersFrame(1, block[:10]).serialize()
        other = self._rng.choice((b"", PingFrame(0, bytes(8)).serialize(), self._valid_call(3)))
        return (("send", sent + other), ("listen", _BRIEFLY))

    def _continuations(self) -> Steps:
        sent = self._hello() + HeadersFrame(1, b"").serialize()
        block = _block([(b"x-a", b"b" * self._rng.choice((0, 20)))])
        part = self._rng.choice((b"", block, b"\x00" * 100))
        sent += ContinuationFrame(1, part).serialize() * self._rng.choice((10, 1000, 5000))
        return (("send", sent), ("listen", _BRIEFLY))

    def _settings(self) -> Steps:
        odd = self._rng.choice((
            {SettingsFrame.INITIAL_WINDOW_SIZE: self._rng.choice((0, 1, 2**31 - 1))},
            {SettingsFrame.MAX_FRAME_SIZE: self._rng.choice((0, 16_384, 2**24 - 1))},
            {SettingsFrame.HEADER_TABLE_SIZE: self._rng.choice((0, 1, 2**32 - 1))},
            {SettingsFrame.MAX_CONCURRENT_STREAMS: 0},
            {SettingsFrame.MAX_HEADER_LIST_SIZE: 1},
            {0x7FFF: 1},
        ))  # fmt: skip
        many = self._rng.choice((1, 100, 3000))
        sent = self._hello() + SettingsFrame(0, settings=odd).serialize() * many
        ack = SettingsFrame(0, flags=["ACK"]).serialize() * self._rng.choice((0, 1, 1000))
        return (("send", sent + ack + self._valid_call(1)), ("listen", _BRIEFLY))

    def _pings(self) -> Steps:
        count = self._rng.choice((3, 100, 10_000))
        return (
            ("send", self._hello() + PingFrame(0, b"12345678").serialize() * count),
            ("listen", _BRIEFLY),
        )

    def _rapid_reset(self) -> Steps:
        """Open streams and reset them immediately, repeatedly (CVE-2023-44487)."""
        sent = [self._hello()]
        path = self._rng.choice(list(METHODS)).encode()
        block = _block(call_headers(path))
        for number in range(self._rng.choice((10, 100, 500))):
            stream = 2 * number + 1
            sent += [_headers_of(stream, block), RstStreamFrame(stream, 8).serialize()]
        return (("send", b"".join(sent)), ("listen", _BRIEFLY))

    def _half_closed(self) -> Steps:
        sent = self._hello() + self._valid_call(1, end=self._values.chance(0.5))
        return (("send", sent), ("half-close", 0), ("listen", _BRIEFLY))

    def _slow(self) -> Steps:
        sent = self._hello() + self._valid_call(1)
        return (("slowly", sent[: self._rng.choice((10, 40, 90))]), ("listen", _BRIEFLY))

    def _left(self) -> Steps:
        """Abandon a call or a connection."""
        sent = self._hello() + self._valid_call(1, end=False)
        return (("send", sent[: self._rng.randrange(len(sent))]), ("hold", _BRIEFLY))

    def _window(self) -> Steps:
        """Request much data without a window to receive it, or send more than the window allows."""
        zero = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}).serialize()
        method = self._rng.choice([m for m in METHODS.values() if m.gives_stream])
        call = _headers_of(1, _block(call_headers(method.path.encode())))
        call += DataFrame(1, packet(b""), flags=["END_STREAM"]).serialize()
        flood = _headers_of(1, _block(call_headers(f"{STORAGE}BulkSave".encode())))
        flood += _data(1, packet(bytes(16_000))) * 60
        update = WindowUpdateFrame(1, window_increment=2**31 - 1).serialize() * 3
        sent = self._rng.choice(
            (PREFACE + zero + call, self._hello() + flood, self._hello() + update)
        )
        return (("send", sent), ("hold", _BRIEFLY))

    def _cut_off(self) -> Steps:
        """Return valid frames with some bytes of one frame changed."""
        frames: list[bytes] = [
            GoAwayFrame(
                0, last_stream_id=2**31 - 1, error_code=self._rng.randrange(20)
            ).serialize(),
            PriorityFrame(1, depends_on=1, stream_weight=0).serialize(),
            PushPromiseFrame(1, promised_stream_id=2, data=b"").serialize(),
            RstStreamFrame(99, 1).serialize(),
            _frame(0, 0, 0, b"x"),
        ]
        sent = bytearray(self._valid_call(1) + self._rng.choice(frames))
        sent[self._rng.randrange(len(sent))] ^= 1 << self._rng.randrange(8)
        return (("send", self._hello() + bytes(sent) + self._valid_call(5)), ("listen", _BRIEFLY))

    def _hpack(self) -> Steps:
        """Return header blocks that do not decode, or decode to a very large size."""
        block = self._rng.choice((
            self._rng.randbytes(50),
            b"\xff" * 30,
            b"\x7f\xff\xff\xff\xff\xff\xff",
            b"\x3f\xe1\xff\xff\xff\x0f",
            # One table entry of 4,000 bytes that is referenced repeatedly.
            b"\x40\x01x\x7f\xa1\x1e" + b"v" * 4000 + b"\xbe" * 10_000,
        ))  # fmt: skip
        return (("send", self._hello() + _headers_of(1, block)), ("listen", _BRIEFLY))


def _block(headers: Headers) -> bytes:
    return Encoder().encode([HeaderTuple(*pair) for pair in headers], huffman=False)


def _headers_of(stream: int, block: bytes) -> bytes:
    parts = [block[at : at + 16_384] for at in range(0, len(block), 16_384)] or [b""]
    frames: list[Frame] = [HeadersFrame(stream, parts[0])]
    frames += [ContinuationFrame(stream, part) for part in parts[1:]]
    frames[-1].flags.add("END_HEADERS")
    return b"".join(frame.serialize() for frame in frames)


def _data_frames(data: bytes) -> bytes:
    """Return ``data`` on stream 1, in frames of the default size, with END_STREAM."""
    parts = [data[at : at + 16_384] for at in range(0, len(data), 16_384)]
    end = DataFrame(1, b"", flags=["END_STREAM"]).serialize()
    return b"".join(_data(1, part) for part in parts) + end


def _data(stream: int, data: bytes) -> bytes:
    return DataFrame(stream, data).serialize()


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body
