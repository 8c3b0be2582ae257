"""Requests and answers in memory: bounded in all and by caller, and freed in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from sagastore.v1 import storage_pb2
from sagastore_server.rpc.admission import Limits
from sagastore_server.rpc.memory_budget import SMALL, ByteBudget
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.model import OnConflict
from tests.support.drafts import draft
from tests.support.in_process_server import Served, served
from tests.support.messages import batch, message
from tests.support.rpc_errors import refusal_of
from tests.support.waiting import until

MIB = 1024 * 1024
LARGE = "x" * 1_000_000
UNLIMITED = ("grpc.max_receive_message_length", -1)
METHOD = "/sagastore.v1.StorageService/"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStorage]:
    store = SQLiteStorage(tmp_path / "saga.db")
    await store.open()
    await store.bulk_save([draft(f"m-{n}", LARGE) for n in range(16)], OnConflict.REPLACE)
    yield store
    await store.close()


async def never() -> AsyncIterator[bytes]:
    """Send no message, and keep the stream open."""
    await asyncio.Event().wait()
    yield b""


def unread(channel: aio.Channel) -> Any:
    """Begin a BatchGet of 16 MB whose answer is not read: it exceeds the window of the stream."""
    ids = [f"m-{n}" for n in range(16)]
    request = storage_pb2.BatchGetRequest(ids=ids).SerializeToString()

    async def requests() -> AsyncIterator[bytes]:
        yield request

    method: Any = channel.stream_stream(f"{METHOD}BatchGet")
    return method(requests())


async def unread_answers(server: Served, count: int) -> tuple[aio.Channel, list[Any]]:
    """Begin BatchGets on one connection until the server has ``count`` unread answers."""
    channel = server.channel(UNLIMITED)
    calls: list[Any] = []
    answers = server.server.admission.answers
    for number in range(1, count + 1):
        calls.append(unread(channel))
        await until(partial(_more_than, answers, number * 16_000_000))
    return channel, calls


def _more_than(budget: ByteBudget, size: int) -> bool:
    return budget.used > size


async def test_unread_answers_are_limited(store: SQLiteStorage) -> None:
    limits = Limits(answer_memory=64 * MIB)
    async with served(store, limits) as server, server.stub(UNLIMITED) as stub:
        admission = server.server.admission
        channel, calls = await unread_answers(server, 2)
        # The share of an address is 32 MiB: a third answer is refused, and a small one is not.
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.BatchGet(storage_pb2.BatchGetRequest(ids=[f"m-{n}" for n in range(16)]))
        refusal = refusal_of(caught.value)
        assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refusal.retry_after
        assert (await stub.Save(storage_pb2.SaveRequest(message=message()))).created
        # The places are held as long as the answers are unread.
        await until(lambda: admission.calls == len(calls))
        await channel.close()
        await until(lambda: not admission.answers.used and not admission.calls)


async def test_unread_answers_are_ended(store: SQLiteStorage) -> None:
    async with served(store, Limits(stall_timeout=1)) as server, server.stub() as stub:
        admission = server.server.admission
        channel, calls = await unread_answers(server, 3)
        await until(lambda: not admission.calls)
        assert not admission.answers.used
        # gRPC keeps the latest call until the next one.
        await stub.Save(storage_pb2.SaveRequest(message=message()))
        # The answers were dropped. A client learns that when it reads, and not before.
        for call in calls:
            with pytest.raises(aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.CANCELLED
        await channel.close()


async def test_repeated_ids_are_limited_by_the_size_of_the_answer(store: SQLiteStorage) -> None:
    async with served(store, Limits()) as server, server.stub(UNLIMITED) as stub:
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.BatchGet(storage_pb2.BatchGetRequest(ids=["m-1"] * 100))
        assert refusal_of(caught.value).reason == "RESPONSE_TOO_LARGE"
        answer = await stub.BatchGet(storage_pb2.BatchGetRequest(ids=["m-1", "none", "m-1"]))
        assert [one.id for one in answer.messages] == ["m-1", "m-1"]
        assert list(answer.missing_ids) == ["none"]
        await until(lambda: not server.server.admission.answers.used)


@pytest.mark.parametrize("method", ["Save", "Export", "BulkSave"])
async def test_call_without_a_message_is_ended(store: SQLiteStorage, method: str) -> None:
    async with served(store, Limits(message_timeout=1)) as server, server.channel() as channel:
        begin: Any = channel.stream_stream(f"{METHOD}{method}")
        call = begin(never())
        with pytest.raises(aio.AioRpcError) as caught:
            await call.read()
        refusal = refusal_of(caught.value)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "CLIENT_SILENT")
        admission = server.server.admission
        await until(lambda: not admission.calls and not admission.streams)


async def test_silent_stream_is_ended(store: SQLiteStorage) -> None:
    async with served(store, Limits(stall_timeout=1)) as server, server.stub() as stub:
        call = stub.BulkSave()
        await call.write(batch(1, message()))
        assert (await call.read()).saved == 1
        with pytest.raises(aio.AioRpcError) as caught:
            await call.read()
        assert refusal_of(caught.value).reason == "CLIENT_SILENT"


async def test_requests_are_not_received_beyond_the_budget(store: SQLiteStorage) -> None:
    limits = Limits(request_memory=64 * MIB)
    async with served(store, limits) as server, server.stub() as stub, server.channel() as channel:
        # Each may take 32 MiB while it is received, so two may be slow, one of them of an address.
        method: Any = channel.stream_stream(f"{METHOD}Save")
        calls = [method(never()) for _ in range(6)]
        reads = [asyncio.ensure_future(call.read()) for call in calls]
        ended, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
        error = next(iter(ended)).exception()
        assert isinstance(error, aio.AioRpcError)
        assert refusal_of(error).reason == "OVERLOADED"
        await until(lambda: server.server.admission.calls == 1)
        # Others are served meanwhile.
        assert (await stub.Save(storage_pb2.SaveRequest(message=message()))).created
        for read in reads:
            read.cancel()


async def test_silent_probes_do_not_keep_others_waiting(store: SQLiteStorage) -> None:
    async with served(store, Limits()) as server, server.channel() as channel:
        method: Any = channel.stream_stream("/grpc.health.v1.Health/Check")
        reads = [asyncio.ensure_future(method(never()).read()) for _ in range(10)]
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = await check(health_pb2.HealthCheckRequest(service=""))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        for read in reads:
            read.cancel()


async def test_streams_of_an_address_are_limited(store: SQLiteStorage) -> None:
    limits = Limits(max_streams=20, caller_share=0.5)
    async with served(store, limits) as server, server.stub() as stub:
        streams = [stub.BulkSave() for _ in range(10)]
        for stream in streams:
            await stream.write(batch(1, message()))
            await stream.read()
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Export(storage_pb2.ExportRequest()).read()
        assert refusal_of(caught.value).reason == "OVERLOADED"
        for stream in streams:
            stream.cancel()


def test_budget_is_shared_by_owners() -> None:
    budget = ByteBudget(10 * MIB, 0.5)
    assert budget.take("a", 5 * MIB)
    assert not budget.take("a", SMALL + 1)
    assert budget.take("a", SMALL)
    assert budget.take("b", 4 * MIB)
    assert not budget.take("c", MIB)
    budget.give_back("a", 5 * MIB)
    assert budget.take("c", MIB)
    budget.add("c", 9 * MIB)
    assert budget.is_full("b")
    for owner, size in (("c", MIB), ("c", 9 * MIB), ("b", 4 * MIB), ("a", SMALL)):
        budget.give_back(owner, size)
    assert budget.used == 0
