"""Calls that change or delete sessions, against a server with scripted failures."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from sagastore import (
    AbortedError,
    AlreadyExistsError,
    AsyncClient,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from sagastore.v1 import message_pb2, session_pb2
from tests.client.failing.scripted import Script, answer, hang, refuse, retry_info, unavailable
from tests.client.failing.session_steps import (
    EXISTS,
    MOVED,
    NOT_FOUND,
    OVERLOADED,
    REFUSALS,
    with_revision,
)

Code = grpc.StatusCode

# Update


UPDATED = answer(
    session_pb2.UpdateSessionResponse(session=session_pb2.Session(session_id="s", revision=3))
)


@pytest.mark.parametrize(
    ("values", "paths"),
    [
        ({"title": "t"}, ["title"]),
        ({"title": ""}, ["title"]),
        ({"metadata": {}}, ["metadata_json"]),
        ({"title": "t", "metadata": {"a": 1}}, ["title", "metadata_json"]),
    ],
)
async def test_update_changes_only_what_is_given(
    script: Script, client: AsyncClient, values: dict[str, Any], paths: list[str]
) -> None:
    script.play("UpdateSession", unavailable(), UPDATED)
    session = await client.sessions.update("s", **values)
    assert session.revision == 3
    request = script.requests[0]
    assert list(request.update_mask.paths) == paths
    assert request.session.session_id == "s"
    assert request.session.title == values.get("title", "")
    assert request.session.metadata_json == ('{"a":1}' if values.get("metadata") else "")
    assert not request.HasField("if_revision")


async def test_update_without_values_creates_and_never_clears(
    script: Script, client: AsyncClient
) -> None:
    script.play("UpdateSession", UPDATED)
    await client.sessions.update("s")
    (request,) = script.requests
    assert (list(request.update_mask.paths), request.if_revision) == (["title", "metadata_json"], 0)
    assert request.HasField("if_revision"), "without it, an existing title would be cleared"
    script.play("UpdateSession", unavailable(), EXISTS)
    script.play("GetSession", with_revision(5))
    assert (await client.sessions.update("s")).revision == 5
    script.play("UpdateSession", EXISTS)
    with pytest.raises(AlreadyExistsError):
        await client.sessions.update("s", if_revision=0)
    with pytest.raises(InvalidArgumentError, match="neither title nor metadata"):
        await client.sessions.update("s", if_revision=7)


@REFUSALS
async def test_refused_retry_of_an_update_is_explained(
    script: Script, client: AsyncClient, if_revision: int, refusal: Any, kind: type[Exception]
) -> None:
    script.play("UpdateSession", unavailable(), refusal)
    with pytest.raises(kind, match="an earlier attempt of this call may have changed the session"):
        await client.sessions.update("s", title="t", if_revision=if_revision)
    script.play("UpdateSession", refusal)
    with pytest.raises(kind) as caught:
        await client.sessions.update("s", title="t", if_revision=if_revision)
    assert "attempt" not in str(caught.value)


# Truncate


def truncated(*contents: str) -> Any:
    response = session_pb2.TruncateSessionResponse(
        removed=[message_pb2.Message(content=content) for content in contents],
        session=session_pb2.Session(session_id="s", revision=6),
    )
    return answer(response)


async def test_truncation_returns_the_removed_messages(script: Script, client: AsyncClient) -> None:
    script.play("TruncateSession", truncated("a", "b"))
    result = await client.sessions.truncate("s", drop_last=2, if_revision=5)
    assert [m.content for m in result.removed] == ["a", "b"]
    assert (result.session.revision, result.complete) == (6, True)
    request = script.requests[0]
    assert (request.drop_last, request.keep_through, request.if_revision) == (2, "", 5)
    await client.sessions.truncate("s", keep_through="m")
    request = script.requests[1]
    assert (request.drop_last, request.keep_through) == (0, "m")
    assert not request.HasField("if_revision")


@pytest.mark.parametrize("values", [{}, {"drop_last": 1, "keep_through": "m"}])
async def test_truncation_needs_exactly_one_bound(
    script: Script, client: AsyncClient, values: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError, match="exactly one of drop_last and keep_through"):
        await client.sessions.truncate("s", **values)
    assert not script.requests


async def test_drop_last_is_not_repeated_after_an_ambiguous_failure(
    script: Script, client: AsyncClient
) -> None:
    script.play("TruncateSession", unavailable(), truncated("a"))
    with pytest.raises(UnavailableError, match="the messages may have been removed"):
        await client.sessions.truncate("s", drop_last=1)
    assert len(script.requests) == 1
    script.play("TruncateSession", hang())
    # The client is connected by now.
    with pytest.raises(DeadlineExceededError, match="read the session before you call again"):
        await client.sessions.truncate("s", drop_last=1, timeout=0.3)


@pytest.mark.parametrize(
    "step",
    [
        OVERLOADED,
        refuse(Code.UNAVAILABLE, "draining", retry_info(0), reason="SERVER_DRAINING"),
    ],
)
async def test_drop_last_is_repeated_after_a_failure_without_effect(
    script: Script, client: AsyncClient, step: Any
) -> None:
    script.play("TruncateSession", step, truncated("a"))
    result = await client.sessions.truncate("s", drop_last=1)
    assert (len(result.removed), result.complete) == (1, True)


async def test_guarded_truncation_is_repeated(script: Script, client: AsyncClient) -> None:
    script.play("TruncateSession", unavailable(), truncated("a"))
    result = await client.sessions.truncate("s", drop_last=1, if_revision=5)
    assert result.complete, "the guard held, so the first attempt had no effect"
    for refusal, kind in ((MOVED, AbortedError), (NOT_FOUND, NotFoundError)):
        script.play("TruncateSession", unavailable(), refusal)
        with pytest.raises(kind, match="an earlier attempt of this call may have removed messages"):
            await client.sessions.truncate("s", drop_last=1, if_revision=5)
        script.play("TruncateSession", refusal)
        with pytest.raises(kind) as caught:
            await client.sessions.truncate("s", drop_last=1, if_revision=5)
        assert "attempt" not in str(caught.value)


async def test_repeated_keep_through_says_that_messages_may_be_missing(
    script: Script, client: AsyncClient
) -> None:
    script.play("TruncateSession", unavailable(), truncated())
    result = await client.sessions.truncate("s", keep_through="m")
    assert (result.removed, result.complete) == ((), False)


# Delete


async def test_delete_returns_the_number_of_messages(script: Script, client: AsyncClient) -> None:
    done = answer(session_pb2.DeleteSessionResponse(deleted_messages=1234))
    script.play("DeleteSession", unavailable(), done)
    assert await client.sessions.delete("s", if_revision=4) == 1234
    assert script.requests[0].if_revision == 4


async def test_retried_delete_that_finds_nothing_succeeds(
    script: Script, client: AsyncClient
) -> None:
    script.play("DeleteSession", unavailable(), NOT_FOUND)
    assert await client.sessions.delete("s") == 0
    script.play("DeleteSession", NOT_FOUND)
    with pytest.raises(NotFoundError):
        await client.sessions.delete("s")


async def test_refused_retry_of_a_delete_is_explained(script: Script, client: AsyncClient) -> None:
    script.play("DeleteSession", unavailable(), MOVED)
    with pytest.raises(AbortedError, match="may have begun the deletion"):
        await client.sessions.delete("s", if_revision=4)


async def test_deletion_has_a_long_timeout(script: Script) -> None:
    left: list[float] = []

    async def note(_: Any, context: Any) -> Any:
        left.append(context.time_remaining())
        return session_pb2.DeleteSessionResponse()

    script.play("DeleteSession", note)
    async with AsyncClient(script.address, timeout=3) as client:
        await client.sessions.delete("s")
        await client.sessions.delete("s", timeout=20)
    assert 500 < left[0] <= 601
    assert left[1] < 22
