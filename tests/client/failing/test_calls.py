"""Unary calls against a server with scripted failures."""

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
    UnauthenticatedError,
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
from tests.support.ports import reserved_port

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


async def test_unavailable_call_is_retried(script: Script, client: AsyncClient) -> None:
    script.play("Save", unavailable(), unavailable(None), saved(created=False))
    result = await client.save(HELLO)
    sent = [request.message.id for request in script.requests]
    assert len(sent) == 3
    assert len(set(sent)) == 1, "each attempt must carry the same id"
    assert result.created, "the id was new, whatever the last answer says"
    assert result.durable_on == {Store.SQLITE}


async def test_retry_waits_for_the_server_delay(script: Script, client: AsyncClient) -> None:
    script.play("Get", unavailable(0.3), FOUND)
    start = time.monotonic()
    await client.get("x")
    assert time.monotonic() - start >= 0.3


async def test_call_fails_after_the_last_attempt(script: Script, client: AsyncClient) -> None:
    script.play("Get", unavailable())
    with pytest.raises(UnavailableError, match="the store is down") as caught:
        await client.get("x")
    assert len(script.requests) == QUICK.max_attempts
    assert caught.value.retry_after == 0
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


async def test_call_is_not_retried_without_retries(script: Script) -> None:
    script.play("Get", unavailable(), FOUND)
    async with AsyncClient(script.address, retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(UnavailableError):
            await client.get("x")


async def test_overload_is_retried_and_size_limit_is_not(
    script: Script, client: AsyncClient
) -> None:
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
async def test_other_errors_are_not_retried(
    script: Script, client: AsyncClient, code: grpc.StatusCode
) -> None:
    script.play("Get", refuse(code), FOUND)
    with pytest.raises(SagaStoreError):
        await client.get("x")
    assert len(script.requests) == 1


async def test_timeout_covers_all_attempts(script: Script, client: AsyncClient) -> None:
    script.play("Get", unavailable(0.2), unavailable(0.2), hang())
    # Long enough for a busy machine to reach the third attempt, which hangs forever; its
    # timeout proves that the time of the other attempts counts.
    with pytest.raises(DeadlineExceededError, match=r"no response .* the store is down"):
        await client.get("x", timeout=4)
    assert len(script.requests) == 3


async def test_call_is_retried_until_its_timeout(script: Script) -> None:
    script.play("Get", unavailable())
    async with AsyncClient(script.address) as client:
        with pytest.raises(UnavailableError, match=r"^the store is down \(gave up after \d+ at"):
            await client.get("x", timeout=1.5)
    assert len(script.requests) >= 4


async def test_retry_beyond_the_timeout_is_not_started(script: Script, client: AsyncClient) -> None:
    script.play("Get", unavailable(1000))
    async with asyncio.timeout(60):
        with pytest.raises(UnavailableError) as caught:
            await client.get("x", timeout=100)
    assert caught.value.retry_after == 1000
    assert len(script.requests) == 1


async def test_server_receives_the_remaining_time(script: Script, client: AsyncClient) -> None:
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
    await asyncio.wait_for(ended.wait(), 60)


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
    """Respond with a changed copy of the message of the current save."""

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
async def test_conditional_save_recognizes_its_own_write(
    script: Script, client: AsyncClient, if_revision: int, refusal: Any
) -> None:
    script.play("Save", unavailable(), refusal, saved(9, created=False))
    script.play("Get", stored())
    result = await client.save(HELLO, if_revision=if_revision)
    assert (result.revision, result.created) == (9, if_revision == 0)
    assert result.durable_on == {Store.SQLITE}
    assert script.requests[-1].if_revision == 9


@pytest.mark.parametrize("get", [stored(content="of another"), stored(metadata_json=""), NOT_FOUND])
async def test_conditional_save_does_not_claim_another_write(
    script: Script, client: AsyncClient, get: Any
) -> None:
    script.play("Save", unavailable(), EXISTS)
    script.play("Get", get)
    with pytest.raises(AlreadyExistsError):
        await client.save(HELLO, if_revision=0)


async def test_overtaken_conditional_save_is_aborted(script: Script, client: AsyncClient) -> None:
    script.play("Save", unavailable(), MOVED)
    script.play("Get", stored())
    with pytest.raises(AbortedError):
        await client.save(HELLO, if_revision=4)


async def test_rejected_first_attempt_is_raised(script: Script, client: AsyncClient) -> None:
    script.play("Save", EXISTS)
    with pytest.raises(AlreadyExistsError):
        await client.save(HELLO, if_revision=0)
    assert len(script.requests) == 1
    overloaded = refuse(Code.RESOURCE_EXHAUSTED, "overloaded", retry_info(0))
    script.play("Save", overloaded, EXISTS)
    with pytest.raises(AlreadyExistsError):
        await client.save(HELLO, if_revision=0)
    assert len(script.requests) == 3, "no read: the first attempt was rejected"


async def test_retried_delete_that_finds_nothing_succeeds(
    script: Script, client: AsyncClient
) -> None:
    script.play("Delete", unavailable(), NOT_FOUND)
    await client.delete("x")
    script.play("Delete", NOT_FOUND)
    with pytest.raises(NotFoundError):
        await client.delete("x")


async def test_retried_phase_change_succeeds(script: Script, client: AsyncClient) -> None:
    done = answer(migration_pb2.ChangePhaseResponse(migration=at_phase(2)))
    script.play("ChangePhase", unavailable(), done)
    now = await client.migration.change_phase(Phase.DUAL_WRITE)
    assert now.phase is Phase.DUAL_WRITE
    assert len(script.requests) == 2
    script.play("ChangePhase", unavailable(), refuse(Code.FAILED_PRECONDITION, "not now"))
    with pytest.raises(FailedPreconditionError):
        await client.migration.change_phase(Phase.BACKFILL)


async def test_oversized_response_is_requested_in_halves(
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


async def test_page_is_requested_with_the_previous_token(
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
    assert [m.id async for m in pager] == ["a", "b"], "each iteration starts at the first page"
    assert [len(p.items) async for p in pager.pages()] == [1, 0, 1]
    assert (await pager.page("2")).items[0].id == "b"
    assert {(r.session_id, r.page_size, r.newest_first) for r in script.requests} == {
        ("s", 7, True)
    }


async def test_token_is_sent_with_each_call(script: Script) -> None:
    script.play("Get", FOUND)
    tokens = iter(["one", "two"])
    async with AsyncClient(script.address, token=lambda: next(tokens)) as client:
        await client.get("x")
        await client.get("x")
    sent = [metadata["authorization"] for metadata in script.metadata]
    assert sent == ["Bearer one", "Bearer two"]
    assert script.metadata[0]["user-agent"].startswith("sagastore-python/")


async def test_refused_token_is_not_replaced_without_end(script: Script) -> None:
    """A function may return another token for each call, all of which are refused."""
    script.play("Get", refuse(Code.UNAUTHENTICATED, "who are you?"))
    tokens = iter(range(1000))
    async with AsyncClient(script.address, token=lambda: f"{next(tokens)}", timeout=600) as client:
        with pytest.raises(UnauthenticatedError):
            await client.get("x")
    assert len(script.requests) == 6


async def test_errors_never_contain_the_token(script: Script) -> None:
    script.play("Get", refuse(Code.UNAUTHENTICATED, "who are you?"))
    async with AsyncClient(script.address, token="s3cret") as client:
        with pytest.raises(SagaStoreError) as caught:
            await client.get("x")
    assert "s3cret" not in f"{caught.value!r}{vars(caught.value)}{client!r}"


async def test_other_server_is_reported(script: Script, client: AsyncClient) -> None:
    with pytest.raises(UnimplementedError, match="is it a SagaStore server"):
        await client.health()


async def test_unreachable_server_is_reported() -> None:
    async with AsyncClient("127.0.0.1:1", retry=QUICK) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.get("x")
    line = "cannot reach 127.0.0.1:1: connection refused; is the server running? (gave up after 6 "
    assert str(caught.value).startswith(line)
    assert caught.value.unsent


async def test_unknown_host_is_reported() -> None:
    async with AsyncClient("nosuch.invalid:1", retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(UnavailableError, match=r"cannot reach nosuch\.invalid:1"):
            await client.get("x")


# Several addresses.


async def test_calls_are_balanced_over_all_addresses(script: Script) -> None:
    with reserved_port() as port:
        await _check_balance(script, port)


async def _check_balance(script: Script, port: int) -> None:
    other = Script()
    server = await serve(other, port=port)
    for each in (script, other):
        each.play("Get", FOUND)
    async with AsyncClient([script.address, other.address]) as client:
        while not (script.requests and other.requests):  # Until both are connected.
            await client.get("x")
        script.requests.clear()
        other.requests.clear()
        for _ in range(40):
            await client.get("x")
        assert len(script.requests) >= 10
        assert len(other.requests) >= 10
        await server.stop(None)
        script.requests.clear()
        for _ in range(20):
            await client.get("x")
        assert len(script.requests) == 20
        again = await serve(other, port=port)
        before = len(other.requests)
        async with asyncio.timeout(60):
            while len(other.requests) <= before + 3:
                await client.get("x")
                await asyncio.sleep(0.02)
        await again.stop(None)


async def test_unreachable_address_costs_no_attempt(script: Script) -> None:
    script.play("Get", FOUND)
    async with AsyncClient(f"127.0.0.1:1,{script.address}", retry=QUICK) as client:
        for _ in range(10):
            await client.get("x")
    assert len(script.requests) == 10


async def test_all_addresses_down_is_reported() -> None:
    async with AsyncClient("127.0.0.1:1,127.0.0.1:2", retry=QUICK) as client:
        with pytest.raises(UnavailableError, match=r"cannot reach 127\.0\.0\.1:[12]"):
            await client.get("x")


async def test_internal_error_has_a_reference(script: Script, client: AsyncClient) -> None:
    script.play("Get", refuse(Code.INTERNAL, "internal error"))
    with pytest.raises(InternalError) as caught:
        await client.get("x")
    assert caught.value.reason == "TEST"
