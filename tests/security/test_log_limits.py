"""What a caller without credentials can add to the log: bounded, without secrets, counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sagastore import Client, Message
from sagastore_server.security.access_edit import new_token
from tests.security.pki import entry, environment, write_access
from tests.security.raw_calls import Call, connected
from tests.support.server_process import ServerProcess

GET = b"/sagastore.v1.StorageService/Get"
BURST = 16_384
"""Bytes of the log that do not depend on the time: the start and the end of the server, and what
a source may add at once."""
PER_SECOND = 1000
RATE_LIMITED = "8"
REFUSED = {"16", RATE_LIMITED}
"""UNAUTHENTICATED, and RESOURCE_EXHAUSTED once an address has failed too often."""
TOKEN = new_token()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    access = write_access(tmp_path / "access.toml", entry("token", "web", "writer", token=TOKEN))
    options = ("--log-level=debug",)
    process = ServerProcess(tmp_path / "saga.db", *options, env=environment(access=access))
    with closing(process):
        yield process.start()


def size(server: ServerProcess) -> int:
    return sum(len(line.encode()) + 1 for line in server.stderr)


def test_token_with_a_byte_that_is_not_utf8_is_not_logged(server: ServerProcess) -> None:
    """Each call sends 5 kB, and made gRPC log all of it four times, with a traceback."""
    header = b"Bearer " + TOKEN.encode() + b"\xff" * 2500
    began = time.monotonic()
    with connected(server.address) as connection:
        for _ in range(400):
            call = Call(GET, [(b"authorization", header), (b"x-request-id", header)])
            assert connection.call(call) in REFUSED
    assert server.terminate() == 0
    assert size(server) <= BURST + PER_SECOND * (time.monotonic() - began)
    text = "\n".join(server.stderr)
    assert TOKEN not in text
    assert TOKEN[5:25] not in text
    assert "a header of a call is not text in UTF-8" in text
    assert "Traceback" not in text


def test_refused_callers_are_logged_with_their_peer_and_counted(server: ServerProcess) -> None:
    calls, code = 0, ""
    began = time.monotonic()
    with connected(server.address, "127.3.2.1") as connection:
        # On a slow machine it takes more calls to exceed the rate.
        while calls < 500 or (code != RATE_LIMITED and calls < 10_000):
            code = connection.call(Call(GET, [(b"authorization", b"Bearer unknown")]))
            assert code in REFUSED
            calls += 1
    assert code == RATE_LIMITED
    with connected(server.address, "127.3.2.2") as connection:
        assert connection.call(Call(GET, [])) == "16"
    assert server.terminate() == 0
    assert size(server) <= BURST + PER_SECOND * (time.monotonic() - began)
    refused = [event for event in server.events if event["event"] == "access refused"]
    first = [event for event in refused if event["peer"].startswith("127.3.2.1:")]
    (other,) = [event for event in refused if event["peer"].startswith("127.3.2.2:")]
    assert other["reason"] == "the server requires a token; the call has none"
    assert (
        first[0].items()
        >= {
            "code": "UNAUTHENTICATED",
            "method": "sagastore.v1.StorageService/Get",
            "reason": "the server does not know this token",
            "logger": "audit",
        }.items()
    )
    counted = [event for event in server.events if event["event"] == "refusals suppressed"]
    assert {event["source"] for event in counted} == {"127.3.2.1"}
    assert len(first) + sum(event["lines"] for event in counted) == calls


def test_refusals_do_not_suppress_lines_of_changes(server: ServerProcess) -> None:
    with connected(server.address) as connection, Client(server.address, token=TOKEN) as client:
        for number in range(50):
            connection.call(Call(GET, []))
            client.save(Message("a", "user", "x", id=f"m-{number}"))
    assert server.terminate() == 0
    saved = [event["id"] for event in server.events if event["event"] == "change"]
    assert saved == [f"m-{number}" for number in range(50)]
