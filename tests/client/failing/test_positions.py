"""Positions of responses and requirements of reads, against a scripted server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, NamedTuple

import grpc
import pytest
from google.rpc import error_details_pb2

from sagastore import (
    AbortedError,
    AlreadyExistsError,
    AsyncClient,
    Client,
    Consistency,
    File,
    InvalidArgumentError,
    Message,
    SagaStoreError,
    UnavailableError,
)
from sagastore.v1 import file_pb2, message_pb2, session_pb2, storage_pb2
from sagastore_server.interfaces.consistency import WalPosition
from tests.client.failing.scripted import QUICK, Script, Step, answer, hang, refuse, unavailable

Code = grpc.StatusCode
HELLO = Message("openai", "user", "hello", id="x")
SYSTEM = 7_400_000_000_000_000_001


def at(lsn: int, timeline: int = 1, system: int = SYSTEM) -> str:
    return WalPosition(system, timeline, lsn).encoded()


def refused_position() -> Step:
    violation = error_details_pb2.BadRequest.FieldViolation(
        field="consistency.at_least", description="belongs to another PostgreSQL system"
    )
    return refuse(
        Code.INVALID_ARGUMENT,
        "consistency.at_least: belongs to another PostgreSQL system",
        error_details_pb2.BadRequest(field_violations=[violation]),
    )


def saved(lsn: int) -> Step:
    return answer(storage_pb2.SaveResponse(id="x", revision=1, created=True, position=at(lsn)))


def found(lsn: int = 0) -> Step:
    message = message_pb2.Message(id="x", content="c")
    position = at(lsn) if lsn else ""
    return answer(storage_pb2.GetResponse(message=message, position=position))


def streamed(*responses: Any) -> Step:
    async def step(_: Any, __: Any) -> Any:
        async def stream() -> AsyncIterator[Any]:
            for response in responses:
                yield response

        return stream()

    return step


def acknowledged(*lsns: int) -> Step:
    """Acknowledge each batch of a bulk save, with these positions in turn."""

    async def step(requests: Any, _: Any) -> Any:
        async def stream() -> AsyncIterator[Any]:
            places = iter(lsns)
            async for request in requests:
                yield storage_pb2.BulkSaveResponse(
                    sequence=request.sequence,
                    saved=len(request.messages),
                    position=at(place) if (place := next(places)) else "",
                )

        return stream()

    return step


@pytest.fixture
async def session(script: Script) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(script.address, retry=QUICK, reads="session") as client:
        yield client


def required(request: Any) -> str:
    """Return the requirement of a request as text."""
    kind = request.consistency.WhichOneof("requirement")
    if kind is None:
        return "latest"
    value: str = getattr(request.consistency, kind)
    return value if kind == "at_least" else kind


def requirements(script: Script, kind: type) -> list[str]:
    return [required(request) for request in script.requests if isinstance(request, kind)]


async def items(pager: Any) -> list[Any]:
    return [item async for item in pager]


class Rpc(NamedTuple):
    """A call of the protocol and the method that makes it."""

    name: str
    response: type[Any]
    call: Callable[..., Any]

    def step(self, position: str = "") -> Step:
        """Answer with this position."""
        response = self.response(position=position)
        return streamed(response) if self.name == "Export" else answer(response)


READS = [
    Rpc("Get", storage_pb2.GetResponse, lambda c, **k: c.get("x", **k)),
    Rpc("BatchGet", storage_pb2.BatchGetResponse, lambda c, **k: c.batch_get(["x"], **k)),
    Rpc("List", storage_pb2.ListResponse, lambda c, **k: items(c.list("s", **k))),
    Rpc("Search", storage_pb2.SearchResponse, lambda c, **k: items(c.search("w", **k))),
    Rpc("Export", storage_pb2.ExportResponse, lambda c, **k: items(c.export(**k))),
    Rpc("GetSession", session_pb2.GetSessionResponse, lambda c, **k: c.sessions.get("s", **k)),
    Rpc(
        "ListSessions",
        session_pb2.ListSessionsResponse,
        lambda c, **k: items(c.sessions.list(**k)),
    ),
    Rpc("GetFile", file_pb2.GetFileResponse, lambda c, **k: c.files.get("x", **k)),
    Rpc("ListFiles", file_pb2.ListFilesResponse, lambda c, **k: items(c.files.list(**k))),
]
WRITES = [
    Rpc("Save", storage_pb2.SaveResponse, lambda c: c.save(HELLO)),
    Rpc("Delete", storage_pb2.DeleteResponse, lambda c: c.delete("x")),
    Rpc("Append", session_pb2.AppendResponse, lambda c: c.sessions.append("s", [HELLO])),
    Rpc(
        "UpdateSession",
        session_pb2.UpdateSessionResponse,
        lambda c: c.sessions.update("s", title="t"),
    ),
    Rpc(
        "TruncateSession",
        session_pb2.TruncateSessionResponse,
        lambda c: c.sessions.truncate("s", drop_last=1),
    ),
    Rpc("DeleteSession", session_pb2.DeleteSessionResponse, lambda c: c.sessions.delete("s")),
    Rpc("SaveFile", file_pb2.SaveFileResponse, lambda c: c.files.save(File("f", "p", "t"))),
    Rpc("DeleteFile", file_pb2.DeleteFileResponse, lambda c: c.files.delete("x")),
]
EACH_READ = pytest.mark.parametrize("rpc", READS, ids=lambda rpc: rpc.name)
EACH_WRITE = pytest.mark.parametrize("rpc", WRITES, ids=lambda rpc: rpc.name)


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
    """After a move to another PostgreSQL system, the client reads the latest state and goes on."""
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
