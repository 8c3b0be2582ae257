"""Calls about sessions against a server with scripted failures."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from sagastore import (
    AbortedError,
    AlreadyExistsError,
    AsyncClient,
    Client,
    Durability,
    InvalidArgumentError,
    Message,
    Session,
    Store,
    UnimplementedError,
)
from sagastore.v1 import session_pb2, storage_pb2
from tests.client.failing.scripted import (
    Script,
    answer,
    refuse,
    unavailable,
)
from tests.client.failing.session_steps import EXISTS, MOVED, OVERLOADED, REFUSALS, with_revision

Code = grpc.StatusCode
TURN = [
    Message("openai", "user", "question", metadata={"a": 1.5}),
    Message("openai", "assistant", "answer", id="chosen"),
]


def appended(*, created: bool = True, revision: int = 9) -> Any:
    """Respond as the server does when all messages are stored."""

    async def step(request: session_pb2.AppendRequest, _: Any) -> session_pb2.AppendResponse:
        response = session_pb2.AppendResponse(
            session=session_pb2.Session(session_id=request.session_id, revision=revision),
            durable_on=[storage_pb2.STORE_SQLITE],
        )
        for number, message in enumerate(request.messages):
            response.saved.add(
                id=message.id, revision=8 + number, sequence=20 + number, created=created
            )
        return response

    return step


def stored(script: Script, **changes: Any) -> Any:
    """Respond with the messages of the first append, revisions 8 and 9; the last one changed."""

    async def step(request: storage_pb2.BatchGetRequest, _: Any) -> storage_pb2.BatchGetResponse:
        response = storage_pb2.BatchGetResponse()
        sent = script.requests[0].messages
        assert list(request.ids) == [message.id for message in sent]
        for number, message in enumerate(sent):
            copy = response.messages.add()
            copy.CopyFrom(message)
            copy.session_id = "s"
            copy.timestamp.seconds = 5
            copy.revision, copy.sequence = 8 + number, 20 + number
        for name, value in changes.items():
            setattr(response.messages[-1], name, value)
        return response

    return step


# Append


async def test_append_sends_ids_and_the_session(script: Script, client: AsyncClient) -> None:
    script.play("Append", unavailable(), appended(created=False))
    result = await client.sessions.append("s", iter(TURN), durability=Durability.BOTH)
    first, second = script.requests
    assert first == second, "each attempt must carry the same ids"
    assert [m.content for m in first.messages] == ["question", "answer"]
    assert {m.session_id for m in first.messages} == {"s"}
    assert first.messages[1].id == "chosen"
    assert len(first.messages[0].id) == 36
    assert (first.durability, first.HasField("if_revision")) == (2, False)
    assert [s.id for s in result.saved] == [first.messages[0].id, "chosen"]
    assert [(s.revision, s.sequence) for s in result.saved] == [(8, 20), (9, 21)]
    assert [s.created for s in result.saved] == [True, False], "the first id was new for certain"
    assert result.durable_on == {Store.SQLITE}
    assert (result.session.session_id, result.session.revision) == ("s", 9)


async def test_append_accepts_names_of_enumerations(script: Script, client: AsyncClient) -> None:
    script.play("Append", appended())
    await client.sessions.append("s", TURN, durability="both")
    assert script.requests[0].durability == storage_pb2.DURABILITY_BOTH
    with pytest.raises(InvalidArgumentError, match="durability: 'all' is not one of primary, both"):
        await client.sessions.append("s", TURN, durability="all")


@REFUSALS
async def test_guarded_append_recognizes_its_own_write(
    script: Script, client: AsyncClient, if_revision: int, refusal: Any, kind: type[Exception]
) -> None:
    del kind
    script.play("Append", unavailable(), refusal, appended(created=False))
    script.play("BatchGet", stored(script))
    script.play("GetSession", with_revision(9))
    result = await client.sessions.append("s", TURN, if_revision=if_revision)
    assert script.requests[-1].if_revision == 9, "the stores are read under the revision found"
    assert result.session.revision == 9
    assert [s.created for s in result.saved] == [True, False]


@pytest.mark.parametrize("change", [{"content": "of another"}, {"session_id": "other"}])
async def test_guarded_append_does_not_claim_another_turn(
    script: Script, client: AsyncClient, change: dict[str, str]
) -> None:
    script.play("Append", unavailable(), EXISTS)
    script.play("BatchGet", stored(script, **change))
    script.play("GetSession", with_revision(9))
    with pytest.raises(AlreadyExistsError, match="attempt of this call may have stored"):
        await client.sessions.append("s", TURN, if_revision=0)


@REFUSALS
async def test_session_that_has_moved_on_is_not_claimed(
    script: Script, client: AsyncClient, if_revision: int, refusal: Any, kind: type[Exception]
) -> None:
    """Its revision covers a change that the caller has not seen."""
    script.play("Append", unavailable(), refusal)
    script.play("BatchGet", stored(script))
    script.play("GetSession", with_revision(10))
    with pytest.raises(kind):
        await client.sessions.append("s", TURN, if_revision=if_revision)


async def test_missing_message_is_not_claimed(script: Script, client: AsyncClient) -> None:
    script.play("Append", unavailable(), MOVED)
    script.play("BatchGet", answer(storage_pb2.BatchGetResponse(missing_ids=["a", "chosen"])))
    with pytest.raises(AbortedError):
        await client.sessions.append("s", TURN, if_revision=4)


async def test_overtaken_confirmation_is_aborted(script: Script, client: AsyncClient) -> None:
    script.play("Append", unavailable(), MOVED)
    script.play("BatchGet", stored(script))
    script.play("GetSession", with_revision(9))
    with pytest.raises(AbortedError):
        await client.sessions.append("s", TURN, if_revision=4)


@pytest.mark.parametrize("steps", [(MOVED,), (OVERLOADED,)])
async def test_refusal_without_earlier_effect_is_raised(
    script: Script, client: AsyncClient, steps: tuple[Any, ...]
) -> None:
    script.play("Append", *steps, MOVED)
    with pytest.raises(AbortedError) as caught:
        await client.sessions.append("s", TURN, if_revision=4)
    assert str(caught.value) == "the revision is another"
    assert not any(isinstance(r, storage_pb2.BatchGetRequest) for r in script.requests)


async def test_invalid_message_of_a_turn_is_named(script: Script, client: AsyncClient) -> None:
    bad = Message("openai", "user", "x", metadata={"a": float("nan")})
    with pytest.raises(InvalidArgumentError, match=r"^messages\[1\]\.metadata") as caught:
        await client.sessions.append("s", [TURN[0], bad])
    assert caught.value.violations[0].field == "messages[1].metadata"
    with pytest.raises(InvalidArgumentError, match=r"^messages\[0\]\.content"):
        await client.sessions.append("s", [Message("openai", "user", "\ud800")])
    with pytest.raises(TypeError, match=r"messages\[0\]: expected a Message, got str"):
        await client.sessions.append("s", ["hello"])  # type: ignore[list-item]
    assert not script.requests


# Get and list


async def test_session_has_every_field(script: Script, client: AsyncClient) -> None:
    pb = session_pb2.Session(
        session_id="s",
        title="t",
        metadata_json='{"a": 1.50}',
        message_count=2,
        revision=9,
        providers=["anthropic", "openai"],
        first_message="hello",
        last_sequence=7,
    )
    pb.first_time.seconds, pb.last_time.seconds = 1, 2
    pb.created_at.seconds, pb.updated_at.nanos = 3, 5000
    script.play("GetSession", unavailable(), answer(session_pb2.GetSessionResponse(session=pb)))
    session = await client.sessions.get("s")
    assert session == Session(
        session_id="s",
        title="t",
        metadata={"a": 1.5},
        message_count=2,
        first_time=datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
        last_time=datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC),
        created_at=datetime(1970, 1, 1, 0, 0, 3, tzinfo=UTC),
        updated_at=datetime(1970, 1, 1, 0, 0, 0, 5, tzinfo=UTC),
        revision=9,
        providers=("anthropic", "openai"),
        first_message="hello",
        last_sequence=7,
    )
    assert {session: 1}[session] == 1
    script.play("GetSession", answer(session_pb2.GetSessionResponse()))
    empty = await client.sessions.get("")
    assert (empty.first_time, empty.created_at, empty.metadata) == (None, None, {})


def pages(request: session_pb2.ListSessionsRequest) -> session_pb2.ListSessionsResponse:
    ids, token = {"": ("ab", "1"), "1": ("", "2"), "2": ("c", "")}[request.page_token]
    found = [session_pb2.Session(session_id=id) for id in ids]
    return session_pb2.ListSessionsResponse(sessions=found, next_page_token=token)


async def test_sessions_are_listed_in_pages(script: Script, client: AsyncClient) -> None:
    async def step(request: session_pb2.ListSessionsRequest, _: Any) -> Any:
        return pages(request)

    script.play("ListSessions", step)
    start = datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC)
    pager = client.sessions.list(
        oldest_first=True,
        start_time=start,
        end_time=start,
        metadata={"a": 1},
        provider="openai",
        title_prefix="T",
        page_size=2,
    )
    assert [s.session_id async for s in pager] == ["a", "b", "c"]
    assert [p.next_page_token async for p in pager.pages()] == ["1", "2", ""]
    request = script.requests[0]
    assert (request.start_time.seconds, request.start_time.nanos) == (1, 5000)
    assert request.end_time == request.start_time
    assert (request.oldest_first, request.page_size) == (True, 2)
    assert (request.metadata_json, request.provider, request.title_prefix) == (
        '{"a":1}',
        "openai",
        "T",
    )
    script.requests.clear()
    assert [s.session_id async for s in client.sessions.list(page_token="2")] == ["c"]
    assert not script.requests[0].HasField("start_time")
    with pytest.raises(InvalidArgumentError, match="start_time"):
        client.sessions.list(start_time=datetime(2026, 1, 1))  # noqa: DTZ001


async def test_pager_limit_and_first_fetch_no_further_page(
    script: Script, client: AsyncClient
) -> None:
    async def step(request: session_pb2.ListSessionsRequest, _: Any) -> Any:
        return pages(request)

    script.play("ListSessions", step)
    pager = client.sessions.list()
    for count, requests in [(0, 0), (1, 1), (2, 1), (3, 3), (9, 3)]:
        script.requests.clear()
        assert [s.session_id async for s in pager.limit(count)] == [*"abc"[:count]]
        assert len(script.requests) == requests
    script.requests.clear()
    first = await pager.first()
    assert first is not None
    assert first.session_id == "a"
    last = await client.sessions.list(page_token="1").first()
    assert last is not None
    assert last.session_id == "c", "an empty page is not the end"
    script.play("ListSessions", answer(session_pb2.ListSessionsResponse()))
    assert await pager.first() is None


async def test_blocking_client_has_the_same_calls(script: Script) -> None:
    async def step(request: session_pb2.ListSessionsRequest, _: Any) -> Any:
        return pages(request)

    script.play("ListSessions", step)
    script.play("Append", appended())
    script.play("DeleteSession", answer(session_pb2.DeleteSessionResponse(deleted_messages=3)))

    def use() -> None:
        with Client(script.address) as client:
            assert len(client.sessions.append("s", iter(TURN)).saved) == 2
            pager = client.sessions.list()
            assert [s.session_id for s in pager] == ["a", "b", "c"]
            assert [s.session_id for s in pager.limit(1)] == ["a"]
            first = pager.first()
            assert first is not None
            assert first.session_id == "a"
            assert client.sessions.delete("s") == 3

    await asyncio.to_thread(use)


# Metadata of calls


async def test_token_is_sent_with_calls_about_sessions(script: Script) -> None:
    script.play("GetSession", with_revision(1))
    async with AsyncClient(script.address, token="one") as client:
        await client.sessions.get("s")
    assert script.metadata[0]["authorization"] == "Bearer one"


async def test_server_without_the_service_is_reported(script: Script, client: AsyncClient) -> None:
    script.play("GetSession", refuse(Code.UNIMPLEMENTED, "Method not found!"))
    with pytest.raises(UnimplementedError):
        await client.sessions.get("s")
