"""Limits of the ops port: no set of connections keeps a probe from its answer."""

from __future__ import annotations

import http.client
import itertools
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from tests.support.server_process import ServerProcess
from tests.telemetry.ops import ON, get, ops_of

MANY = 300
"""More connections than the ops port holds, in all and of one address."""

_WITHIN = 60.0
"""Seconds after which a connection counts as kept open; its limits are 5 and 10."""

Connect = Callable[..., socket.socket]

needs_loopback_addresses = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has the whole of 127.0.0.0/8 as local addresses"
)


@pytest.fixture
def connect(watched: ServerProcess) -> Iterator[Connect]:
    """Open connections to the ops port: ``connect(text, source=…, receive_buffer=…)``."""
    host, _, port = ops_of(watched).rpartition(":")
    with ExitStack() as stack:

        def one(
            text: bytes = b"", source: str = "127.0.0.1", receive_buffer: int | None = None
        ) -> socket.socket:
            client = stack.enter_context(socket.socket())
            client.settimeout(_WITHIN)
            if receive_buffer is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            client.bind((source, 0))
            client.connect((host, int(port)))
            client.sendall(text)
            return client

        yield one


def closed(client: socket.socket) -> bool:
    """Whether the server has closed the connection; reads what it has sent."""
    while select.select([client], [], [], 0)[0]:
        try:
            if not client.recv(65536):
                return True
        except ConnectionError:
            return True
    return False


def drip(client: socket.socket) -> None:
    """Send another byte of a request that never ends."""
    try:
        client.send(b"x")
    except ConnectionError:
        client.close()


def assert_probes(ops: str) -> None:
    """Each page is served to a client that behaves."""
    for page in ("/livez", "/readyz", "/metrics"):
        assert get(ops, page).status == 200


@pytest.mark.parametrize("connections", [16, MANY])
def test_dripping_requests_do_not_stop_probes(
    watched: ServerProcess, connect: Connect, connections: int
) -> None:
    dripping = [connect(b"GET /livez HTTP/1.1\r\nX-Drip: ") for _ in range(connections)]
    until = time.monotonic() + _WITHIN
    while dripping:
        assert time.monotonic() < until, f"{len(dripping)} requests may drip forever"
        assert_probes(ops_of(watched))
        for client in dripping:
            drip(client)
        dripping = [one for one in dripping if one.fileno() >= 0 and not closed(one)]


def test_idle_connections_do_not_stop_probes(watched: ServerProcess, connect: Connect) -> None:
    idle = []
    for _ in range(MANY):
        idle.append(connect())
        if len(idle) % 20 == 0:
            assert_probes(ops_of(watched))
    # The oldest gave its place to a younger one.
    assert idle[0].recv(1) == b""


@needs_loopback_addresses
def test_idle_connections_of_many_addresses_do_not_stop_probes(
    watched: ServerProcess, connect: Connect
) -> None:
    for number in range(MANY):
        connect(source=f"127.0.{number // 30 + 1}.{number % 30 + 1}")
        if number % 20 == 0:
            assert_probes(ops_of(watched))


@needs_loopback_addresses
def test_connections_of_one_address_do_not_close_those_of_another(connect: Connect) -> None:
    other = connect(b"GET /livez HTTP/1.1\r\n", source="127.0.0.2")
    flood = [connect() for _ in range(MANY)]
    assert flood[0].recv(1) == b""
    other.sendall(b"Host: x\r\n\r\n")
    assert other.recv(12) == b"HTTP/1.1 200"


def test_unread_answers_do_not_stop_probes(watched: ServerProcess, connect: Connect) -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    unread = []
    for _ in range(MANY):
        # The answer is larger than these buffers, so the server cannot finish sending it.
        unread.append(connect(request * 20, receive_buffer=1024))
        if len(unread) % 50 == 0:
            assert_probes(ops_of(watched))


def test_request_without_end_is_closed(connect: Connect) -> None:
    client = connect(b"GET /livez HTTP/1.1\r\nX-Drip: ")
    until = time.monotonic() + _WITHIN
    while client.fileno() >= 0 and not closed(client):
        assert time.monotonic() < until, "a request may drip forever"
        drip(client)
        time.sleep(0.05)


def test_connection_without_request_is_closed(connect: Connect) -> None:
    assert connect().recv(1) == b""


def test_large_head_is_refused(connect: Connect) -> None:
    client = connect(b"GET /livez HTTP/1.1\r\n" + b"X-Large: 0123456789abcdef\r\n" * 1000)
    assert client.recv(12) == b"HTTP/1.1 400"


BODIES = [
    b"Content-Length: 1\r\n\r\nx",
    b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("body", BODIES)
def test_request_body_is_refused(connect: Connect, body: bytes) -> None:
    client = connect(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + body)
    assert client.recv(12) == b"HTTP/1.1 413"


def test_each_answer_closes_its_connection(connect: Connect) -> None:
    client = connect(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
    answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"\r\nserver: sagastore\r\n" in answer.lower()


@pytest.mark.parametrize("page", [b"/livez", b"/metrics"])
def test_client_that_ends_its_side_gets_the_answer(connect: Connect, page: bytes) -> None:
    for _ in range(3):
        client = connect(b"GET " + page + b" HTTP/1.0\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))  # noqa: B023 - called in this round
        assert answer.startswith(b"HTTP/1.1 200")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head.lower()


ACCEPTED = {
    "": "text/plain; version=0.0.4; charset=utf-8",
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.5": (
        "text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8"
    ),
    "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5": (
        "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"
    ),
    # Neither an error, nor repeated in the answer.
    "application/openmetrics-text; version=x": "text/plain; version=0.0.4; charset=utf-8",
    "application/openmetrics-text; version=1.2.3.4": "text/plain; version=0.0.4; charset=utf-8",
}


@pytest.mark.parametrize("accept", ACCEPTED)
def test_metrics_have_a_known_content_type(watched: ServerProcess, accept: str) -> None:
    connection = http.client.HTTPConnection(ops_of(watched), timeout=60)
    with closing(connection):
        connection.request("GET", "/metrics", headers={"Accept": accept})
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Content-Type")) == (200, ACCEPTED[accept])


def test_strangers_do_not_fill_the_log(watched: ServerProcess, connect: Connect) -> None:
    before = len(watched.stderr)
    junk = (b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n\r\n\r\n")
    upgrade = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    accept = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/plain;version=x\r\n\r\n"
    for text, _ in itertools.product((*junk, upgrade, accept), range(20)):
        connect(text)
    for page in ("/%ff", "/livez?token=secret", "//livez", "*"):
        get(ops_of(watched), page)
    assert_probes(ops_of(watched))
    assert watched.stderr[before:] == []


def test_open_connections_do_not_delay_the_stop(
    server_process: Callable[..., ServerProcess],
) -> None:
    server = server_process(env=ON).start()
    host, _, port = ops_of(server).rpartition(":")
    with ExitStack() as stack:
        for text in (b"", b"GET /livez HTTP/1.1\r\nX-Drip: ") * 20:
            stack.enter_context(socket.create_connection((host, int(port)))).sendall(text)
        assert get(ops_of(server), "/livez").status == 200
        assert server.terminate() == 0
    assert not [line for line in server.stderr if "ops" in line and '"serving"' not in line]
