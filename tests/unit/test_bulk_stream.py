"""BulkSave streams over a store whose batches end when the test releases them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from sagastore_server.rpc.bulk import READ_AHEAD, BulkStream, Request, validate_batch
from sagastore_server.rpc.lifecycle import Lifecycle, ServerDrainingError
from sagastore_server.runtime.worker_pool import WorkerPool
from sagastore_server.storage.base import PreparedTerms
from sagastore_server.storage.errors import InvalidRequestError, StorageFullError
from sagastore_server.storage.model import BulkResult, NewMessage, OnConflict
from tests.support.memory import MemoryState, MemoryStorage
from tests.support.messages import batch, message


class SlowStorage(MemoryStorage):
    """Holds each batch until the test calls `let` with its name."""

    def __init__(self) -> None:
        super().__init__(MemoryState())
        self.begun: list[str] = []
        self._doors: dict[str, asyncio.Event] = {}
        self.full: set[str] = set()
        self.cancelled: list[str] = []

    async def bulk_save(
        self,
        drafts: Sequence[NewMessage],
        on_conflict: OnConflict,
        terms: PreparedTerms | None = None,
    ) -> BulkResult:
        name = drafts[0].content
        self.begun.append(name)
        try:
            await self._admission(name).wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        if name in self.full:
            raise StorageFullError("the disk is full")
        return await super().bulk_save(drafts, on_conflict, terms)

    def let(self, *names: str) -> None:
        for name in names:
            self._admission(name).set()

    def _admission(self, name: str) -> asyncio.Event:
        return self._doors.setdefault(name, asyncio.Event())


class Stream:
    """A BulkSave stream with a queue of requests and a list of responses."""

    def __init__(self, storage: SlowStorage, lifecycle: Lifecycle, worker_pool: WorkerPool) -> None:
        self.taken = 0
        self.answers: list[int] = []
        self._requests: asyncio.Queue[Request | None] = asyncio.Queue()
        self._stream = BulkStream(storage, lifecycle, worker_pool)
        self.task = asyncio.create_task(self._run())

    def send(self, name: str, *ids: str, metadata: str = "") -> None:
        sequence = self._requests.qsize()
        messages = (message(id=one, content=name, metadata_json=metadata) for one in ids or (name,))
        self._requests.put_nowait(batch(sequence, *messages))

    def send_empty(self) -> None:
        self._requests.put_nowait(batch(99))

    def end(self) -> None:
        self._requests.put_nowait(None)

    async def _run(self) -> None:
        async for answer in self._stream.run(self._read()):
            self.answers.append(answer.sequence)

    async def _read(self) -> AsyncIterator[Request]:
        while (request := await self._requests.get()) is not None:
            self.taken += 1
            yield request


@pytest.fixture
async def storage() -> SlowStorage:
    storage = SlowStorage()
    await storage.open()
    return storage


@pytest.fixture
def lifecycle() -> Lifecycle:
    lifecycle = Lifecycle()
    lifecycle.start_accepting()
    return lifecycle


@pytest.fixture
async def worker_pool() -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(1)
    yield pool
    await pool.close()


@pytest.fixture
async def stream(
    storage: SlowStorage, lifecycle: Lifecycle, worker_pool: WorkerPool
) -> AsyncIterator[Stream]:
    others = asyncio.all_tasks()
    stream = Stream(storage, lifecycle, worker_pool)
    yield stream
    assert stream.task.done(), "the test has left the stream open"
    left = asyncio.all_tasks() - others - {asyncio.current_task()}
    assert not left, "the stream has left tasks behind"


async def settled() -> None:
    """Wait until every task waits for the test."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_responses_are_in_request_order(storage: SlowStorage, stream: Stream) -> None:
    for name in "abc":
        stream.send(name)
    stream.end()
    await settled()
    assert storage.begun == ["a", "b", "c"]
    storage.let("c", "b")
    await settled()
    assert stream.answers == []
    storage.let("a")
    await stream.task
    assert stream.answers == [0, 1, 2]


async def test_reader_stops_at_the_read_ahead_limit(storage: SlowStorage, stream: Stream) -> None:
    names = [f"b{number}" for number in range(20)]
    for name in names:
        stream.send(name)
    stream.end()
    await settled()
    assert stream.taken == len(storage.begun) == READ_AHEAD
    storage.let(*names[1:])
    await settled()
    assert stream.taken == READ_AHEAD
    storage.let(names[0])
    await stream.task
    assert stream.answers == list(range(20))


async def test_batches_that_share_an_id_are_stored_in_order(
    storage: SlowStorage, stream: Stream
) -> None:
    stream.send("a", "x", "y")
    stream.send("b", "y", "z")
    stream.send("c", "w")
    stream.end()
    await settled()
    assert storage.begun == ["a"]
    storage.let("a")
    await settled()
    assert storage.begun == ["a", "b", "c"]
    storage.let("b", "c")
    await stream.task
    assert (await storage.get("y")).content == "b"


async def test_invalid_batch_ends_the_stream_after_earlier_responses(
    storage: SlowStorage, stream: Stream
) -> None:
    stream.send("a")
    stream.send("b")
    stream.send_empty()
    stream.send("c")
    await settled()
    assert storage.begun == ["a", "b"]
    storage.let("a", "b")
    with pytest.raises(InvalidRequestError):
        await stream.task
    assert stream.answers == [0, 1]


async def test_store_failure_ends_the_stream_after_earlier_responses(
    storage: SlowStorage, stream: Stream
) -> None:
    storage.full = {"b"}
    for name in "abc":
        stream.send(name)
    await settled()
    storage.let("b")
    await settled()
    assert not stream.task.done()
    storage.let("a")
    with pytest.raises(StorageFullError):
        await stream.task
    assert stream.answers == [0]
    assert storage.cancelled == ["c"]


async def test_cancelled_stream_cancels_its_batches(storage: SlowStorage, stream: Stream) -> None:
    for name in "abc":
        stream.send(name)
    await settled()
    stream.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream.task
    assert storage.cancelled == ["a", "b", "c"]


async def test_drain_answers_the_batches_that_were_read(
    storage: SlowStorage, stream: Stream, lifecycle: Lifecycle
) -> None:
    names = [f"b{number}" for number in range(10)]
    for name in names:
        stream.send(name)
    await settled()
    lifecycle.enter()
    drain = asyncio.create_task(lifecycle.drain(0.0))
    await asyncio.wait_for(lifecycle.end_streams.wait(), 10)
    storage.let(*names)
    with pytest.raises(ServerDrainingError):
        await stream.task
    assert stream.answers == list(range(READ_AHEAD))
    assert not await drain


async def test_large_batch_does_not_block_the_event_loop(
    storage: SlowStorage, stream: Stream
) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while not storage.begun:
            turns += 1
            await asyncio.sleep(0)

    numbers = f'{{"n": [{"1.50, " * 400}1]}}'
    stream.send("a", *(str(number) for number in range(1000)), metadata=numbers)
    stream.end()
    await other()
    assert turns > 5
    storage.let("a")
    await stream.task


async def test_batch_validation_equals_validation_of_its_messages(worker_pool: WorkerPool) -> None:
    messages = [
        message(
            id=f"m-{number}" if number % 7 else "",
            content="x" * (number % 300) if number % 11 else "\x00",
            tags=["a", "b"] if number % 13 else ["a", ""],
            metadata_json='{"bb": 1.50, "a": [true, null]}' if number % 17 else '{"a": 1, "a": 2}',
        )
        for number in range(1000)
    ]
    for number, one in enumerate(messages):
        if number % 3:
            one.timestamp.FromMicroseconds(number * 1_000_003)
        if number % 19 == 0:
            one.timestamp.nanos = -1
    separate = [await validate_batch(batch(0, one), worker_pool) for one in messages]
    together = await validate_batch(batch(0, *messages), worker_pool)
    assert together.drafts == [draft for single in separate for draft in single.drafts]
    expected = []
    for number, single in enumerate(separate):
        for rejected in single.rejected:
            rejected.index = number
            expected.append(rejected)
    assert together.rejected == expected
    assert len(together.drafts) > 500
    assert len(together.rejected) > 200
