"""Admission limits: excess calls are refused at once with a retry delay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from sagastore.v1 import migration_pb2, storage_pb2
from sagastore.v1.migration_pb2_grpc import MigrationServiceStub
from sagastore_server.rpc.admission import Limits
from sagastore_server.rpc.load_shedding import LoadShedder
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.model import Message
from tests.support.drafts import draft
from tests.support.in_process_server import served
from tests.support.messages import batch, message, new_id
from tests.support.rpc_errors import Refusal, refusal_of
from tests.support.waiting import until


class Held(SQLiteStorage):
    """Store whose Gets wait until released, like a disk that does not answer."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.go = asyncio.Event()
        self.waiting = 0

    async def get(self, message_id: str) -> Message:
        self.waiting += 1
        await self.go.wait()
        return await super().get(message_id)


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[Held]:
    store = Held(tmp_path / "saga.db")
    await store.open()
    yield store
    await store.close()


def refusal(call: BaseException | None) -> Refusal:
    assert isinstance(call, aio.AioRpcError)
    return refusal_of(call)


async def test_excess_calls_are_refused_and_others_finish(held: Held) -> None:
    async with served(held, Limits(max_calls=5)) as server, server.stub() as stub:
        inside = [asyncio.ensure_future(stub.Get(storage_pb2.GetRequest(id="x"))) for _ in range(5)]
        await until(lambda: held.waiting == 5)
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Get(storage_pb2.GetRequest(id="x"))
        told = refusal(caught.value)
        assert told.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert told.reason == "OVERLOADED"
        assert told.retry_after
        assert told.reference
        # Probes are answered in any case.
        async with server.channel() as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            answer = await check(health_pb2.HealthCheckRequest(service=""))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        held.go.set()
        for ended in await asyncio.gather(*inside, return_exceptions=True):
            assert refusal(ended).code is grpc.StatusCode.NOT_FOUND
        await until(lambda: server.server.admission.calls == 0)
        assert (await stub.Save(storage_pb2.SaveRequest(message=message()))).created


async def test_cancelled_call_frees_its_slot(held: Held) -> None:
    async with served(held, Limits(max_calls=1)) as server, server.stub() as stub:
        first = stub.Get(storage_pb2.GetRequest(id="x"))
        await until(lambda: held.waiting == 1)
        first.cancel()
        await until(lambda: server.server.admission.calls == 0)
        held.go.set()
        assert (await stub.Save(storage_pb2.SaveRequest(message=message()))).created


async def test_expired_deadline_cancels_work(held: Held) -> None:
    async with served(held, Limits()) as server, server.stub() as stub:
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Get(storage_pb2.GetRequest(id="x"), timeout=0.05)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: server.server.admission.calls == 0)
        assert server.server.calls_in_progress == 0


async def test_excess_streams_are_refused(held: Held) -> None:
    async with served(held, Limits(max_streams=1)) as server, server.stub() as stub:
        first = stub.BulkSave()
        await first.write(batch(1, message(id=new_id())))
        assert (await _answer(first)).saved == 1
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Export(storage_pb2.ExportRequest()).read()
        told = refusal(caught.value)
        assert told.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert told.retry_after
        await first.done_writing()
        assert await first.read() is aio.EOF
        await until(lambda: server.server.admission.streams == 0)
        exported = await stub.Export(storage_pb2.ExportRequest()).read()
        assert isinstance(exported, storage_pb2.ExportResponse)
        assert len(exported.messages) == 1


async def test_rate_limited_caller_is_refused(held: Held) -> None:
    async with served(held, Limits(caller_rate=3)) as server, server.stub() as stub:

        async def save_until_refused() -> None:
            # A slow machine makes more calls until it is faster than the rate for a moment.
            for _ in range(1000):
                await stub.Save(storage_pb2.SaveRequest(message=message(id="same")))

        with pytest.raises(aio.AioRpcError) as caught:
            await save_until_refused()
        told = refusal_of(caught.value)
        assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert told.retry_after is not None


async def test_stream_is_paced_instead_of_refused(held: Held) -> None:
    async with served(held, Limits(caller_rate=20)) as server, server.stub() as stub:
        call = stub.BulkSave()
        for number in range(30):
            await call.write(batch(number, message(id=f"m-{number}")))
        await call.done_writing()
        answers = [answer async for answer in call]
        assert [answer.sequence for answer in answers] == list(range(30))
        assert all(answer.saved == 1 for answer in answers)


async def test_oversized_request_is_refused_unread(held: Held) -> None:
    limits = Limits(max_request_bytes=1024 * 1024)
    async with served(held, limits) as server, server.stub() as stub:
        huge = message(metadata_json='{"k":"' + "x" * 2_000_000 + '"}')
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Save(storage_pb2.SaveRequest(message=huge))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stub.Save(storage_pb2.SaveRequest(message=message()))).created


async def test_connection_max_age_fails_no_call(held: Held) -> None:
    """Clients are asked to reconnect under load, and none of their calls fails."""
    async with served(held, Limits(connection_age=0.2)) as server, server.stub() as stub:
        peers = set()
        admission = server.server.admission
        admit = admission.admit

        def seen(call: object, context: object, role: object) -> None:
            peers.add(context.peer())  # type: ignore[attr-defined]
            admit(call, context, role)  # type: ignore[arg-type]

        admission.admit = seen  # type: ignore[method-assign]

        async def worker() -> None:
            while len(peers) < 4:
                await _save(stub)

        await asyncio.gather(*(worker() for _ in range(8)))


async def _save(stub: Any) -> None:
    await stub.Save(storage_pb2.SaveRequest(message=message()))


async def _answer(call: Any) -> storage_pb2.BulkSaveResponse:
    answer = await call.read()
    assert isinstance(answer, storage_pb2.BulkSaveResponse)
    return answer


async def test_open_streams_are_no_load(held: Held) -> None:
    held.go.set()
    await held.save(draft("x"))
    limits = Limits(max_calls=20)
    async with (
        served(held, limits) as server,
        server.stub() as stub,
        server.channel() as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        migration: Any = MigrationServiceStub(channel)
        streams = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(60)]
        streams += [
            migration.WatchMigration(migration_pb2.WatchMigrationRequest()) for _ in range(30)
        ]
        await asyncio.gather(*(stream.read() for stream in streams))
        shedder = server.server.admission.load_shedder
        shedder.sample(0.2)
        assert shedder.load == 0
        for _ in range(200):
            shedder.sample(0.2)
            await stub.Get(storage_pb2.GetRequest(id="x"))
        for stream in streams:
            stream.cancel()
        # Queued unary calls count.
        held.go.clear()
        calls = [asyncio.ensure_future(stub.Get(storage_pb2.GetRequest(id="x"))) for _ in range(9)]
        await until(lambda: held.waiting == 209)
        await until(lambda: server.server.admission.streams == 0)
        await until(lambda: loaded(shedder) == 9)
        held.go.set()
        await asyncio.gather(*calls)


def loaded(shedder: LoadShedder) -> int:
    shedder.sample(0.2)
    return shedder.load
