"""Single calls that fail, against a server that fails exactly so."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from sagastore import (
    AbortedError,
    AlreadyExistsError,
    AsyncClient,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    Message,
    NotFoundError,
    Phase,
    ResourceExhaustedError,
    RetryPolicy,
    SagaStoreError,
    Store,
    UnavailableError,
    UnimplementedError,
)
from sagastore.v1 import message_pb2, migration_pb2, storage_pb2
from tests.client.failing.scripted import (
    QUICK,
    Script,
    answer,
    at_phase,
    hang,
    refuse,
    retry_info,
    serve,
    unavailable,
)

Code = grpc.StatusCode
HELLO = Message("openai", "user", "hello", metadata={"a": 1.5})
NOT_FOUND = refuse(Code.NOT_FOUND, "no message has the id 'x'")
FOUND = answer(storage_pb2.GetResponse(message=message_pb2.Message(id="x", content="c")))


def saved(revision: int = 1, *, created: bool = True) -> Any:
    return answer(
        storage_pb2.SaveResponse(
            id="x", revision=revision, created=created, durable_on=[storage_pb2.STORE_SQLITE]
        )
    )


async def test_repeats_what_is_unavailable(script: Script, client: AsyncClient) -> None:
    script.play("Save", unavailable(), unavailable(None), saved(created=False))
    result = await client.save(HELLO)
    sent = [request.message.id for request in script.requests]
    assert len(sent) == 3
    assert len(set(sent)) == 1, "each attempt must carry the same id"
    assert result.created, "the id was new, whatever the last answer says"
    assert result.durable_on == {Store.SQLITE}


async def test_waits_as_long_as_the_server_says(script: Script, client: AsyncClient) -> None:
    script.play("Get", unavailable(0.3), FOUND)
    start = time.monotonic()
    await client.get("x")
    assert time.monotonic() - start >= 0.3


async def test_gives_up_after_the_last_attempt(script: Script, client: AsyncClient) -> None:
    script.play("Get", unavailable())
    with pytest.raises(UnavailableError, match="the store is down") as caught:
        await client.get("x")
    assert len(script.requests) == QUICK.max_attempts
    assert caught.value.retry_after == 0
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


async def test_no_retries_when_none_are_wanted(script: Script) -> None:
    script.play("Get", unavailable(), FOUND)
    async with AsyncClient(script.address, retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(UnavailableError):
            await client.get("x")


async def test_overload_is_repeated_and_size_is_not(script: Script, client: AsyncClient) -> None:
    overloaded = refuse(Code.RESOURCE_EXHAUSTED, "overloaded", retry_info(0))
    script.play("Get", overloaded, FOUND)
    await client.get("x")
    script.play("Save", refuse(Code.RESOURCE_EXHAUSTED, "the request is too large"))
    script.requests.clear()
    with pytest.raises(ResourceExhaustedError, match="too large") as caught:
        await client.save(HELLO)
    assert caught.value.too_large
    assert len(script.requests) == 1


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.FAILED_PRECONDITION, Code.NOT_FOUND])
async def test_other_errors_are_not_repeated(
    script: Script, client: AsyncClient, code: grpc.StatusCode
) -> None:
    script.play("Get", refuse(code), FOUND)
    with pytest.raises(SagaStoreError):
        await client.get("x")
    assert len(script.requests) == 1


async def test_the_timeout_is_for_all_attempts(script: Script, client: AsyncClient) -> None:
    script.play("Get", unavailable(0.2), unavailable(0.2), hang())
    # Long enough for a busy machine to come to the third attempt, which alone would hang
    # for ever: that it is given up shows that the time of the others was counted.
    with pytest.raises(DeadlineExceededError, match=r"no response .* the store is down"):
        await client.get("x", timeout=4)
    assert len(script.requests) == 3


async def test_a_wait_beyond_the_timeout_is_not_begun(script: Script, client: AsyncClient) -> None:
    script.play("Get", unavailable(30))
    start = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        await client.get("x", timeout=5)
    assert time.monotonic() - start < 4
    assert caught.value.retry_after == 30


async def test_the_server_learns_the_time_that_is_left(script: Script, client: AsyncClient) -> None:
    left: list[float] = []

    async def note(_: Any, context: Any) -> Any:
        left.append(context.time_remaining())
        await unavailable(1.0)(_, context)

    script.play("Get", note, note, FOUND)
    await client.get("x", timeout=9)
    # gRPC rounds timeouts up on their way.
    assert 1 < left[1] < left[0] - 0.5 < 9


async def test_cancelling_a_task_cancels_its_call(script: Script, client: AsyncClient) -> None:
    ended = asyncio.Event()

    async def wait(_: Any, __: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    script.play("Get", wait)
    task = asyncio.create_task(client.get("x"))
    await script.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(ended.wait(), 10)


async def test_closing_the_client_ends_its_calls(script: Script, client: AsyncClient) -> None:
    script.play("Get", hang())
    task = asyncio.create_task(client.get("x"))
    await script.asked.wait()
    await client.close()
    with pytest.raises(SagaStoreError, match="Get: the client was closed during the call"):
        await task
    with pytest.raises(RuntimeError, match="the client is closed"):
        await client.get("x")
    await client.close()


# Guarded saves: what a repeated attempt finds may be its own work.


def stored(**changes: Any) -> Any:
    """Answer with what the save under way sent, changed."""

    async def step(request: storage_pb2.GetRequest, _: Any) -> storage_pb2.GetResponse:
        message = message_pb2.Message(
            id=request.id,
            provider="openai",
            role="user",
            content="hello",
            metadata_json='{"a": 1.50}',
            revision=9,
        )
        message.timestamp.seconds = 5
        for name, value in changes.items():
            setattr(message, name, value)
        return storage_pb2.GetResponse(message=message)

    return step


EXISTS = refuse(Code.ALREADY_EXISTS, "the id exists")
MOVED = refuse(Code.ABORTED, "the revision is another")


@pytest.mark.parametrize(("if_revision", "refusal"), [(0, EXISTS), (4, MOVED)])
async def test_a_guarded_save_recognizes_its_own_work(
    script: Script, client: AsyncClient, if_revision: int, refusal: Any
) -> None:
    script.play("Save", unavailable(), refusal, saved(9, created=False))
    script.play("Get", stored())
    result = await client.save(HELLO, if_revision=if_revision)
    assert (result.revision, result.created) == (9, if_revision == 0)
    assert result.durable_on == {Store.SQLITE}
    assert script.requests[-1].if_revision == 9


@pytest.mark.parametrize("get", [stored(content="of another"), stored(metadata_json=""), NOT_FOUND])
async def test_a_guarded_save_does_not_take_the_work_of_others_for_its_own(
    script: Script, client: AsyncClient, get: Any
) -> None:
    script.play("Save", unavailable(), EXISTS)
    script.play("Get", get)
    with pytest.raises(AlreadyExistsError):
        await client.save(HELLO, if_revision=0)


async def test_a_guarded_save_that_was_overtaken(script: Script, client: AsyncClient) -> None:
    script.play("Save", unavailable(), MOVED)
    script.play("Get", stored())
    with pytest.raises(AbortedError):
        await client.save(HELLO, if_revision=4)


async def test_a_first_refusal_is_a_refusal(script: Script, client: AsyncClient) -> None:
    script.play("Save", EXISTS)
    with pytest.raises(AlreadyExistsError):
        await client.save(HELLO, if_revision=0)
    assert len(script.requests) == 1
    overloaded = refuse(Code.RESOURCE_EXHAUSTED, "overloaded", retry_info(0))
    script.play("Save", overloaded, EXISTS)
    with pytest.raises(AlreadyExistsError):
        await client.save(HELLO, if_revision=0)
    assert len(script.requests) == 3, "nothing to look up: the first attempt was turned away"


async def test_a_repeated_delete_that_finds_nothing_has_succeeded(
    script: Script, client: AsyncClient
) -> None:
    script.play("Delete", unavailable(), NOT_FOUND)
    await client.delete("x")
    script.play("Delete", NOT_FOUND)
    with pytest.raises(NotFoundError):
        await client.delete("x")


async def test_a_repeated_change_of_phase(script: Script, client: AsyncClient) -> None:
    done = answer(migration_pb2.ChangePhaseResponse(migration=at_phase(2)))
    script.play("ChangePhase", unavailable(), done)
    now = await client.migration.change_phase(Phase.DUAL_WRITE)
    assert now.phase is Phase.DUAL_WRITE
    assert len(script.requests) == 2
    script.play("ChangePhase", unavailable(), refuse(Code.FAILED_PRECONDITION, "not now"))
    with pytest.raises(FailedPreconditionError):
        await client.migration.change_phase(Phase.BACKFILL)


async def test_an_answer_that_is_too_large_is_asked_for_in_halves(
    script: Script, client: AsyncClient
) -> None:
    sizes: list[int] = []

    async def at_most_300(request: storage_pb2.BatchGetRequest, context: Any) -> Any:
        sizes.append(len(request.ids))
        if len(request.ids) > 300:
            refusal = refuse(
                Code.RESOURCE_EXHAUSTED, "too large", retry_info(0), reason="RESPONSE_TOO_LARGE"
            )
            await refusal(request, context)
        found = [i for i in request.ids if not i.startswith("missing")]
        return storage_pb2.BatchGetResponse(
            messages=[message_pb2.Message(id=i) for i in found],
            missing_ids=[i for i in request.ids if i.startswith("missing")],
        )

    script.play("BatchGet", at_most_300)
    ids = [f"missing{i}" if i % 10 == 0 else f"{i}" for i in range(1500)]
    result = await client.batch_get(iter(ids))
    assert [m.id for m in result.messages] == [i for i in ids if not i.startswith("missing")]
    assert list(result.missing_ids) == [i for i in ids if i.startswith("missing")]
    assert sizes == [1000, 500, 250, 250, 500, 250, 250, 500, 250, 250]
    assert await client.batch_get([]) == type(result)((), ())
    with pytest.raises(TypeError, match="the one string 'abc'"):
        await client.batch_get("abc")


async def test_a_page_is_asked_for_with_the_token_of_the_one_before(
    script: Script, client: AsyncClient
) -> None:
    pages = [("a", "1"), ("", "2"), ("b", "")]

    async def page(request: storage_pb2.ListRequest, _: Any) -> storage_pb2.ListResponse:
        ids, token = pages[int(request.page_token or 0)]
        return storage_pb2.ListResponse(
            messages=[message_pb2.Message(id=i) for i in ids], next_page_token=token
        )

    script.play("List", page)
    pager = client.list("s", page_size=7, newest_first=True)
    assert [m.id async for m in pager] == ["a", "b"]
    assert [m.id async for m in pager] == ["a", "b"], "each iteration begins anew"
    assert [len(p.items) async for p in pager.pages()] == [1, 0, 1]
    assert (await pager.page("2")).items[0].id == "b"
    assert {(r.session_id, r.page_size, r.newest_first) for r in script.requests} == {
        ("s", 7, True)
    }


async def test_the_token_goes_with_each_call(script: Script) -> None:
    script.play("Get", FOUND)
    tokens = iter(["one", "two"])
    async with AsyncClient(script.address, token=lambda: next(tokens)) as client:
        await client.get("x")
        await client.get("x")
    sent = [metadata["authorization"] for metadata in script.metadata]
    assert sent == ["Bearer one", "Bearer two"]
    assert script.metadata[0]["user-agent"].startswith("sagastore-python/")


async def test_an_error_never_tells_the_token(script: Script) -> None:
    script.play("Get", refuse(Code.UNAUTHENTICATED, "who are you?"))
    async with AsyncClient(script.address, token="s3cret") as client:
        with pytest.raises(SagaStoreError) as caught:
            await client.get("x")
    assert "s3cret" not in f"{caught.value!r}{vars(caught.value)}{client!r}"


async def test_a_server_of_another_kind(script: Script, client: AsyncClient) -> None:
    with pytest.raises(UnimplementedError, match="is it a SagaStore server"):
        await client.health()


async def test_nobody_is_there() -> None:
    async with AsyncClient("127.0.0.1:1", retry=QUICK) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.get("x")
    line = "cannot reach 127.0.0.1:1: connection refused; is the server running?"
    assert str(caught.value) == line
    assert caught.value.unsent


async def test_the_name_is_unknown() -> None:
    async with AsyncClient("nosuch.invalid:1", retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(UnavailableError, match=r"cannot reach nosuch\.invalid:1"):
            await client.get("x")


# Several addresses.


async def test_calls_are_spread_over_all_addresses(script: Script) -> None:
    other = Script()
    server = await serve(other)
    for each in (script, other):
        each.play("Get", FOUND)
    async with AsyncClient([script.address, other.address]) as client:
        for _ in range(40):
            await client.get("x")
            await asyncio.sleep(0.005)
        assert len(script.requests) >= 10
        assert len(other.requests) >= 10
        await server.stop(None)
        script.requests.clear()
        for _ in range(20):
            await client.get("x")
        assert len(script.requests) == 20
        again = await serve(other, port=int(other.address.rpartition(":")[2]))
        before = len(other.requests)
        for _ in range(400):
            await client.get("x")
            if len(other.requests) > before + 3:
                break
            await asyncio.sleep(0.02)
        else:
            pytest.fail("a server that came back was not called again")
        await again.stop(None)


async def test_an_address_where_nobody_is_costs_nothing(script: Script) -> None:
    script.play("Get", FOUND)
    async with AsyncClient(f"127.0.0.1:1,{script.address}", retry=QUICK) as client:
        for _ in range(10):
            await client.get("x")
    assert len(script.requests) == 10


async def test_all_addresses_are_down() -> None:
    async with AsyncClient("127.0.0.1:1,127.0.0.1:2", retry=QUICK) as client:
        with pytest.raises(UnavailableError, match=r"cannot reach 127\.0\.0\.1:[12]"):
            await client.get("x")


async def test_one_client_for_each_loop(script: Script, client: AsyncClient) -> None:
    script.play("Get", FOUND)
    await client.get("x")
    with pytest.raises(RuntimeError, match="create one client for each loop"):
        await asyncio.to_thread(lambda: asyncio.run(client.get("x")))


async def test_details_of_a_defect(script: Script, client: AsyncClient) -> None:
    script.play("Get", refuse(Code.INTERNAL, "internal error"))
    with pytest.raises(InternalError) as caught:
        await client.get("x")
    assert caught.value.reason == "TEST"
