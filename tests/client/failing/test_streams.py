"""Streams against a server with scripted failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from sagastore import (
    AsyncClient,
    BulkProgress,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    Message,
    PermissionDeniedError,
    RetryPolicy,
    SagaStoreError,
    UnavailableError,
)
from sagastore.v1 import message_pb2, migration_pb2, storage_pb2
from tests.client.failing.scripted import (
    QUICK,
    Script,
    connect,
    hang,
    refuse,
    save_all,
    streaming,
    unavailable,
)

Code = grpc.StatusCode


def messages(count: int) -> list[Message]:
    return [Message("a", "b", f"{i}", id=f"{i}") for i in range(count)]


def contents(batches: list[storage_pb2.BulkSaveRequest]) -> list[str]:
    return [m.content for batch in batches for m in batch.messages]


async def test_bulk_save_returns_totals(script: Script, client: AsyncClient) -> None:
    batches: list[storage_pb2.BulkSaveRequest] = []
    script.play("BulkSave", save_all(batches))
    seen: list[BulkProgress] = []
    result = await client.bulk_save(messages(25), batch_size=10, on_progress=seen.append)
    assert (result.total, result.saved) == (25, 25)
    assert [p.acknowledged for p in seen] == [10, 20, 25]
    assert contents(batches) == [f"{i}" for i in range(25)]


async def test_empty_bulk_save_returns_zero(client: AsyncClient) -> None:
    result = await client.bulk_save([])
    assert result.total == 0


async def test_bulk_save_accepts_an_async_iterable(script: Script, client: AsyncClient) -> None:
    async def slowly() -> AsyncIterator[Message]:
        for message in messages(7):
            await asyncio.sleep(0)
            yield message

    batches: list[storage_pb2.BulkSaveRequest] = []
    script.play("BulkSave", save_all(batches))
    acks = [ack async for ack in client.bulk_save_stream(slowly(), batch_size=3)]
    assert [(a.first_position, a.count, a.saved) for a in acks] == [(0, 3, 3), (3, 3, 3), (6, 1, 1)]


async def test_broken_bulk_save_is_continued(script: Script, client: AsyncClient) -> None:
    batches: list[storage_pb2.BulkSaveRequest] = []
    script.play(
        "BulkSave",
        save_all(batches, stop_after=2),
        unavailable(),
        save_all(batches, stop_after=3),
        save_all(batches),
    )
    acks = [ack async for ack in client.bulk_save_stream(messages(100), batch_size=10)]
    assert [a.first_position for a in acks] == list(range(0, 100, 10))
    # An answer can be lost with its stream; then its batch comes again.
    assert list(dict.fromkeys(b.sequence for b in batches)) == list(range(10))
    assert list(dict.fromkeys(contents(batches))) == [f"{i}" for i in range(100)]


async def test_bulk_save_continues_although_every_stream_breaks(
    script: Script, client: AsyncClient
) -> None:
    batches: list[storage_pb2.BulkSaveRequest] = []
    script.play("BulkSave", save_all(batches, stop_after=1))
    acks = [ack async for ack in client.bulk_save_stream(messages(50), batch_size=10)]
    assert [(a.first_position, a.saved) for a in acks] == [(i, 10) for i in range(0, 50, 10)]


async def test_max_in_flight_is_respected(script: Script, client: AsyncClient) -> None:
    taken = 0
    received = 0

    def source() -> Any:
        nonlocal taken
        for message in messages(60):
            taken += 1
            yield message

    most = 0

    async def count(requests: Any, _: Any) -> AsyncIterator[Any]:
        nonlocal received, most
        async for request in requests:
            await asyncio.sleep(0.01)
            received += 1
            most = max(most, taken - 5 * received)
            yield storage_pb2.BulkSaveResponse(sequence=request.sequence, saved=5)

    script.play("BulkSave", streaming(count))
    await client.bulk_save(source(), batch_size=5, max_in_flight=2)
    # Two batches in flight, and a third being filled.
    assert most <= 15


async def test_bulk_save_survives_more_failures_than_a_call(
    script: Script, client: AsyncClient
) -> None:
    batches: list[storage_pb2.BulkSaveRequest] = []
    script.play(
        "BulkSave", save_all(batches, stop_after=1), *[unavailable()] * 20, save_all(batches)
    )
    result = await client.bulk_save(messages(30), batch_size=10)
    assert result.saved == 30


async def test_bulk_save_to_unreachable_server_fails_soon() -> None:
    async with AsyncClient("127.0.0.1:1", retry=QUICK) as client:
        async with asyncio.timeout(60):
            with pytest.raises(UnavailableError, match="connection refused"):
                await client.bulk_save(messages(3), timeout=100)


async def test_time_of_a_slow_input_does_not_count(script: Script, client: AsyncClient) -> None:
    async def slow() -> AsyncIterator[Message]:
        await asyncio.sleep(0.6)
        for message in messages(3):
            yield message

    batches: list[storage_pb2.BulkSaveRequest] = []
    script.play("BulkSave", unavailable(), save_all(batches))
    result = await client.bulk_save(slow(), timeout=0.5)
    assert result.saved == 3


async def test_bulk_save_without_response_times_out(script: Script, client: AsyncClient) -> None:
    script.play("BulkSave", hang())
    await connect(script, client)
    with pytest.raises(DeadlineExceededError, match=r"BulkSave: no response from .* for 0.3 s"):
        await client.bulk_save(messages(3), timeout=0.3)


async def test_rejected_bulk_save_is_raised(script: Script, client: AsyncClient) -> None:
    script.play("BulkSave", refuse(Code.INVALID_ARGUMENT, "no"))
    with pytest.raises(InvalidArgumentError):
        await client.bulk_save(messages(3))
    assert len(script.requests) == 1


async def test_out_of_order_response_is_an_internal_error(
    script: Script, client: AsyncClient
) -> None:
    async def wrong(requests: Any, _: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            yield storage_pb2.BulkSaveResponse(sequence=77)

    script.play("BulkSave", streaming(wrong))
    with pytest.raises(InternalError, match="answered batch 77 instead of 0"):
        await client.bulk_save(messages(3))


async def test_bulk_save_continues_after_an_early_stream_end(
    script: Script, client: AsyncClient
) -> None:
    async def leave(requests: Any, _: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield storage_pb2.BulkSaveResponse(sequence=request.sequence, saved=1)
            return

    script.play("BulkSave", streaming(leave))
    result = await client.bulk_save(messages(4), batch_size=1)
    assert result.saved == 4


async def test_invalid_message_is_reported_at_its_position(
    script: Script, client: AsyncClient
) -> None:
    batches: list[storage_pb2.BulkSaveRequest] = []
    script.play("BulkSave", save_all(batches))
    mixed = messages(6)
    mixed[2] = Message("a", "b", "\ud800", id="bad")
    mixed[3] = Message("a", "b", "\ud800", id="worse")
    acks = [ack async for ack in client.bulk_save_stream(mixed, batch_size=2)]
    assert [(a.first_position, a.count, a.saved) for a in acks] == [(0, 2, 2), (2, 2, 0), (4, 2, 2)]
    assert [(r.position, r.id, r.field) for a in acks for r in a.rejected] == [
        (2, "bad", "content"),
        (3, "worse", "content"),
    ]


async def test_input_error_is_raised(script: Script, client: AsyncClient) -> None:
    def source() -> Any:
        yield from messages(10)
        raise KeyError("the file is broken")

    script.play("BulkSave", save_all([]))
    with pytest.raises(KeyError):
        await client.bulk_save(source(), batch_size=5)


async def test_abandoned_bulk_save_ends_its_call(script: Script, client: AsyncClient) -> None:
    ended = asyncio.Event()

    async def watch(requests: Any, _: Any) -> AsyncIterator[Any]:
        try:
            async for request in requests:
                yield storage_pb2.BulkSaveResponse(sequence=request.sequence)
        finally:
            ended.set()

    script.play("BulkSave", streaming(watch))
    acks = client.bulk_save_stream(messages(100), batch_size=1)
    async for _ in acks:
        break
    await acks.aclose()
    await asyncio.wait_for(ended.wait(), 60)


async def test_closing_the_client_ends_a_bulk_save(script: Script, client: AsyncClient) -> None:
    script.play("BulkSave", hang())
    task = asyncio.create_task(client.bulk_save(messages(3)))
    await script.asked.wait()
    await client.close()
    with pytest.raises(SagaStoreError, match="the client was closed during the call"):
        await task


async def test_many_rejections_do_not_block_the_stream(script: Script, client: AsyncClient) -> None:
    async def reject(requests: Any, _: Any) -> AsyncIterator[Any]:
        async for request in requests:
            response = storage_pb2.BulkSaveResponse(sequence=request.sequence)
            for index in range(len(request.messages)):
                response.rejected.add(index=index, id="x" * 100, field="f", reason="r" * 300)
            yield response

    script.play("BulkSave", streaming(reject))
    result = await client.bulk_save(messages(20_000), timeout=60)
    assert [r.position for r in result.rejected] == list(range(20_000))


# Export


def export(ids: list[str], *, break_after: int | None = None) -> Any:
    """Export one id a batch, from the token on; the token is the id."""

    async def generate(request: storage_pb2.ExportRequest, context: Any) -> AsyncIterator[Any]:
        sent = 0
        for id in ids:
            if id <= request.resume_token:
                continue
            if sent == break_after:
                await unavailable()(request, context)
            sent += 1
            yield storage_pb2.ExportResponse(messages=[message_pb2.Message(id=id)], resume_token=id)

    return streaming(generate)


async def test_broken_export_is_continued(script: Script, client: AsyncClient) -> None:
    ids = [f"{i:03}" for i in range(50)]
    script.play(
        "Export",
        export(ids, break_after=3),
        export(ids, break_after=0),
        export(ids, break_after=20),
        export(ids),
    )
    assert [m.id async for m in client.export(batch_size=9)] == ids
    assert [r.resume_token for r in script.requests] == ["", "002", "002", "022"]
    assert {r.batch_size for r in script.requests} == {9}


async def test_export_starts_at_its_resume_token(script: Script, client: AsyncClient) -> None:
    script.play("Export", export(["a", "b", "c"]))
    batches = [b async for b in client.export_batches(resume_token="a")]
    assert [(b.messages[0].id, b.resume_token) for b in batches] == [("b", "b"), ("c", "c")]


async def test_export_without_response_times_out(script: Script, client: AsyncClient) -> None:
    script.play("Export", hang())
    await connect(script, client)
    with pytest.raises(DeadlineExceededError, match="Export: no response"):
        [m async for m in client.export(timeout=0.3)]


async def test_slow_reader_does_not_time_out(script: Script, client: AsyncClient) -> None:
    script.play("Export", export(["a", "b", "c"], break_after=1), export(["a", "b", "c"]))
    found = []
    async for message in client.export(timeout=1):
        found.append(message.id)
        await asyncio.sleep(1.1)
    assert found == ["a", "b", "c"]


async def test_abandoned_export_ends_its_call(script: Script, client: AsyncClient) -> None:
    ended = asyncio.Event()

    async def endless(_: Any, __: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield storage_pb2.ExportResponse(messages=[message_pb2.Message(id="x" * 1000)])
                await asyncio.sleep(0)
        finally:
            ended.set()

    script.play("Export", streaming(endless))
    stream = client.export()
    async for _ in stream:
        break
    await stream.aclose()
    await asyncio.wait_for(ended.wait(), 60)


async def test_verification_is_not_restarted(script: Script, client: AsyncClient) -> None:
    async def half(request: Any, context: Any) -> AsyncIterator[Any]:
        yield migration_pb2.VerifyResponse(compared=1, total=2)
        await unavailable()(request, context)

    script.play("Verify", unavailable(), streaming(half))
    seen = []

    async def verify() -> None:
        async for progress in client.migration.verify(repair=True):
            seen.append(progress.compared)  # noqa: PERF401 - it fails on the way

    with pytest.raises(UnavailableError):
        await verify()
    assert seen == [1]
    assert len(script.requests) == 2


async def test_streams_are_not_retried_without_retries(script: Script) -> None:
    script.play("BulkSave", save_all([], stop_after=1))
    script.play("Export", export(["a", "b"], break_after=1))
    async with AsyncClient(script.address, retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(UnavailableError):
            await client.bulk_save(messages(3), batch_size=1)
        with pytest.raises(UnavailableError):
            [m async for m in client.export()]


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_bulk_save_reports_the_server_error(
    script: Script, client: AsyncClient, after: int
) -> None:
    """Not the one that gRPC makes of a write that fails because of it."""

    async def refuse_later(requests: Any, context: Any) -> AsyncIterator[Any]:
        for _ in range(after):
            request = await anext(requests)
            yield storage_pb2.BulkSaveResponse(sequence=request.sequence, saved=1)
        await refuse(Code.PERMISSION_DENIED, "you may not", reason="NO")(requests, context)

    script.play("BulkSave", streaming(refuse_later))
    for _ in range(8):
        with pytest.raises(PermissionDeniedError, match="you may not") as caught:
            await client.bulk_save(messages(30), batch_size=1)
        assert caught.value.reason == "NO"
