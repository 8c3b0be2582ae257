"""Messages of the maximum size, and numbers of every size, through the client and real servers on
both stores."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagastore import AsyncClient, Client, Message, Order
from sagastore.v1 import storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from sagastore_server.storage.limits import LARGEST_MESSAGE
from tests.support.messages import at, message, new_id
from tests.support.postgres import fresh_schema
from tests.support.server_process import ServerProcess

WIDE = "\U0001f680"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """Run a server on one store, with the smallest limit of requests."""
    folder: Path = tmp_path_factory.mktemp("large")
    option = ("--max-request-bytes", "8388608")
    with asyncio.Runner() as runner:
        schema = fresh_schema()
        dsn = runner.run(schema.__aenter__()) if request.param == "postgresql" else None
        server = ServerProcess(folder / "sagastore.db", *option, postgres=dsn)
        try:
            yield server.start()
        finally:
            server.close()
            if dsn is not None:
                runner.run(schema.__aexit__(None, None, None))


@pytest.fixture
async def client(server: ServerProcess) -> AsyncIterator[AsyncClient]:
    """Call the server."""
    async with AsyncClient(server.address) as client:
        yield client


def largest(session: str, number: int = 0) -> Message:
    """Return a message with every field at its limit."""
    return Message(
        WIDE * 64,
        WIDE * 32,
        "needle " + WIDE * 999_993,
        id=f"{new_id()}{WIDE * 92}",
        tags=[WIDE * 256] * 512,
        timestamp=datetime(2026, 1, 1, 0, 0, number, tzinfo=UTC),
        metadata={"text": "é" * 524_200, "half": 0.5},
        session_id=session,
    )


async def test_largest_message_passes_every_call(client: AsyncClient) -> None:
    session = new_id()
    one, two, three = (largest(session, number) for number in range(3))
    assert (await client.save(one)).created
    assert not (await client.save(one)).created
    result = await client.bulk_save([two, three])
    assert (result.saved, result.rejected) == (2, ())
    sent = [one, two, three]

    def same(found: list[Message]) -> bool:
        fields = ("provider", "role", "content", "tags", "timestamp", "metadata", "session_id")
        pairs = zip(found, sent, strict=True)
        return all(getattr(a, name) == getattr(b, name) for a, b in pairs for name in fields)

    assert same([await client.get(each.id) for each in sent])
    assert same(list((await client.batch_get([each.id for each in sent])).messages))
    pages = [page async for page in client.list(session).pages()]
    assert [len(page.items) for page in pages] == [1, 1, 1]
    assert same([each for page in pages for each in page.items])
    for order in (Order.OLDEST, Order.RELEVANCE):
        found = [hit async for hit in client.search("needle", session_id=session, order=order)]
        assert {hit.message.id for hit in found} == {each.id for each in sent}
        assert all(hit.highlight("[", "]").startswith("[needle] ") for hit in found)
    exported = {each.id: each async for each in client.export()}
    assert same([exported[each.id] for each in sent])
    for each in sent:
        await client.delete(each.id)


def test_client_with_default_limits_receives_other_messages(server: ServerProcess) -> None:
    """A page has one message above 4 MiB, or only messages that fit."""
    with grpc.insecure_channel(server.address) as channel:
        stub = StorageServiceStub(channel)
        session = new_id()
        small = message(session_id=session, content="x" * 900_000, timestamp=at(1))
        large = message(
            session_id=session, content=WIDE * 1_000_000, timestamp=at(2),
            metadata_json='{"k": "' + "é" * 524_200 + '"}',
        )  # fmt: skip
        assert large.ByteSize() < LARGEST_MESSAGE
        for each in (small, large):
            # A default client can send more than it can receive.
            stub.Save(storage_pb2.SaveRequest(message=each))
        request = storage_pb2.ListRequest(session_id=session)
        page = stub.List(request)
        assert [found.id for found in page.messages] == [small.id]
        request.page_token = page.next_page_token
        with pytest.raises(grpc.RpcError) as caught:
            stub.List(request)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for each in (small, large):
            stub.Delete(storage_pb2.DeleteRequest(id=each.id))


def test_nanoseconds_are_truncated_everywhere(server: ServerProcess) -> None:
    with server.channel() as channel:
        stub = StorageServiceStub(channel)
        for seconds in (1_700_000_000, -5):
            session = new_id()
            sent = message(session_id=session, timestamp=at(seconds, 123_456_789))
            first = stub.Save(storage_pb2.SaveRequest(message=sent))
            again = stub.Save(storage_pb2.SaveRequest(message=sent))
            assert (again.created, again.revision) == (False, first.revision)
            bulk = storage_pb2.BulkSaveRequest(sequence=1, messages=[sent])
            assert [answer.unchanged for answer in stub.BulkSave(iter([bulk]))] == [1]
            (found,) = stub.List(storage_pb2.ListRequest(session_id=session)).messages
            assert found.timestamp == at(seconds, 123_456_000)

            def matches(session: str = session, **limits: Any) -> int:
                request = storage_pb2.SearchRequest(session_id=session, **limits)
                return len(stub.Search(request).results)

            assert matches(start_time=at(seconds, 123_456_999)) == 1
            assert matches(start_time=at(seconds, 123_457_000)) == 0
            assert matches(end_time=at(seconds, 123_456_999)) == 0
            assert matches(end_time=at(seconds, 123_457_999)) == 1


EXTREME = [
    *(1e23, 1.7e308, 5e-324, 1e16, -1e16, 1e22, 123456789012345680.0, 9007199254740993.0),
    *(sys.float_info.max, sys.float_info.min, -5e-324, 2.0**53, 0.1, 1.0, -0.0, 1e15),
    *(10**23, 2**53 + 1, -(10**400), 0, 10**16),
]
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**40), 10**40)


def _unchanged(client: Client, numbers: list[float]) -> None:
    id = new_id()
    metadata = {"list": numbers, "e+": {str(at): each for at, each in enumerate(numbers)}}
    sent = Message("p", "r", "", id=id, metadata=metadata)
    client.save(sent)
    assert client.save(sent).created is False
    found = client.get(id).metadata
    assert found == metadata
    for each, read in zip(numbers, found["list"], strict=True):
        assert type(read) is type(each)
        # The only thing that jsonb does not keep.
        assert repr(read) == repr(each) or (each == 0 and math.copysign(1, each) == -1)
    if numbers:
        (hit,) = client.search("", metadata=metadata)
        assert hit.message.metadata == metadata
    client.delete(id)


def test_extreme_numbers_come_back(server: ServerProcess) -> None:
    with Client(server.address) as client:
        _unchanged(client, EXTREME)


def test_every_number_comes_back(server: ServerProcess) -> None:
    with Client(server.address) as client:

        @settings(
            max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        @given(st.lists(NUMBERS, max_size=20))
        def check(numbers: list[float]) -> None:
            _unchanged(client, numbers)

        check()


def test_other_clients_numbers_are_read_by_value(server: ServerProcess) -> None:
    """Without a fraction in the stored text, a number is an int; that is jsonb's text."""
    with server.channel() as channel, Client(server.address) as client:
        sent = message(metadata_json='{"e": 1e23, "d": 0.10000000000000000001}')
        stub = StorageServiceStub(channel)
        stub.Save(storage_pb2.SaveRequest(message=sent))
        found = client.get(sent.id).metadata
        assert (found["e"], type(found["e"])) == (10**23, int)
        assert str(found["d"]) == "0.10000000000000000001"
        client.delete(sent.id)
