"""Positions of responses and requirements of reads, against a scripted server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sagastore import (
    AsyncClient,
    Client,
    Consistency,
    Message,
)
from sagastore.v1 import file_pb2, session_pb2, storage_pb2
from tests.client.failing.positions import (
    EACH_READ,
    EACH_WRITE,
    HELLO,
    READS,
    WRITES,
    Rpc,
    acknowledged,
    at,
    found,
    items,
    required,
    requirements,
    saved,
    streamed,
)
from tests.client.failing.scripted import Script, answer, unavailable


def test_every_read_and_write_of_the_protocol_is_tested() -> None:
    """A new call with a position is covered from its first line."""
    services = [
        module.DESCRIPTOR.services_by_name[name]
        for module, name in (
            (storage_pb2, "StorageService"),
            (session_pb2, "SessionService"),
            (file_pb2, "FileService"),
        )
    ]
    methods = [method for service in services for method in service.methods]
    reads = {m.name for m in methods if "consistency" in m.input_type.fields_by_name}
    assert reads == {rpc.name for rpc in READS}
    with_position = {m.name for m in methods if "position" in m.output_type.fields_by_name}
    # The library sends no BatchSave; bulk saves have their own tests.
    covered = {rpc.name for rpc in (*READS, *WRITES)}
    assert with_position - {"BatchSave", "BulkSave"} == covered


@EACH_READ
@pytest.mark.parametrize("form", ["latest", "any_replica", at(7), Consistency.at_least(at(7))])
async def test_read_sends_the_requirement_of_its_caller(
    script: Script,
    session: AsyncClient,
    rpc: Rpc,
    form: Consistency | str,
) -> None:
    script.play(rpc.name, rpc.step())
    session.observe(at(100))
    await rpc.call(session, consistency=form)
    assert required(script.requests[-1]) == str(form)


@EACH_READ
@pytest.mark.parametrize("reads", ["latest", "session", "any_replica"])
async def test_read_sends_the_requirement_of_its_client(
    script: Script, rpc: Rpc, reads: str
) -> None:
    script.play(rpc.name, rpc.step(at(9)))
    async with AsyncClient(script.address, reads=reads) as client:
        await rpc.call(client)
        await rpc.call(client)
        assert client.position == at(9)
    expected = {"session": ["latest", at(9)]}.get(reads, [reads, reads])
    assert list(map(required, script.requests)) == expected


@EACH_WRITE
async def test_read_after_a_write_requires_its_position(
    script: Script, session: AsyncClient, rpc: Rpc
) -> None:
    script.play(rpc.name, rpc.step(at(9)))
    script.play("Get", found(8))
    result = await rpc.call(session)
    assert getattr(result, "position", at(9)) == at(9)
    await session.get("x")
    assert required(script.requests[-1]) == at(9)
    assert session.position == at(9), "an older answer changes nothing"


async def test_results_have_the_position_of_their_response(
    script: Script, session: AsyncClient
) -> None:
    script.play("Save", saved(1))
    script.play("BatchGet", answer(storage_pb2.BatchGetResponse(position=at(2))))
    script.play("List", answer(storage_pb2.ListResponse(position=at(3))))
    script.play("Search", answer(storage_pb2.SearchResponse(position=at(4))))
    script.play("ListSessions", answer(session_pb2.ListSessionsResponse(position=at(5))))
    script.play("ListFiles", answer(file_pb2.ListFilesResponse(position=at(6))))
    script.play("Export", streamed(storage_pb2.ExportResponse(position=at(7))))
    results: list[Any] = [
        await session.save(HELLO),
        await session.batch_get(["x"]),
        await session.list("s").page(),
        await session.search("w").page(),
        await session.sessions.list().page(),
        await session.files.list().page(),
        *[batch async for batch in session.export_batches()],
    ]
    assert [result.position for result in results] == [at(lsn) for lsn in range(1, 8)]


async def test_bulk_save_has_the_newest_position_of_its_batches(
    script: Script, session: AsyncClient
) -> None:
    script.play("BulkSave", acknowledged(5, 9, 7))
    messages = [Message("p", "r", str(n)) for n in range(3)]
    stream = session.bulk_save_stream(messages, batch_size=1, max_in_flight=1)
    acks = [ack.position async for ack in stream]
    assert acks == [at(5), at(9), at(7)]
    assert session.position == at(9)
    script.play("BulkSave", acknowledged(15, 19, 17))
    result = await session.bulk_save(messages, batch_size=1, max_in_flight=1)
    assert result.position == session.position == at(19)


async def test_repeated_save_has_the_position_of_the_answer(
    script: Script, session: AsyncClient
) -> None:
    script.play("Save", unavailable(), saved(6))
    assert (await session.save(HELLO)).position == session.position == at(6)


async def test_each_page_requires_the_position_of_the_page_before(
    script: Script, session: AsyncClient
) -> None:
    pages = [
        storage_pb2.ListResponse(next_page_token="1", position=at(4)),
        storage_pb2.ListResponse(next_page_token="2", position=at(6)),
        storage_pb2.ListResponse(position=at(5)),
    ]
    script.play("List", *map(answer, pages))
    assert [page.position async for page in session.list("s").pages()] == [at(4), at(6), at(5)]
    assert list(map(required, script.requests)) == ["latest", at(4), at(6)]


async def test_each_page_has_the_requirement_of_the_caller(
    script: Script, session: AsyncClient
) -> None:
    pages = [storage_pb2.ListResponse(next_page_token=token) for token in ("1", "")]
    script.play("List", *map(answer, pages))
    await items(session.list("s", consistency="any_replica"))
    assert list(map(required, script.requests)) == ["any_replica", "any_replica"]


async def test_blocking_client_shares_positions_between_threads(script: Script) -> None:
    script.play("Save", saved(9))
    script.play("Get", found(10))

    def use() -> None:
        with Client(script.address, reads="session") as client:
            assert client.save(HELLO).position == client.position == at(9)
            other = asyncio.run(asyncio.to_thread(client.get, "x"))
            assert other.id == "x"
            client.observe(at(12))
            client.get("x")
            assert client.position == at(12)

    await asyncio.to_thread(use)
    assert requirements(script, storage_pb2.GetRequest) == [at(9), at(12)]


async def test_position_is_handed_over_to_another_client(script: Script) -> None:
    script.play("Save", saved(9))
    script.play("Get", found(5))
    async with AsyncClient(script.address) as one, AsyncClient(script.address) as other:
        await one.save(HELLO)
        await other.get("x", consistency=one.position)
        assert other.position == at(5)
    async with AsyncClient(script.address, reads="session") as other:
        other.observe(one.position)
        await other.get("x")
    assert requirements(script, storage_pb2.GetRequest) == [at(9), at(9)]
