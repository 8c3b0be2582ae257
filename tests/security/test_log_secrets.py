"""Property: no line of a real server contains a secret, wherever a caller puts it.

The server logs at debug level, every call, and every change. Each example comes from an address
of its own, so that no line is suppressed by the limit of its source.
"""

from __future__ import annotations

import base64
import itertools
import secrets
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import quote

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore.v1 import message_pb2, session_pb2, storage_pb2
from sagastore_server.security.access_edit import new_token
from tests.security.pki import Pki, entry, environment, key, write_access
from tests.security.raw_calls import Call, connected
from tests.support.server_process import ServerProcess

ACCESS_TOKEN = new_token()
PASSWORD = f"pw{secrets.token_hex(8)}"
"""PGPASSWORD of the server."""
SERVICE = "/sagastore.v1.StorageService"


class Secret(NamedTuple):
    """A secret as a caller may send it, and the part that must not be logged."""

    text: str
    hidden: str


class Target(NamedTuple):
    """The server, and a private key that it does not use."""

    server: ServerProcess
    private_key: str
    numbers: Iterator[int]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("secrets")
    pki = Pki(folder / "pki")
    access = write_access(folder / "access.toml", entry("token", "w", "admin", token=ACCESS_TOKEN))
    settings = environment(access=access) | {"PGPASSWORD": PASSWORD, "SAGASTORE_AUDIT": "log"}
    server = ServerProcess(folder / "saga.db", "--log-level=debug", "--log-calls", env=settings)
    with closing(server):
        private_key = key(pki.issue("somebody.example")).decode()
        yield Target(server.start(), private_key, itertools.count(1))
        assert server.terminate() == 0
        # The audit trail is written later than the log.
        assert "change" in {event["event"] for event in server.events}
        text = "\n".join(server.stderr)
        for hidden in (ACCESS_TOKEN, PASSWORD, private_key.splitlines()[1]):
            assert hidden not in text


tokens = st.binary(min_size=32, max_size=32).map(
    lambda raw: "saga_" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
)
passwords = st.text(
    st.characters(codec="ascii", min_codepoint=0x21, max_codepoint=0x7E), min_size=8, max_size=24
).filter(lambda text: not set(text) & set("\"'@"))


def dsn(password: str) -> Secret:
    return Secret(f"postgresql://me:{quote(password, safe='')}@db/saga", quote(password, safe=""))


def assignment(password: str) -> Secret:
    return Secret(f"PGPASSWORD='{password}'", password)


some_secrets = st.one_of(
    st.just(Secret(ACCESS_TOKEN, ACCESS_TOKEN)),
    st.just(Secret(PASSWORD, PASSWORD)),
    tokens.map(lambda token: Secret(token, token)),
    passwords.map(dsn),
    passwords.map(assignment),
    st.just(Secret("key", "key")),  # Replaced by the private key of the fixture.
)
surroundings = st.sampled_from([b"", b"\xff", b"\xc3\x28", b" ", b"\x00", b"x", b"=", b"\\", b"\n"])
names = st.sampled_from(
    [b"authorization", b"x-request-id", b"traceparent", b"tracestate", b"user-agent", b"x-any",
     b"x-any-bin", b"grpc-trace-bin", b"grpc-timeout", b"grpc-encoding", b":authority"]
)  # fmt: skip
places = st.sampled_from(
    ["path", "method", "get", "search", "save", "delete", "append", "page", "raw", "nothing"]
)


def request_with(place: str, text: str) -> tuple[str, bytes]:
    """Return a path, and a request that has ``text`` in one of its fields."""
    message = message_pb2.Message(provider="p", role="r", content=text, id=text[:128])
    requests = {
        "get": ("Get", storage_pb2.GetRequest(id=text)),
        "search": ("Search", storage_pb2.SearchRequest(query=text)),
        "save": ("Save", storage_pb2.SaveRequest(message=message)),
        "delete": ("Delete", storage_pb2.DeleteRequest(id=text)),
        "page": ("List", storage_pb2.ListRequest(session_id=text, page_token=text)),
    }
    if place == "append":
        turn = session_pb2.AppendRequest(session_id=text, messages=[message])
        return "/sagastore.v1.SessionService/Append", turn.SerializeToString()
    if place in requests:
        name, request = requests[place]
        return f"{SERVICE}/{name}", request.SerializeToString()
    path = {"path": f"/{text}/Get", "method": f"{SERVICE}/{text}"}.get(place, f"{SERVICE}/Get")
    return path, text.encode() if place == "raw" else b""


def logged(target: Target) -> list[str]:
    """Return the lines until now: a separate call marks the end."""
    server, number = target.server, next(target.numbers)
    marker = f"marker-{number}"
    done = threading.Event()
    with server.channel() as channel:
        get: Any = channel.unary_unary(f"{SERVICE}/Get")
        metadata = (("authorization", f"Bearer {ACCESS_TOKEN}"), ("x-request-id", marker))
        with pytest.raises(grpc.RpcError):
            get(b"", metadata=metadata, timeout=60)
    while not any(event.get("call") == marker for event in server.events):
        assert server.alive
        done.wait(0.001)
    return list(server.stderr)


class Sent(NamedTuple):
    """A call with a secret."""

    secret: Secret
    before: bytes
    after: bytes
    header: bytes
    split: int
    place: str
    authenticated: bool


calls = st.builds(
    Sent,
    secret=some_secrets,
    before=surroundings,
    after=surroundings,
    header=names,
    split=st.integers(0, 300),
    place=places,
    authenticated=st.booleans(),
)


@given(calls)
def test_no_line_contains_a_secret(target: Target, sent: Sent) -> None:
    (text, hidden), before, after, header, split, place, authenticated = sent
    if hidden == "key":
        text, hidden = target.private_key, target.private_key.splitlines()[1]
    whole = b"Bearer " * (header == b"authorization") + before + text.encode() + after
    # As one value, or as two values of two headers.
    headers = [(header, whole[:split] or b"-"), (b"x-more", whole[split:])]
    if authenticated and header != b"authorization":
        headers.append((b"authorization", f"Bearer {ACCESS_TOKEN}".encode()))
    path, request = request_with(place, text)
    number = next(target.numbers)
    source = f"127.{1 + number // 60_000}.{number // 250 % 240}.{1 + number % 250}"
    seen = len(target.server.stderr)
    try:
        with connected(target.server.address, source) as connection:
            connection.call(Call(path.encode(), headers, request))
    except ConnectionError:
        pass  # gRPC ends a connection with headers that HTTP/2 does not allow.
    lines = logged(target)[seen:]
    assert [line for line in lines if hidden in line] == []
    assert [line for line in lines if len(line.encode()) > 10_000] == []
