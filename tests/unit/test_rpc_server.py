"""RpcServer over a store that fails or blocks, on a real socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from sagastore.v1 import storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from sagastore_server.interfaces.tracing import Span, Tracer
from sagastore_server.migration.single_store import SingleStore
from sagastore_server.rpc.lifecycle import LifecycleState
from sagastore_server.rpc.server import CannotListenError, RpcServer, ServerOptions
from sagastore_server.storage.errors import (
    CannotOpenError,
    CorruptStoreError,
    FencedError,
    StorageError,
    StorageFullError,
    UnavailableError,
)
from sagastore_server.storage.model import Message
from sagastore_server.storage.phase import Phase
from tests.support.memory import MemoryState, MemoryStorage
from tests.support.messages import batch, message
from tests.support.rpc_errors import Refusal, refusal_of
from tests.support.waiting import until

SECRET = "near 'sekret': syntax error in /var/lib/saga.db"


class FailingStorage(MemoryStorage):
    """Its `get` waits for ``admission`` if set, and raises ``error`` if set."""

    error: Exception | None = None
    admission: asyncio.Event | None = None
    arrived: asyncio.Event

    async def get(self, message_id: str) -> Message:
        if self.admission is not None:
            self.arrived.set()
            await self.admission.wait()
        if self.error is not None:
            raise self.error from OSError(SECRET)
        return await super().get(message_id)


class RecordingTracer(Tracer):
    """Records the method and the status code of each span of a call."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str]] = []

    @contextmanager
    def call(self, metadata: Mapping[str, str]) -> Iterator[Span]:
        yield self

    def ended(self, method: str, code: str) -> None:
        self.spans.append((method, code))


class Served:
    """A server, its store, and a client."""

    def __init__(self) -> None:
        self.backend = FailingStorage(MemoryState())
        self.backend.arrived = asyncio.Event()
        self.tracer = RecordingTracer()
        self.server = RpcServer(
            self.backend,
            SingleStore(self.backend, Phase.SQLITE_ONLY),
            ServerOptions(tracer=self.tracer),
        )
        self.address = ""

    async def start(self) -> None:
        await self.backend.open()
        self.address = f"127.0.0.1:{await self.server.start('127.0.0.1:0')}"
        self.channel = aio.insecure_channel(self.address)
        self.storage = StorageServiceStub(self.channel)

    async def health(self) -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=""))
        status: int = answer.status
        return status

    async def refused(self, call: Callable[[], Any]) -> Refusal:
        with pytest.raises(aio.AioRpcError) as caught:
            await call()
        return refusal_of(caught.value)

    async def get(self) -> Refusal:
        return await self.refused(lambda: self.storage.Get(storage_pb2.GetRequest(id="x")))

    async def close(self) -> None:
        await self.channel.close()
        await self.server.stop()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    await served.start()
    yield served
    await served.close()


async def test_starting_server_refuses_calls(served: Served) -> None:
    assert await served.health() == health_pb2.HealthCheckResponse.NOT_SERVING
    refusal = await served.get()
    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert refusal.reason == "SERVER_STARTING"
    assert refusal.retry_after is not None
    await served.server.start_accepting()
    assert await served.health() == health_pb2.HealthCheckResponse.SERVING
    assert (await served.get()).code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("error", "code", "retry_after"),
    [
        (UnavailableError("the store is unavailable", retry_after=2.5), "UNAVAILABLE", 2.5),
        (StorageFullError("the disk is full"), "RESOURCE_EXHAUSTED", 5.0),
        (FencedError("another server holds the migration"), "UNAVAILABLE", 1.0),
    ],
)
async def test_outage_returns_its_status_and_retry_after(
    served: Served, error: StorageError, code: str, retry_after: float
) -> None:
    await served.server.start_accepting()
    served.backend.error = error
    refusal = await served.get()
    assert refusal.code.name == code
    assert (refusal.reason, refusal.message) == (error.reason, str(error))
    assert refusal.retry_after == retry_after


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError(SECRET), "INTERNAL"),
        (KeyError(SECRET), "INTERNAL"),
        (TimeoutError(SECRET), "INTERNAL"),
        (StorageError(SECRET), "STORAGE_ERROR"),
        (CorruptStoreError(SECRET), "STORE_CORRUPT"),
        (CannotOpenError(SECRET), "CANNOT_OPEN"),
    ],
)
async def test_defect_reveals_only_a_reference(
    served: Served, error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    await served.server.start_accepting()
    served.backend.error = error
    with caplog.at_level(logging.ERROR):
        refusal = await served.get()
    assert refusal.code is grpc.StatusCode.INTERNAL
    assert refusal.reason == reason
    assert refusal.reference
    assert refusal.reference in refusal.message
    assert refusal.metadata == {"reference": refusal.reference}
    assert "sekret" not in repr(refusal)


async def test_drain_waits_for_a_call_in_progress(served: Served) -> None:
    await served.server.start_accepting()
    served.backend.admission = asyncio.Event()
    call = asyncio.ensure_future(served.get())
    await served.backend.arrived.wait()
    drain = asyncio.create_task(served.server.drain(60))
    await until(lambda: served.server._lifecycle.state is LifecycleState.DRAINING)
    assert await served.health() == health_pb2.HealthCheckResponse.NOT_SERVING
    late = await served.refused(
        lambda: served.storage.Save(storage_pb2.SaveRequest(message=message()))
    )
    assert late.reason == "SERVER_DRAINING"
    assert not drain.done()
    served.backend.admission.set()
    assert (await call).code is grpc.StatusCode.NOT_FOUND
    assert await drain
    assert served.server.calls_in_progress == 0


async def test_cancelled_call_ends(served: Served) -> None:
    await served.server.start_accepting()
    served.backend.admission = asyncio.Event()
    call = served.storage.Get(storage_pb2.GetRequest(id="x"))
    await served.backend.arrived.wait()
    call.cancel()
    await until(lambda: not served.server.calls_in_progress)


async def test_expired_deadline_ends_the_call(served: Served) -> None:
    await served.server.start_accepting()
    served.backend.admission = asyncio.Event()
    refusal = await served.refused(
        lambda: served.storage.Get(storage_pb2.GetRequest(id="x"), timeout=0.2)
    )
    assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: not served.server.calls_in_progress)


async def test_cancelled_bulk_stream_leaves_no_tasks(served: Served) -> None:
    await served.server.start_accepting()

    async def endless() -> AsyncIterator[storage_pb2.BulkSaveRequest]:
        yield batch(1, message())
        await asyncio.Event().wait()

    call = served.storage.BulkSave(endless())
    answer = await call.read()
    assert isinstance(answer, storage_pb2.BulkSaveResponse)
    assert answer.saved == 1
    assert any("BulkStream" in repr(task) for task in asyncio.all_tasks())
    call.cancel()
    await until(lambda: not served.server.calls_in_progress)
    await until(lambda: not any("BulkStream" in repr(task) for task in asyncio.all_tasks()))


async def test_second_server_on_a_port_cannot_listen(served: Served) -> None:
    backend = MemoryStorage(MemoryState())
    second = RpcServer(backend, SingleStore(backend, Phase.SQLITE_ONLY))
    with pytest.raises(CannotListenError):
        await second.start(served.address)
    await second.stop()


async def test_calls_have_a_span_and_health_checks_have_none(served: Served) -> None:
    await served.server.start_accepting()
    await served.health()
    assert (await served.get()).code is grpc.StatusCode.NOT_FOUND
    # The span ends after the answer was sent, which the client may see first.
    await until(lambda: bool(served.tracer.spans))
    assert served.tracer.spans == [("sagastore.v1.StorageService/Get", "NOT_FOUND")]
