"""The worst request of each kind holds the event loop of the real server only briefly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from sagastore.v1 import file_pb2, session_pb2, storage_pb2
from tests.support.messages import message
from tests.support.probed_server import ProbedServer
from tests.support.processor import slowness

MIB = 1024 * 1024
HOLD = 0.1
"""Seconds of processor time that a request may hold the loop for."""
MARGIN = 2.5
"""For a busy machine. Without the limits, the worst requests hold it for 0.5 to 60 s."""

WIDE = "\U0001f600"
"""A character of four bytes."""
TAG = "\u4e2d"

STORAGE, SESSIONS, FILES = (
    f"sagastore.v1.{name}Service" for name in ("Storage", "Session", "File")
)
HEALTH = "grpc.health.v1.Health"


def deep(levels: int) -> str:
    return '{"k":' + "[" * levels + "]" * levels + "}"


def wide(entries: int) -> str:
    return "{" + ",".join(f'"{n:x}":{n}' for n in range(entries)) + "}"


def save(**fields: Any) -> bytes:
    return storage_pb2.SaveRequest(message=message(**fields)).SerializeToString()


def append(count: int, **fields: Any) -> bytes:
    messages = [message(**fields, id=f"m-{n}") for n in range(count)]
    return session_pb2.AppendRequest(session_id="s", messages=messages).SerializeToString()


def bulk(count: int, **fields: Any) -> bytes:
    messages = [message(**fields, id=f"m-{n}") for n in range(count)]
    return storage_pb2.BulkSaveRequest(messages=messages).SerializeToString()


def batch_save(count: int, **fields: Any) -> bytes:
    requests = [storage_pb2.SaveRequest(message=message(**fields)) for _ in range(count)]
    return storage_pb2.BatchSaveRequest(requests=requests).SerializeToString()


def search(**fields: Any) -> bytes:
    return storage_pb2.SearchRequest(**fields).SerializeToString()


UNARY: dict[str, tuple[str, Callable[[], bytes]]] = {
    "not UTF-8, health": (f"{HEALTH}/Check", lambda: b"\x0a\x01\xff" * 2_000),
    "not UTF-8, health, 31 MiB": (f"{HEALTH}/Check", lambda: b"\x0a\x01\xff" * (31 * MIB // 3)),
    "not UTF-8, Get": (f"{STORAGE}/Get", lambda: b"\x0a\x01\xff" * 20_000),
    "not UTF-8, Append": (f"{SESSIONS}/Append", lambda: b"\x12\x03\x0a\x01\xff" * (6 * MIB)),
    "empty messages": (f"{SESSIONS}/Append", lambda: b"\x12\x00" * (15 * MIB)),
    "one field, repeated": (f"{STORAGE}/Save", lambda: b"\x0a\x00" * (4 * MIB)),
    "empty tags": (f"{STORAGE}/Save", lambda: save() + b"\x0a\x00" + b"\x2a\x00" * (3 * MIB)),
    "unknown fields": (f"{STORAGE}/Save", lambda: b"\xf8\x07\x01" * (2 * MIB)),
    "paths": (f"{SESSIONS}/UpdateSession", lambda: b"\x12\x03\x0a\x01a" * (300_000)),
    "Save, content": (f"{STORAGE}/Save", lambda: save(content=WIDE * 1_000_000)),
    "Save, tags": (f"{STORAGE}/Save", lambda: save(tags=[TAG * 256] * 512)),
    "Save, metadata, deep": (f"{STORAGE}/Save", lambda: save(metadata_json=deep(199))),
    "Save, metadata, too deep": (f"{STORAGE}/Save", lambda: save(metadata_json=deep(500_000))),
    "Save, metadata, wide": (f"{STORAGE}/Save", lambda: save(metadata_json=wide(70_000))),
    "Append, 1000": (f"{SESSIONS}/Append", lambda: append(1000)),
    "Append, tags": (f"{SESSIONS}/Append", lambda: append(1000, tags=[TAG] * 512)),
    "Append, metadata": (f"{SESSIONS}/Append", lambda: append(25, metadata_json=wide(70_000))),
    "Append, content": (f"{SESSIONS}/Append", lambda: append(7, content=WIDE * 1_000_000)),
    "not UTF-8, BatchSave": (
        f"{STORAGE}/BatchSave",
        lambda: b"\x0a\x05\x0a\x03\x0a\x01\xff" * (4 * MIB),
    ),
    "not UTF-8, BatchSave, 1000": (
        f"{STORAGE}/BatchSave",
        lambda: b"\x0a\x05\x0a\x03\x0a\x01\xff" * 1000,
    ),
    "BatchSave, 1000": (f"{STORAGE}/BatchSave", lambda: batch_save(1000)),
    "BatchSave, invalid": (f"{STORAGE}/BatchSave", lambda: batch_save(1000, provider="")),
    "BatchSave, tags": (f"{STORAGE}/BatchSave", lambda: batch_save(1000, tags=[TAG] * 512)),
    "BatchSave, metadata": (
        f"{STORAGE}/BatchSave",
        lambda: batch_save(25, metadata_json=wide(70_000)),
    ),
    "BatchSave, content": (f"{STORAGE}/BatchSave", lambda: batch_save(7, content=WIDE * 1_000_000)),
    "BatchGet": (
        f"{STORAGE}/BatchGet",
        lambda: storage_pb2.BatchGetRequest(ids=[TAG * 128] * 1000).SerializeToString(),
    ),
    "BatchGet, large answer": (
        f"{STORAGE}/BatchGet",
        lambda: storage_pb2.BatchGetRequest(ids=["large"] * 15).SerializeToString(),
    ),
    "Search, quotes": (f"{STORAGE}/Search", lambda: search(query='"' * 100_000)),
    "Search, excluded": (f"{STORAGE}/Search", lambda: search(query="-a " * 33_333)),
    "Search, words": (f"{STORAGE}/Search", lambda: search(query="a " * 50_000)),
    "Search, different": (
        f"{STORAGE}/Search",
        lambda: search(query=" ".join(f"w{n}" for n in range(15_000))),
    ),
    "Search, short": (f"{STORAGE}/Search", lambda: search(query="-a " * 6_600)),
    "Search, metadata": (f"{STORAGE}/Search", lambda: search(metadata_json=wide(70_000))),
    "Search, tags": (f"{STORAGE}/Search", lambda: search(tags=[TAG * 256] * 512)),
    "Search, token": (f"{STORAGE}/Search", lambda: search(query="a", page_token="A" * 60_000)),
    "ListSessions": (
        f"{SESSIONS}/ListSessions",
        lambda: session_pb2.ListSessionsRequest(metadata_json=wide(70_000)).SerializeToString(),
    ),
    "UpdateSession": (
        f"{SESSIONS}/UpdateSession",
        lambda: session_pb2.UpdateSessionRequest(
            session=session_pb2.Session(session_id="s", metadata_json=wide(17_000))
        ).SerializeToString(),
    ),
    "SaveFile": (
        f"{FILES}/SaveFile",
        lambda: file_pb2.SaveFileRequest(
            file=file_pb2.File(
                filename="f",
                extracted_text=WIDE * 786_000,
                tags=[TAG * 256] * 512,
                metadata_json=wide(70_000),
            )
        ).SerializeToString(),
    ),
}
STREAMS: dict[str, Callable[[], bytes]] = {
    "not UTF-8": lambda: b"\x12\x03\x0a\x01\xff" * (6 * MIB),
    "not UTF-8, small": lambda: b"\x12\x03\x0a\x01\xff" * 13_000,
    "empty messages": lambda: b"\x12\x00" * (15 * MIB),
    "1000 messages": lambda: bulk(1000),
    "tags": lambda: bulk(1000, tags=[TAG] * 512),
    "metadata": lambda: bulk(25, metadata_json=wide(70_000)),
    "content": lambda: bulk(7, content=WIDE * 1_000_000),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProbedServer]:
    server = ProbedServer(tmp_path_factory.mktemp("held") / "saga.db")
    server.start()
    large = save(id="large", content=WIDE * 1_000_000)
    _sent(server, f"{STORAGE}/Save", large)
    yield server
    server.close()


@pytest.fixture(scope="module")
def limit() -> float:
    """Seconds that a request may hold the event loop of this machine."""
    return HOLD * MARGIN * slowness()


@pytest.mark.parametrize("name", UNARY)
def test_worst_requests_hold_the_event_loop_briefly(
    server: ProbedServer, limit: float, name: str
) -> None:
    method, request = UNARY[name]
    raw = request()
    server.longest_hold()
    _sent(server, method, raw)
    held = server.longest_hold()
    assert held < limit, f"{len(raw):,} bytes held the loop for {held:.3f} s"


@pytest.mark.parametrize("name", STREAMS)
def test_worst_batches_hold_the_event_loop_briefly(
    server: ProbedServer, limit: float, name: str
) -> None:
    raw = STREAMS[name]()
    server.longest_hold()
    with server.channel(("grpc.max_receive_message_length", -1)) as channel:
        call: Any = channel.stream_stream(f"/{STORAGE}/BulkSave")
        _ended(lambda: list(call(iter([raw]), timeout=120)))
    held = server.longest_hold()
    assert held < limit, f"{len(raw):,} bytes held the loop for {held:.3f} s"


def _sent(server: ProbedServer, method: str, raw: bytes) -> None:
    with server.channel(("grpc.max_receive_message_length", -1)) as channel:
        call: Any = channel.unary_unary(f"/{method}")
        _ended(lambda: call(raw, timeout=120))


def _ended(call: Callable[[], object]) -> None:
    """Wait for the end of a call; an error must be one that the client can act on."""
    try:
        call()
    except grpc.RpcError as exc:
        error: Any = exc
        assert error.code() in {
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.DEADLINE_EXCEEDED,  # A search is stopped after 10 s.
        }, error
