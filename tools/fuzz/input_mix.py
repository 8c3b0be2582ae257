"""Mix of inputs in a campaign: input number N of a seed is always the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from tools.fuzz.fuzz_input import METHODS, STORAGE, Input, Metadata, Method, harmless
from tools.fuzz.http2_frames import Frames, raw_call
from tools.fuzz.request_generator import Generator
from tools.fuzz.values import Values

PATIENT = 30.0
"""Seconds after which a call that must be answered counts as hung."""
OVERSIZED = 33 * 1024 * 1024
"""Bytes of a message that is larger than any default limit."""

_MIX = {
    "call": 560,
    "bytes": 140,
    "impatient": 60,
    "streams": 60,
    "metadata": 40,
    "odd headers": 30,
    "odd framing": 30,
    "frames": 60,
    "wrong arity": 10,
    "unknown": 9,
    "oversized": 1,
}
"""Weights of the kinds, per thousand."""

_WINDOW = 65_535
"""Bytes that HTTP/2 lets a client send before the server's first frame."""
_CALLED_MORE = {"Save": 5, "Search": 4, "BulkSave": 3, "Get": 2, "List": 2, "BatchGet": 2}
_METHODS = list(METHODS.values())
_WEIGHTS = [_CALLED_MORE.get(method.label, 1) for method in _METHODS]
_STREAMS = [method for method in _METHODS if method.gives_stream]


def made(seed: str, number: int) -> Input:
    """Return input ``number`` of ``seed``."""
    return _Maker(f"{seed}-{number}").input()


class _Maker:
    def __init__(self, name: str) -> None:
        self._name = name
        self._rng = Random(name)
        self._values = Values(self._rng)
        self._generator = Generator(self._rng)
        self._frames = Frames(self._rng)

    def input(self) -> Input:
        """Return the input."""
        kind = self._rng.choices(list(_MIX), weights=list(_MIX.values()))[0]
        makers: dict[str, Callable[[], Input]] = {
            "call": self._call,
            "bytes": self._bytes,
            "impatient": self._cancelling,
            "streams": self._stream,
            "metadata": self._metadata,
            "odd headers": lambda: self._frames.odd_headers(self._name),
            "odd framing": lambda: self._frames.odd_message(self._name),
            "frames": lambda: self._frames.broken(self._name),
            "wrong arity": self._wrong_arity,
            "unknown": self._unknown,
            "oversized": self._oversized,
        }
        one = makers[kind]()
        payloads = tuple(harmless(one.method, payload) for payload in one.payloads)
        return _as_raw_call(replace(one, payloads=payloads))

    def _method(self) -> Method:
        return self._rng.choices(_METHODS, _WEIGHTS)[0]

    def _call(self, kind: str = "call") -> Input:
        method = self._method()
        count = self._rng.choice((1, 1, 2, 5)) if method.takes_stream else 1
        payloads = tuple(self._generator.request(method.request) for _ in range(count))
        deadline = self._rng.uniform(0.05, 0.3) if method.endless else PATIENT
        gzip = self._values.chance(0.02)
        return Input(self._name, kind, method.path, payloads, deadline=deadline, gzip=gzip)

    def _bytes(self) -> Input:
        if self._values.chance(0.3):
            size = self._rng.choice((0, 1, 5, 60, 2000))
            return replace(self._call("bytes:random"), payloads=(self._rng.randbytes(size),))
        call = self._call("bytes:mutated")
        return replace(call, payloads=tuple(map(self._generator.mutated, call.payloads)))

    def _cancelling(self) -> Input:
        call = self._call("impatient")
        after = self._rng.uniform(0.001, 0.05)
        if self._values.chance(0.3):
            return replace(call, behaviour="cancel", after=after)
        return replace(call, deadline=after)

    def _wrong_arity(self) -> Input:
        """Send no message, or several, where one is expected."""
        call = self._call("arity")
        deadline = min(call.deadline, 2.0)
        payloads = call.payloads * self._rng.choice((0, 2, 3))
        return replace(call, payloads=payloads, as_stream=True, deadline=deadline)

    def _unknown(self) -> Input:
        paths = (
            "/",
            "/x",
            f"{STORAGE}Nothing",
            f"{STORAGE}save",
            "/grpc.health.v1.Health/X",
            "/a/b/c",
        )
        path = self._rng.choice((*paths, f"/{'a' * 4000}/b"))
        payload = self._rng.randbytes(self._rng.randrange(50))
        return Input(self._name, "unknown", path, (payload,), as_stream=self._values.chance(0.5))

    def _oversized(self) -> Input:
        method = self._rng.choice(("Save", "BulkSave", "Search"))
        payload = b"\x0a" + b"\x00" * OVERSIZED
        return Input(self._name, "oversized", STORAGE + method, (payload,))

    def _metadata(self) -> Input:
        return replace(self._call("metadata:many"), metadata=self._some_metadata())

    def _some_metadata(self) -> Metadata:
        choose, rng = self._rng.choice, self._rng
        shapes: tuple[Callable[[], Metadata], ...] = (
            lambda: tuple((f"x-{n}", "v" * 20) for n in range(choose((10, 100, 500)))),
            lambda: (("x-long", "v" * choose((4000, 8192, 16_384, 60_000))),),
            lambda: (("x-bin", rng.randbytes(choose((0, 1, 100, 5000)))),),
            lambda: tuple(("x-same-bin", rng.randbytes(9)) for _ in range(choose((2, 100)))),
            lambda: (("authorization", choose(("Bearer", "Bearer x", "Basic eA==", " "))),),
            lambda: (("baggage", "a=b" * 99),),
            lambda: (("traceparent", "00-" + "f" * 32 + "-" + "0" * 16 + "-ff"),),
            lambda: (("grpc-trace-bin", rng.randbytes(29)), ("grpc-tags-bin", b"\xff" * 50)),
            lambda: (("x-a", ""), ("x-a", " "), ("x-a", "~" * 100)),
        )  # fmt: skip
        return choose(shapes)()

    def _stream(self) -> Input:
        if self._values.chance(0.02):
            return self._crowd()
        method = self._rng.choice(_STREAMS)
        bulky = self._values.chance(0.5)
        if bulky:
            method = METHODS[f"{STORAGE}BulkSave"]
        count = self._rng.choice((0, 1, 3, 20)) if method.takes_stream else 1
        some = [self._generator.request(method.request) for _ in range(min(count, 3))]
        payloads = tuple(some[number % 3 % len(some)] for number in range(count))
        behaviours = ["cancel", "abandon"]
        if method.takes_stream:
            behaviours += ["half-close", "never-read", "never-read"]
        behaviour = self._rng.choice(behaviours)
        return Input(
            self._name,
            f"streams:{behaviour}",
            method.path,
            payloads,
            behaviour=behaviour,
            after=self._rng.choice((0.0, 0.001, 0.01, self._rng.uniform(0, 0.3))),
            deadline=PATIENT if self._values.chance(0.7) else self._rng.uniform(0.001, 0.1),
        )

    def _crowd(self) -> Input:
        """Open very many streams and abandon them."""
        method = self._rng.choice(_STREAMS)
        payload = b"" if self._values.chance(0.5) else self._generator.request(method.request)
        return Input(
            self._name,
            "streams:crowd",
            method.path,
            (payload,),
            behaviour=self._rng.choice(("abandon", "cancel")),
            after=self._rng.uniform(0.0, 0.2),
            crowd=self._rng.choice((20, 100, 200)),
        )


def _as_raw_call(one: Input) -> Input:
    """Convert a stream to raw bytes if it fits into the initial window."""
    proper = not (one.behaviour or one.metadata or one.gzip)
    small = sum(map(len, one.payloads)) < _WINDOW - 5 * len(one.payloads)
    if not (one.streams and proper and small):
        return one
    # gRPC's server ends a call that lacks its required message without a status.
    takes_stream = one.method in METHODS and METHODS[one.method].takes_stream
    if not one.payloads and not takes_stream:
        return replace(raw_call(replace(one, deadline=0.1)), must_answer=False)
    return raw_call(one)
