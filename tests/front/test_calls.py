"""Calls through the front: every kind of RPC, identities, streaming and errors."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from itertools import islice

import grpc
import pytest

from sagastore import (
    TLS,
    Client,
    Message,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from sagastore.v1 import storage_pb2
from tests.front.conftest import TOKEN, Clients, logged_calls
from tests.front.http2 import FIRST, SECOND, STORAGE, Connection, Outcome
from tests.front.nginx import Front
from tests.front.stubs import stub
from tests.security.pki import Pki
from tests.support.messages import batch, message, new_id
from tests.support.server_process import ServerProcess
from tests.support.waiting import eventually


def test_every_kind_of_call_passes(front: Front, clients: Clients) -> None:
    client, session = clients(front.address), new_id()
    saved = client.save(Message("openai", "user", "hello", session_id=session))
    messages = [Message("openai", "user", f"text {n}", session_id=session) for n in range(300)]
    assert client.bulk_save(messages, batch_size=50).saved == 300
    assert client.get(saved.id).content == "hello"
    assert len(list(client.list(session))) == 301
    exported = {one.id for one in client.export(batch_size=20)}
    assert exported >= {saved.id}
    assert len(exported) >= 301
    states = list(islice(client.migration.watch(), 3))
    assert len(states) == 3


def test_large_message_passes_in_both_directions(front: Front, clients: Clients) -> None:
    content = "x" * 1_000_000
    client = clients(front.address)
    saved = client.save(Message("openai", "user", content))
    assert client.get(saved.id).content == content


def test_call_without_token_or_with_a_wrong_one_is_refused(front: Front, clients: Clients) -> None:
    """The certificate of the front gives a caller no permissions."""
    for token in (None, "wrong"):
        with pytest.raises(UnauthenticatedError):
            clients(front.address, token).list("s").page()


def test_client_certificate_identifies_its_caller(front: Front, clients: Clients, pki: Pki) -> None:
    client = clients(front.certificate_address, None, pki.client())
    saved = client.save(Message("openai", "user", "hello"))
    assert client.get(saved.id).content == "hello"
    with pytest.raises(PermissionDeniedError, match=r"'client\.example' has the role writer"):
        client.migration.get()


def test_certificate_port_requires_a_certificate(front: Front, clients: Clients) -> None:
    with pytest.raises(UnavailableError):
        clients(front.certificate_address, TOKEN).list("s").page()


def test_each_batch_is_answered_before_the_next_is_sent(front: Front, pki: Pki) -> None:
    """Neither direction of a stream is buffered until its end."""
    batches: queue.SimpleQueue[storage_pb2.BulkSaveRequest | None] = queue.SimpleQueue()
    channel, storage = stub(front, pki)
    with channel:
        answers = storage.BulkSave(iter(batches.get, None), timeout=60)
        for sequence in range(5):
            batches.put(batch(sequence, message()))
            assert next(answers).sequence == sequence
        batches.put(None)
        assert list(answers) == []


def test_unread_export_delays_no_other_call_of_its_channel(
    front: Front, clients: Clients, pki: Pki
) -> None:
    """A front with one connection to the server for several streams fails here."""
    content = "y" * 20_000
    clients(front.address).bulk_save([Message("openai", "user", content) for _ in range(400)])
    channel, storage = stub(front, pki)
    request = storage_pb2.ExportRequest(batch_size=100)
    with channel:
        unread, read = storage.Export(request, timeout=60), storage.Export(request, timeout=60)
        assert next(unread).messages
        assert sum(len(one.messages) for one in read) >= 400
        assert storage.List(storage_pb2.ListRequest(session_id="s"), timeout=30) is not None
        assert sum(len(one.messages) for one in unread) >= 300


def test_calls_above_the_rate_wait_and_succeed(front: Front, pki: Pki) -> None:
    """A busy client that keeps to the limit of streams per connection is slowed down only."""
    channel, storage = stub(front, pki)
    with channel:
        request = storage_pb2.ListRequest(session_id="none")
        calls = [storage.List.future(request, timeout=100) for _ in range(1500)]
        assert {call.code() for call in calls} == {grpc.StatusCode.OK}


def test_unavailable_server_is_unavailable(
    front: Front, clients: Clients, new_front: Callable[..., Front]
) -> None:
    dead = new_front({"server 127.0.0.1:": "server 127.0.0.9:"})
    with pytest.raises(UnavailableError, match="the server is unavailable; retry later"):
        clients(dead.address).list("s").page()


def test_no_call_fails_when_the_front_closes_connections(
    new_front: Callable[..., Front], clients: Clients
) -> None:
    """Connections end after 20 calls here, as they do after 5,000 in the shipped file."""
    front = new_front({"keepalive_requests 5000;": "keepalive_requests 20;"})
    client = clients(front.address)
    for _ in range(200):
        client.list("s").page()


def test_client_library_survives_a_reload(front: Front, pki: Pki) -> None:
    """A reload ends idle connections; a call that begins just then is repeated by the client."""
    with Client(front.address, tls=TLS(ca=pki.ca), token=TOKEN) as client:
        for _ in range(3):
            front.reload()
            for _ in range(20):
                client.list("s").page()


def saved_from(source: str, front: Front, pki: Pki) -> Iterator[str]:
    """Save from ``source``, with and without a token, and read; yield the messages' ids."""
    for token in (TOKEN, "wrong"):
        connection = Connection(front.port, pki.ca, source, token)
        one = message()
        outcome = connection.call(f"{STORAGE}/Save", storage_pb2.SaveRequest(message=one))
        assert outcome.status == ("0" if token == TOKEN else "16")
        connection.call(f"{STORAGE}/Get", storage_pb2.GetRequest(id=one.id))
        connection.close()
        yield one.id


def test_log_of_changes_connects_source_and_call(
    new_front: Callable[..., Front], pki: Pki, server: ServerProcess
) -> None:
    """The log has successful changes only, with the id that the server logs for the call."""
    front = new_front()
    for source in (FIRST, SECOND):
        list(saved_from(source, front, pki))
    front.drain()
    lines = [line.split() for line in front.changes_log]
    # Two processes of nginx may serve the two connections; each writes its own lines.
    assert sorted((line[1], line[3]) for line in lines) == [
        (source, f"{STORAGE}/Save") for source in sorted((FIRST, SECOND))
    ]
    eventually(lambda: logged_calls(server).keys() >= {line[2] for line in lines})


def test_client_library_reports_calls_above_the_limit(
    new_front: Callable[..., Front], pki: Pki, clients: Clients
) -> None:
    front = new_front({"limit_conn streams 32;": "limit_conn streams 1;"})
    first: Client = clients(front.address)
    states = first.migration.watch()
    assert next(states) is not None
    with pytest.raises(UnavailableError, match="too many calls from this address; retry later"):
        next(clients(front.address).migration.watch(timeout=60))
    # Another source has its own share.
    other = Connection(front.port, pki.ca, SECOND, TOKEN)
    outcome = other.call(f"{STORAGE}/BulkSave", batch(1, message()))
    assert outcome == Outcome("0", "")
    other.close()
    states.close()
