"""Reads of a client that does not know what it has seen, or whose position is refused."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import Any

import grpc
import pytest

from sagastore import (
    AbortedError,
    AlreadyExistsError,
    AsyncClient,
    File,
    InvalidArgumentError,
    Message,
    SagaStoreError,
    UnavailableError,
)
from sagastore.v1 import file_pb2, message_pb2, session_pb2, storage_pb2
from tests.client.failing.positions import (
    EACH_READ,
    EACH_WRITE,
    HELLO,
    READS,
    SYSTEM,
    WRITES,
    Code,
    Rpc,
    acknowledged,
    at,
    found,
    refused_position,
    required,
    saved,
)
from tests.client.failing.scripted import QUICK, Script, answer, hang, refuse, unavailable


async def settled(script: Script, client: AsyncClient) -> list[str]:
    """Read twice; return what the two reads required."""
    script.play("Get", found(50))
    before = len(script.requests)
    await client.get("x")
    await client.get("x")
    return list(map(required, script.requests[before:]))


@pytest.mark.parametrize("rpc", [*READS, *WRITES], ids=lambda rpc: rpc.name)
async def test_read_after_an_answer_without_position_sees_the_latest_state(
    script: Script, session: AsyncClient, rpc: Rpc
) -> None:
    """The answer may hold a state that the known position does not cover."""
    script.play(rpc.name, rpc.step())
    session.observe(at(100))
    await rpc.call(session)
    assert session.position == ""
    assert await settled(script, session) == ["latest", at(100)]


@pytest.mark.parametrize("code", [Code.NOT_FOUND, Code.ABORTED, Code.ALREADY_EXISTS])
@pytest.mark.parametrize("rpc", [*READS[:1], *WRITES], ids=lambda rpc: rpc.name)
async def test_read_after_an_error_about_the_state_sees_the_latest_state(
    script: Script, session: AsyncClient, rpc: Rpc, code: grpc.StatusCode
) -> None:
    """For example: read again after ABORTED, which a replica may not know of."""
    script.play(rpc.name, refuse(code))
    session.observe(at(100))
    with pytest.raises(SagaStoreError):
        await rpc.call(session)
    assert await settled(script, session) == ["latest", at(100)]


@EACH_WRITE
async def test_read_after_a_write_that_may_have_happened_sees_the_latest_state(
    script: Script, session: AsyncClient, rpc: Rpc
) -> None:
    script.play(rpc.name, unavailable())
    session.observe(at(100))
    with pytest.raises(UnavailableError):
        await rpc.call(session)
    assert await settled(script, session) == ["latest", at(100)]


async def test_read_after_a_cancelled_write_sees_the_latest_state(
    script: Script, session: AsyncClient
) -> None:
    script.play("Save", hang())
    session.observe(at(100))
    saving = asyncio.ensure_future(session.save(HELLO))
    await script.asked.wait()
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert await settled(script, session) == ["latest", at(100)]


async def test_read_after_a_repeated_delete_sees_the_latest_state(
    script: Script, session: AsyncClient
) -> None:
    """The attempt that deleted the message had no response, so its position is not known."""
    script.play("Delete", unavailable(), refuse(Code.NOT_FOUND))
    session.observe(at(100))
    await session.delete("x")
    assert await settled(script, session) == ["latest", at(100)]


async def test_read_after_a_broken_bulk_save_sees_the_latest_state(
    script: Script, session: AsyncClient
) -> None:
    script.play("BulkSave", acknowledged(101, 102))
    session.observe(at(100))
    stream = session.bulk_save_stream([HELLO] * 2, batch_size=1, max_in_flight=2)
    async with aclosing(stream):
        async for _ in stream:
            break
    assert await settled(script, session) == ["latest", at(101)]


@pytest.mark.parametrize(
    ("places", "expected"), [((5, 0, 7), ""), ((5, 7, 0), ""), ((5, 7, 6), at(7))]
)
async def test_bulk_save_has_no_position_unless_it_covers_all_batches(
    script: Script, session: AsyncClient, places: tuple[int, ...], expected: str
) -> None:
    script.play("BulkSave", acknowledged(*places))
    result = await session.bulk_save([HELLO] * 3, batch_size=1, max_in_flight=1)
    assert result.position == session.position == expected


async def test_bulk_save_without_a_valid_message_leaves_the_position(
    script: Script, session: AsyncClient
) -> None:
    session.observe(at(100))
    invalid = Message("p", "r", None)  # type: ignore[arg-type]
    script.play("BulkSave", acknowledged(101))
    result = await session.bulk_save([HELLO, invalid], batch_size=1)
    assert result.position == session.position == at(101)


async def test_batch_get_has_no_position_unless_it_covers_all_parts(
    script: Script, session: AsyncClient
) -> None:
    parts = [storage_pb2.BatchGetResponse(position=position) for position in (at(3), "", at(4))]
    script.play("BatchGet", *map(answer, parts))
    assert (await session.batch_get(["x"] * 2001)).position == ""


@EACH_READ
async def test_refused_position_of_the_client_is_forgotten(
    script: Script, session: AsyncClient, caplog: pytest.LogCaptureFixture, rpc: Rpc
) -> None:
    """After a move to another PostgreSQL, the client reads the latest state and continues."""
    moved = at(3, system=SYSTEM + 1)
    script.play(rpc.name, refused_position(), rpc.step(moved))
    session.observe(at(100))
    with caplog.at_level(logging.WARNING, "sagastore"):
        await rpc.call(session)
    assert list(map(required, script.requests)) == [at(100), "latest"]
    assert "refuses the position that this client has seen" in caplog.text
    await rpc.call(session)
    assert required(script.requests[-1]) == session.position == moved


async def test_position_that_is_refused_again_and_again_ends_the_read(
    script: Script, session: AsyncClient
) -> None:
    script.play("Get", refused_position())
    session.observe(at(100))
    with pytest.raises(InvalidArgumentError):
        await session.get("x")
    assert len(script.requests) == 2


@EACH_READ
async def test_refused_position_of_the_caller_is_an_error(
    script: Script, session: AsyncClient, rpc: Rpc
) -> None:
    script.play(rpc.name, refused_position())
    session.observe(at(100))
    with pytest.raises(InvalidArgumentError, match="another PostgreSQL system"):
        await rpc.call(session, consistency=at(100))
    assert len(script.requests) == 1
    assert session.position == at(100)


async def test_other_invalid_argument_keeps_the_position(
    script: Script, session: AsyncClient
) -> None:
    script.play("Get", refuse(Code.INVALID_ARGUMENT, "id: is too long"))
    session.observe(at(100))
    with pytest.raises(InvalidArgumentError, match="id: is too long"):
        await session.get("x")
    assert len(script.requests) == 1
    assert session.position == at(100)


async def test_position_that_no_server_has_reached_is_waited_for(
    script: Script, session: AsyncClient
) -> None:
    script.play("Get", unavailable(), unavailable(), found(100))
    session.observe(at(100))
    await session.get("x")
    assert list(map(required, script.requests)) == [at(100)] * 3
    script.play("Get", unavailable())
    with pytest.raises(UnavailableError):
        await session.get("x")
    assert session.position == at(100), "no weaker read without the caller's consent"


async def test_position_that_arrives_during_a_refused_read_is_kept(
    script: Script, session: AsyncClient
) -> None:
    async def overtaken(request: Any, context: Any) -> Any:
        session.observe(at(1, system=SYSTEM + 1))
        return await refused_position()(request, context)

    script.play("Get", overtaken, refuse(Code.INVALID_ARGUMENT, "id: is too long"))
    session.observe(at(100))
    with pytest.raises(InvalidArgumentError, match="id: is too long"):
        await session.get("x")
    assert session.position == at(1, system=SYSTEM + 1)


@pytest.mark.parametrize("reads", ["session", "any_replica"])
async def test_lost_answer_is_confirmed_by_the_latest_state(script: Script, reads: str) -> None:
    """A replica may not have the write that refuses its own repetition."""
    stored = message_pb2.Message(
        id="x", provider="openai", role="user", content="hello", revision=7, session_id="s"
    )
    plain = message_pb2.Message()
    plain.CopyFrom(stored)
    plain.ClearField("session_id")
    script.play("Save", unavailable(), refuse(Code.ALREADY_EXISTS), saved(9))
    script.play("Get", answer(storage_pb2.GetResponse(message=plain)))
    script.play("Append", unavailable(), refuse(Code.ABORTED))
    script.play("BatchGet", answer(storage_pb2.BatchGetResponse(messages=[stored])))
    script.play("GetSession", answer(session_pb2.GetSessionResponse()))
    script.play("SaveFile", unavailable(), refuse(Code.ALREADY_EXISTS))
    script.play("GetFile", answer(file_pb2.GetFileResponse()))
    script.play("UpdateSession", refuse(Code.ALREADY_EXISTS))
    async with AsyncClient(script.address, retry=QUICK, reads=reads) as client:
        client.observe(at(5))
        assert (await client.save(HELLO, if_revision=0)).position == at(9)
        with pytest.raises(AbortedError):
            await client.sessions.append("s", [HELLO], if_revision=3)
        with pytest.raises(AlreadyExistsError):
            await client.files.save(File("f", "p", "t"), if_revision=0)
        await client.sessions.update("s")
    asked = [request for request in script.requests if hasattr(request, "consistency")]
    assert len(asked) == 5
    assert set(map(required, asked)) == {"latest"}
