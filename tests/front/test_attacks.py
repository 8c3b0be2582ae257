"""Attacks on the front by one source, while another source is served."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import psutil
import pytest
from h2.events import DataReceived, PingAckReceived, StreamEnded
from h2.exceptions import ProtocolError
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)

from sagastore.v1 import migration_pb2, storage_pb2
from tests.front.conftest import OTHER_TOKEN, TOKEN, logged_calls
from tests.front.http2 import FIRST, SECOND, STORAGE, WITHIN, Connection, Outcome, is_open, tcp
from tests.front.nginx import Front
from tests.front.stubs import stub
from tests.security.pki import Pki
from tests.support.messages import batch, message, new_id
from tests.support.ports import has_ipv6
from tests.support.server_process import ServerProcess
from tests.support.waiting import eventually

LIST = f"{STORAGE}/List"
REQUEST = storage_pb2.ListRequest(session_id="none")
STREAM = f"{STORAGE}/BulkSave", batch(1, message())
"""A stream that ends at once."""
TOO_MANY = "too many calls from this address; retry later"
OK = Outcome("0", "")
CONNECTIONS = 1000
SHARE = 100
"""Connections of one source (``limit_conn connections``)."""
STREAMS = 32
"""Streams of one source (``limit_conn streams``)."""
ATTACKS, MOST_RESETS = 3, 20_000
"""Connections of the attacker, and the resets of one that is never closed."""
RATE, AT_ONCE = 50, 100
"""Calls of one source per second in a test, and those that do not wait for that rate (``delay``
of ``limit_req``)."""
RST_STREAM = RstStreamFrame.type
MIB = 1024 * 1024
LOG_UPSTREAM = {
    " if=$changed;": ";",
    "$call_id $uri $request_time": "$call_id $uri $upstream_addr",
}
"""Changes of the configuration: every call is logged, with ``-`` if it was not sent on."""
SOON = {"client_header_timeout 10s;": "client_header_timeout 1s;"}


def call_from(source: str, front: Front, pki: Pki) -> Outcome:
    """Make a call over a new connection."""
    with closing(Connection(front.port, pki.ca, source, TOKEN)) as connection:
        return connection.call(LIST, REQUEST)


def server_connections(server: ServerProcess) -> int:
    """Return the number of established connections to the server."""
    port = int(server.address.rpartition(":")[2])
    found = psutil.Process(server.pid).net_connections("tcp")
    return sum(one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in found)


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("port", ["port", "certificate_port"])
def test_idle_connections_of_one_source_do_not_block_others(
    port: str, new_front: Callable[..., Front], pki: Pki, server: ServerProcess
) -> None:
    # Idle connections stay open for longer than the test.
    patient = {"client_header_timeout 10s;": "client_header_timeout 10m;"}
    front = new_front(patient | {"preread_timeout 10s;": "preread_timeout 10m;"})
    with ExitStack() as stack:
        idle = [stack.enter_context(tcp(getattr(front, port))) for _ in range(CONNECTIONS)]
        eventually(lambda: sum(map(is_open, idle)) <= SHARE)
        assert call_from(SECOND, front, pki) == OK
        # None of them has reached the server.
        assert server_connections(server) < SHARE // 2


@pytest.mark.parametrize("port", ["port", "certificate_port"])
def test_connection_without_a_request_is_closed(port: str, new_front: Callable[..., Front]) -> None:
    front = new_front(SOON | {"preread_timeout 10s;": "preread_timeout 1s;"})
    with tcp(getattr(front, port)) as idle:
        assert idle.recv(1) == b""


def test_connection_without_a_request_after_the_handshake_is_closed(
    new_front: Callable[..., Front], pki: Pki
) -> None:
    with closing(Connection(new_front(SOON).port, pki.ca)) as idle:
        eventually(lambda: not is_open(idle.socket))


def reset_rapidly(front: Front, pki: Pki, at_once: int) -> int:
    """Open and reset streams over one connection until it is closed; return their number.

    The attacker sends ``at_once`` of them, then waits until the peer has read them. So a number
    below 256 stays within what the peer accepts at once.
    """
    count = 0
    with closing(Connection(front.port, pki.ca, FIRST)) as attacker:
        try:
            while count < MOST_RESETS:
                for _ in range(at_once):
                    attacker.http2.reset_stream(attacker.begin(LIST, REQUEST))
                count += at_once
                attacker.http2.ping(bytes(8))
                attacker.flush()
                if not any(isinstance(event, PingAckReceived) for event in attacker.events()):
                    break
        except (OSError, ProtocolError):
            pass
    return count


@pytest.mark.parametrize("at_once", [50, 500])
def test_rapid_resets_close_the_connection_and_fail_no_other_call(
    at_once: int, new_front: Callable[..., Front], pki: Pki
) -> None:
    """Resets end their connection, and few of the calls reach the server."""
    # The rate is lower than in the shipped file, for a slow machine that attacks slowly.
    front = new_front({"rate=500r/s;": f"rate={RATE}r/s;"} | LOG_UPSTREAM)
    ended = threading.Event()
    counts: list[int] = []

    def attack() -> None:
        try:
            counts.extend(reset_rapidly(front, pki, at_once) for _ in range(ATTACKS))
        finally:
            ended.set()

    attacker = threading.Thread(target=attack)
    began = time.monotonic()
    attacker.start()
    outcomes: list[Outcome] = []
    with closing(Connection(front.port, pki.ca, SECOND, TOKEN)) as caller:
        while not ended.is_set() or len(outcomes) < 20:
            outcomes.append(caller.call(LIST, REQUEST))
    attacker.join()
    seconds = time.monotonic() - began
    assert set(outcomes) == {OK}
    assert len(counts) == ATTACKS
    assert all(count < MOST_RESETS for count in counts)
    front.drain()
    # A call that waits for the rate ends with its reset.
    assert sent_to_server(front, FIRST) < AT_ONCE + RATE * (seconds + 1) < sum(counts) / 2


def sent_to_server(front: Front, source: str) -> int:
    """Return the number of calls of ``source`` that the front has sent to the server."""
    lines = [line.split() for line in front.changes_log]
    assert {line[1] for line in lines} == {FIRST, SECOND}
    return sum(line[1] == source and line[4] != "-" for line in lines)


@pytest.mark.parametrize("shape", ["one frame", "many frames"])
def test_dripping_headers_are_cut(
    shape: str, new_front: Callable[..., Front], pki: Pki, server: ServerProcess
) -> None:
    """Headers that are not complete in time end their stream, and reach no server."""
    front, marks = new_front(SOON), (f"slow-{new_id()}", f"quick-{new_id()}")
    with closing(Connection(front.port, pki.ca, call_id=marks[0])) as slow:
        block = Encoder().encode([*slow.headers(LIST), ("x-long", "v" * 3000)], huffman=False)
        drips = iter(byte_by_byte(block) if shape == "one frame" else frame_by_frame(block))
        pause = threading.Event()

        def cut() -> bool:
            try:
                slow.socket.sendall(next(drips))
                pause.wait(0.02)
                slow.socket.setblocking(False)
                received = slow.socket.recv(65536)
            except ssl.SSLWantReadError:
                return False
            except OSError:  # The connection is closed, with bytes that nginx has not read.
                return True
            finally:
                slow.socket.settimeout(WITHIN)
            return not received or RST_STREAM in frame_types(received)

        eventually(cut)
    with closing(Connection(front.port, pki.ca, SECOND, TOKEN, marks[1])) as other:
        assert other.call(LIST, REQUEST) == OK
    eventually(lambda: marks[1] in logged_calls(server))
    assert marks[0] not in logged_calls(server)


def test_request_that_does_not_end_is_cut(new_front: Callable[..., Front], pki: Pki) -> None:
    front = new_front({"client_body_timeout 30s;": "client_body_timeout 1s;"})
    with closing(Connection(front.port, pki.ca, FIRST, TOKEN)) as slow:
        stream = slow.http2.get_next_available_stream_id()
        slow.http2.send_headers(stream, slow.headers(LIST))
        slow.flush()
        assert slow.outcome(stream).status == "reset"
        assert slow.call(LIST, REQUEST) == OK


def byte_by_byte(block: bytes) -> list[bytes]:
    frame = HeadersFrame(1, block, flags=["END_HEADERS"]).serialize()
    return [frame[at : at + 1] for at in range(len(frame))]


def frame_by_frame(block: bytes) -> list[bytes]:
    first = HeadersFrame(1, block[:1]).serialize()
    return [
        first,
        *(ContinuationFrame(1, block[at : at + 1]).serialize() for at in range(1, len(block))),
    ]


def frame_types(received: bytes) -> set[int]:
    """Return the types of complete frames."""
    types = set()
    while len(received) >= 9:
        types.add(received[3])
        received = received[9 + int.from_bytes(received[:3]) :]
    return types


@pytest.mark.parametrize(
    "frame", [PingFrame(0, bytes(8)), SettingsFrame(0)], ids=["ping", "settings"]
)
def test_flood_of_control_frames_closes_the_connection(
    frame: Frame, front: Front, pki: Pki
) -> None:
    """nginx closes a connection with too many frames that are not part of a request."""
    many = frame.serialize() * 1000
    with closing(Connection(front.port, pki.ca)) as attacker:

        def closed() -> bool:
            attacker.socket.settimeout(WITHIN)
            try:
                attacker.socket.sendall(many)
            except OSError:
                return True
            return not is_open(attacker.socket)

        assert any(closed() for _ in range(2000))
    assert call_from(SECOND, front, pki) == OK


def test_one_source_has_a_share_of_the_streams(
    front: Front, pki: Pki, server: ServerProcess
) -> None:
    """Streams above the share are refused, and another source can open its own."""
    mark = f"greedy-{new_id()}"
    with closing(Connection(front.port, pki.ca, FIRST, TOKEN, mark)) as greedy:
        watch = "/sagastore.v1.MigrationService/WatchMigration"
        request = migration_pb2.WatchMigrationRequest()
        streams = [greedy.begin(watch, request) for _ in range(40)]
        greedy.flush()
        served, refused = set(), set()
        for event in greedy.events():
            if isinstance(event, DataReceived) and event.data:
                served.add(event.stream_id)
            if isinstance(event, StreamEnded):
                refused.add(event.stream_id)
            # A stream that has no answer yet may not have reached the server, which then never
            # logs its end.
            if len(served) + len(refused) == len(streams):
                break
        assert (len(served), len(refused)) == (STREAMS, len(streams) - STREAMS)
        with closing(Connection(front.port, pki.ca, SECOND, OTHER_TOKEN)) as other:
            assert other.call(*STREAM) == OK
    # They take half of the streams of the server; the next test needs some.
    eventually(lambda: logged_calls(server)[mark] == STREAMS)


def forwarded(front: Front, pki: Pki, source: str) -> Connection:
    """Connect as the first half of the front does for the IPv6 address ``source``."""
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(WITHIN)
    connected.connect(front.socket)
    connected.sendall(f"PROXY TCP6 {source} ::1 40000 443\r\n".encode())
    return Connection(connected, pki.ca, token=TOKEN)


def test_ipv6_addresses_of_one_network_are_one_source(
    new_front: Callable[..., Front], pki: Pki
) -> None:
    front = new_front({"limit_conn streams 32;": "limit_conn streams 1;"})
    watch = "/sagastore.v1.MigrationService/WatchMigration"
    with (
        closing(forwarded(front, pki, "2001:db8:0:1::1")) as first,
        closing(forwarded(front, pki, "2001:db8:0:1:f::2")) as same,
        closing(forwarded(front, pki, "2001:db8:0:2::1")) as other,
    ):
        first.begin(watch, migration_pb2.WatchMigrationRequest())
        first.flush()
        assert any(isinstance(event, DataReceived) for event in first.events())
        assert same.call(*STREAM).message == TOO_MANY
        assert other.call(*STREAM) == OK


def test_connections_over_ipv6_are_limited(new_front: Callable[..., Front]) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    front = new_front({"limit_conn connections 100;": "limit_conn connections 3;"})
    with ExitStack() as stack:
        address = ("::1", front.port)
        idle = [stack.enter_context(socket.create_connection(address, WITHIN)) for _ in range(10)]
        eventually(lambda: sum(map(is_open, idle)) <= 3)


def test_large_export_streams_with_level_memory(new_front: Callable[..., Front], pki: Pki) -> None:
    """The front holds a few buffers of an export of 38 MiB, whether it is read or not."""
    front = new_front()
    channel, storage = stub(front, pki)
    with channel:
        content = "y" * 16_000
        batches = (batch(n, *(message(content=content) for _ in range(100))) for n in range(25))
        assert sum(one.saved for one in storage.BulkSave(batches, timeout=100)) == 2500
        before = front.memory()
        answers = storage.Export(storage_pb2.ExportRequest(batch_size=50), timeout=100)
        size, largest = 0, before
        for answer in answers:
            size += answer.ByteSize()
            largest = max(largest, front.memory())
        assert size >= 38 * MIB
        assert largest - before < 16 * MIB
