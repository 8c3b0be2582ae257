"""Concurrent saves and gets share requests, and each call keeps what is its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from sagastore import (
    AbortedError,
    AlreadyExistsError,
    AsyncClient,
    Consistency,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    Message,
    NotFoundError,
    SagaStoreError,
    SaveResult,
    UnavailableError,
)
from sagastore import _coalescing as coalescing
from sagastore.v1 import message_pb2
from sagastore.v1 import storage_pb2 as pb
from tests.client.failing.scripted import (
    QUICK,
    Context,
    Script,
    answer,
    error_info,
    hang,
    refuse,
    retry_info,
    status_bytes,
)
from tests.support.waiting import until

CODE = grpc.StatusCode


def draft(id: str) -> Message:
    return Message(id=id, provider="openai", role="user", content=f"content of {id}")


def saved(id: str) -> pb.Outcome:
    return pb.Outcome(saved=pb.SaveResponse(id=id, revision=7, created=True))


def failure(code: grpc.StatusCode, reason: str, *details: Any) -> pb.Outcome:
    status = status_bytes(code, "no", error_info(reason), *details)
    return pb.Outcome(failure=pb.Failure(code=code.value[0], message="no", status=status))


class Gate:
    """Holds the steps that are made with it until it is opened."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.held = 0

    def then(self, step: Callable[[Any, Context], Awaitable[Any]]) -> Any:
        async def held(request: Any, context: Context) -> Any:
            self.held += 1
            await self.open.wait()
            return await step(request, context)

        return held


async def _save(request: pb.SaveRequest, _: Context) -> pb.SaveResponse:
    return saved(request.message.id).saved


async def _batch_save(request: pb.BatchSaveRequest, _: Context) -> pb.BatchSaveResponse:
    ids = [one.message.id for one in request.requests]
    return pb.BatchSaveResponse(outcomes=map(saved, ids))


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attempts wait for as long as a test needs."""
    monkeypatch.setattr(coalescing, "STALL_SECONDS", 60.0)


@pytest.fixture
async def gate(script: Script) -> Gate:
    """Let the server hold requests for one message, and answer the others."""
    gate = Gate()
    script.play("Save", gate.then(_save))
    script.play("BatchSave", _batch_save)
    return gate


Tasks = dict[str, asyncio.Task[SaveResult]]


@pytest.fixture
async def waiting(client: AsyncClient, gate: Gate) -> AsyncIterator[Tasks]:
    """Begin five saves: the server holds two, and three wait in the client."""
    tasks = {id: asyncio.create_task(client.save(draft(id))) for id in "abcde"}
    await until(lambda: gate.held == coalescing.ALONE)
    yield tasks
    gate.open.set()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


def sent(script: Script) -> list[list[str]]:
    """Return the ids of each request that the server got."""
    return [
        [one.message.id for one in request.requests]
        if isinstance(request, pb.BatchSaveRequest)
        else [request.message.id]
        for request in script.requests
    ]


async def test_calls_one_after_the_other_are_sent_alone(
    client: AsyncClient, script: Script, gate: Gate
) -> None:
    gate.open.set()
    for id in "abc":
        assert (await client.save(draft(id))).id == id
    assert sent(script) == [["a"], ["b"], ["c"]]


async def test_what_waits_is_sent_together(waiting: Tasks, script: Script, gate: Gate) -> None:
    gate.open.set()
    results = await asyncio.gather(*waiting.values())
    assert [(one.id, one.revision) for one in results] == [(id, 7) for id in "abcde"]
    assert sorted(sent(script)[:2]) == [["a"], ["b"]]
    assert sent(script)[2:] == [["c", "d", "e"]]


async def test_coalesce_false_sends_every_call_alone(script: Script, gate: Gate) -> None:
    async with AsyncClient(script.address, coalesce=False) as client:
        tasks = [asyncio.create_task(client.save(draft(id))) for id in "abcde"]
        await until(lambda: gate.held == len(tasks))
        gate.open.set()
        await asyncio.gather(*tasks)
    assert sorted(sent(script)) == [[id] for id in "abcde"]


async def test_each_call_gets_its_own_error(waiting: Tasks, script: Script, gate: Gate) -> None:
    outcomes = [
        failure(CODE.ALREADY_EXISTS, "MESSAGE_EXISTS"),
        failure(CODE.ABORTED, "REVISION_MISMATCH"),
        failure(CODE.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ]
    script.play("BatchSave", answer(pb.BatchSaveResponse(outcomes=outcomes)))
    gate.open.set()
    kinds = [AlreadyExistsError, AbortedError, InvalidArgumentError]
    reasons = ["MESSAGE_EXISTS", "REVISION_MISMATCH", "INVALID_REQUEST"]
    for id, kind, reason in zip("cde", kinds, reasons, strict=True):
        with pytest.raises(kind) as caught:
            await waiting[id]
        assert type(caught.value) is kind
        assert caught.value.reason == reason
    assert (await waiting["a"]).id == "a"


@pytest.mark.parametrize("ids", ["dce", "cd"])
async def test_outcomes_of_other_calls_are_no_acknowledgement(
    waiting: Tasks, script: Script, gate: Gate, ids: str
) -> None:
    script.play("BatchSave", answer(pb.BatchSaveResponse(outcomes=map(saved, ids))))
    gate.open.set()
    for id in "cd":
        with pytest.raises(InternalError, match="BatchSave"):
            await waiting[id]


async def test_failed_request_is_retried_without_the_others(
    waiting: Tasks, script: Script, gate: Gate
) -> None:
    again = failure(CODE.UNAVAILABLE, "STORE_UNAVAILABLE", retry_info(0.0))
    outcomes = [saved("c"), again, saved("e")]
    script.play("BatchSave", answer(pb.BatchSaveResponse(outcomes=outcomes)))
    gate.open.set()
    assert [one.id for one in await asyncio.gather(*waiting.values())] == list("abcde")
    assert sent(script)[2:] == [["c", "d", "e"], ["d"]]


async def test_failed_batch_is_retried_by_each_call(
    waiting: Tasks, script: Script, gate: Gate
) -> None:
    down = refuse(CODE.UNAVAILABLE, "the store is down", retry_info(0.0))
    script.play("BatchSave", down, _batch_save)
    gate.open.set()
    assert [one.id for one in await asyncio.gather(*waiting.values())] == list("abcde")
    assert sent(script)[2] == ["c", "d", "e"]


async def test_batch_that_may_not_be_repeated_fails_every_call(
    waiting: Tasks, script: Script, gate: Gate
) -> None:
    script.play("BatchSave", refuse(CODE.PERMISSION_DENIED, reason="PERMISSION_DENIED"))
    gate.open.set()
    for id in "cde":
        with pytest.raises(SagaStoreError) as caught:
            await waiting[id]
        assert caught.value.code == "PERMISSION_DENIED"


@pytest.mark.parametrize("code", [CODE.UNIMPLEMENTED, CODE.INVALID_ARGUMENT])
async def test_batch_that_the_server_refuses_is_sent_one_by_one(
    waiting: Tasks, script: Script, gate: Gate, client: AsyncClient, code: grpc.StatusCode
) -> None:
    script.play("BatchSave", refuse(code))
    gate.open.set()
    assert [one.id for one in await asyncio.gather(*waiting.values())] == list("abcde")
    assert sorted(sent(script)[3:]) == [["c"], ["d"], ["e"]]
    batches = sum(len(one) > 1 for one in sent(script))
    await asyncio.gather(*(client.save(draft(id)) for id in "fghij"))
    more = sum(len(one) > 1 for one in sent(script)) - batches
    # A server of an older version is not asked again and again.
    assert bool(more) is (code is CODE.INVALID_ARGUMENT)


async def test_cancelled_call_is_not_sent(waiting: Tasks, script: Script, gate: Gate) -> None:
    waiting["d"].cancel()
    await asyncio.wait({waiting["d"]})
    gate.open.set()
    results = await asyncio.gather(*waiting.values(), return_exceptions=True)
    assert isinstance(results[3], asyncio.CancelledError)
    assert sent(script)[2:] == [["c", "e"]]


async def test_call_that_is_cancelled_in_flight_leaves_the_others(
    waiting: Tasks, script: Script, gate: Gate
) -> None:
    flight = Gate()
    script.play("BatchSave", flight.then(_batch_save))
    gate.open.set()
    await until(lambda: flight.held)
    waiting["d"].cancel()
    flight.open.set()
    results = await asyncio.gather(*waiting.values(), return_exceptions=True)
    assert isinstance(results[3], asyncio.CancelledError)
    assert [one.id for one in results if isinstance(one, SaveResult)] == list("abce")


async def test_call_whose_timeout_passes_while_it_waits_is_not_sent(
    waiting: Tasks, client: AsyncClient, script: Script, gate: Gate
) -> None:
    with pytest.raises(DeadlineExceededError, match=r"Save timed out after 0\.01 s"):
        await client.save(draft("late"), timeout=0.01)
    gate.open.set()
    await asyncio.gather(*waiting.values())
    assert ["late"] not in sent(script)
    assert sent(script)[2:] == [["c", "d", "e"]]


async def test_short_timeout_does_not_shorten_that_of_the_others(
    client: AsyncClient, script: Script, gate: Gate
) -> None:
    flight = Gate()
    script.play("BatchSave", flight.then(_batch_save))
    held = [asyncio.create_task(client.save(draft(id))) for id in "ab"]
    await until(lambda: gate.held == coalescing.ALONE)
    patient = asyncio.create_task(client.save(draft("patient"), timeout=60))
    hasty = asyncio.create_task(client.save(draft("hasty"), timeout=0.5))
    await asyncio.sleep(0)
    gate.open.set()
    with pytest.raises(DeadlineExceededError):
        await hasty
    flight.open.set()
    assert (await patient).id == "patient"
    await asyncio.gather(*held)


async def test_closed_client_ends_the_calls_that_wait(script: Script, gate: Gate) -> None:
    client = AsyncClient(script.address, retry=QUICK)
    tasks = [asyncio.create_task(client.save(draft(id))) for id in "abcde"]
    await until(lambda: gate.held == coalescing.ALONE)
    await client.close()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, SagaStoreError)
        assert outcome.code == "CANCELLED"
        assert "was closed during the call" in str(outcome)


async def test_server_that_hangs_does_not_hold_up_the_others(
    client: AsyncClient, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coalescing, "STALL_SECONDS", 0.001)
    script.play("Save", hang(), hang(), _save)
    script.play("BatchSave", _batch_save)
    tasks = [asyncio.create_task(client.save(draft(id))) for id in "abcdef"]
    assert [one.id for one in await asyncio.gather(*tasks[2:])] == list("cdef")
    for task in tasks[:2]:
        task.cancel()
    await asyncio.wait(tasks)


async def test_large_message_never_waits(
    waiting: Tasks, client: AsyncClient, script: Script, gate: Gate
) -> None:
    large = Message(id="large", provider="a", role="b", content="x" * coalescing.LARGE_BYTES)
    task = asyncio.create_task(client.save(large))
    await until(lambda: ["large"] in sent(script))
    gate.open.set()
    await task


async def test_save_that_waits_for_both_stores_shares_with_its_kind(
    waiting: Tasks, client: AsyncClient, script: Script, gate: Gate
) -> None:
    both = [asyncio.create_task(client.save(draft(id), durability="both")) for id in "xy"]
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(*waiting.values(), *both)
    assert sent(script)[2:] == [["c", "d", "e"], ["x", "y"]]


# ------------------------------------------------------------------ gets


def stored(id: str) -> message_pb2.Message:
    return message_pb2.Message(id=id, provider="a", role="b", content=f"content of {id}")


async def _get(request: pb.GetRequest, _: Context) -> pb.GetResponse:
    return pb.GetResponse(message=stored(request.id))


async def _batch_get(request: pb.BatchGetRequest, _: Context) -> pb.BatchGetResponse:
    ids = [id for id in request.ids if id != "missing"]
    missing = [id for id in request.ids if id == "missing"]
    return pb.BatchGetResponse(messages=map(stored, ids), missing_ids=missing)


async def test_gets_share_requests_of_the_same_consistency(
    client: AsyncClient, script: Script
) -> None:
    gate = Gate()
    script.play("Get", gate.then(_get))
    script.play("BatchGet", _batch_get)
    begin = asyncio.create_task
    tasks = [begin(client.get(id)) for id in ("a", "b", "c", "missing", "c")]
    await until(lambda: gate.held == coalescing.ALONE)
    tasks += [begin(client.get(id, consistency=Consistency.ANY_REPLICA)) for id in ("r", "s")]
    await asyncio.sleep(0)
    gate.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    found = [one.content if isinstance(one, Message) else type(one) for one in results]
    texts = [f"content of {id}" for id in "abccrs"]
    assert found == [*texts[:3], NotFoundError, *texts[3:]]
    assert isinstance(results[3], NotFoundError)
    assert str(results[3]) == "no message has the id 'missing'"
    assert (results[3].reason, results[3].metadata) == ("MESSAGE_NOT_FOUND", {"id": "missing"})
    batches = [one for one in script.requests if isinstance(one, pb.BatchGetRequest)]
    assert [list(one.ids) for one in batches] == [["c", "missing", "c"], ["r", "s"]]
    assert [one.consistency.any_replica for one in batches] == [False, True]


async def test_get_with_an_invalid_id_fails_alone(client: AsyncClient, script: Script) -> None:
    gate = Gate()

    async def get(request: pb.GetRequest, context: Context) -> pb.GetResponse:
        if len(request.id) > 128:
            await refuse(CODE.INVALID_ARGUMENT)(request, context)
        return await _get(request, context)

    script.play("Get", gate.then(get))
    script.play("BatchGet", refuse(CODE.INVALID_ARGUMENT))
    tasks = [asyncio.create_task(client.get(id)) for id in ("a", "b", "x" * 129, "c")]
    await until(lambda: gate.held == coalescing.ALONE)
    gate.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(one, Message) for one in results] == [True, True, False, True]
    assert isinstance(results[2], InvalidArgumentError)


async def test_unavailable_batch_of_gets_is_retried(client: AsyncClient, script: Script) -> None:
    gate = Gate()
    script.play("Get", gate.then(_get))
    script.play("BatchGet", refuse(CODE.UNAVAILABLE, "down", retry_info(0.0)), _batch_get)
    tasks = [asyncio.create_task(client.get(id)) for id in "abcd"]
    await until(lambda: gate.held == coalescing.ALONE)
    gate.open.set()
    assert [one.id for one in await asyncio.gather(*tasks)] == list("abcd")


async def test_unavailable_server_is_reported_by_each_call(
    client: AsyncClient, script: Script
) -> None:
    script.play("Save", refuse(CODE.UNAVAILABLE, "down", retry_info(0.0)))
    script.play("BatchSave", refuse(CODE.UNAVAILABLE, "down", retry_info(0.0)))
    tasks = [asyncio.create_task(client.save(draft(id))) for id in "abcdef"]
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, UnavailableError)
