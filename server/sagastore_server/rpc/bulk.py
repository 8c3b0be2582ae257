"""BulkSave streams: batches are stored concurrently and answered in order, with backpressure.

A batch passes four states:

1. *read*: the reader task takes it from the stream once fewer than `READ_AHEAD` batches are
   unanswered;
2. *validating*: a task per batch checks its messages, in a worker process if the batch is large;
3. *storing*: the starter task takes validated batches in the order sent and starts a task that
   stores each. So the sequences of new messages follow the order of the stream. A batch that
   shares an id with an earlier one waits until that one is stored, because a backend promises no
   other order between concurrent calls;
4. *answered*: the call yields the responses in the order sent, each once its batch is durable.

A stream ends in one of four ways:

* the client ends it: every batch is answered;
* a batch as a whole is invalid, or the store fails: the batches before it are answered, then the
  stream ends with the error, and later batches are cancelled;
* the server drains: reading stops, every batch that was read is answered, and the stream ends
  with SERVER_DRAINING;
* the call is cancelled: every task ends with it. Batches that are storing may have been stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, cast

from sagastore.v1 import storage_pb2
from sagastore_server.rpc import bulk_validation, convert
from sagastore_server.rpc.lifecycle import Lifecycle
from sagastore_server.rpc.status import one_line
from sagastore_server.rpc.wire import InvalidText, by_entry, merged
from sagastore_server.runtime.supervisor import awaited
from sagastore_server.runtime.worker_pool import SHORT, WorkerPool
from sagastore_server.storage.base import Indexer, PreparedTerms, StorageBackend
from sagastore_server.storage.errors import InvalidRequestError, Violation
from sagastore_server.storage.model import NewMessage, OnConflict
from sagastore_server.storage.validation import MAX_BATCH, MAX_ID, Violations

READ_AHEAD = 4
"""Maximum number of batches of a stream that are read and not answered."""

_MESSAGE_OVERHEAD = 100
"""Cost of a message in addition to its bytes: a small message takes time too."""

_MESSAGES_AT_ONCE = 100
"""Messages that are handled before other calls get their turn: a message may have 6 MiB, but a
request of the default limit at most 32."""

Request = storage_pb2.BulkSaveRequest | InvalidText


class Batch(NamedTuple):
    """A validated batch."""

    sequence: int
    drafts: list[NewMessage]
    terms: PreparedTerms | None
    """Index terms of ``drafts``."""
    rejected: list[storage_pb2.RejectedMessage]
    on_conflict: OnConflict


class _StoringBatch(NamedTuple):
    ids: frozenset[str]
    response: asyncio.Task[storage_pb2.BulkSaveResponse]


class BulkStream:
    """One BulkSave call."""

    def __init__(
        self, backend: StorageBackend, lifecycle: Lifecycle, worker_pool: WorkerPool
    ) -> None:
        """Store into ``backend``; end early when ``lifecycle`` ends streams.

        Large batches are validated in ``worker_pool``.
        """
        self._backend = backend
        self._lifecycle = lifecycle
        self._worker_pool = worker_pool
        self._slots = asyncio.Semaphore(READ_AHEAD)
        # Each queue ends with None.
        self._read_batches: asyncio.Queue[asyncio.Task[Batch] | None] = asyncio.Queue()
        self._started_batches: asyncio.Queue[_StoringBatch | None] = asyncio.Queue()
        self._validating: list[asyncio.Task[Batch]] = []
        self._storing: list[_StoringBatch] = []

    async def run(
        self, requests: AsyncIterator[Request]
    ) -> AsyncIterator[storage_pb2.BulkSaveResponse]:
        """Yield the response to each request in order, once its messages are durable.

        Raises:
            InvalidRequestError: A batch is empty or too large; the batches before it
                were answered.
            StorageError: As ``StorageBackend.bulk_save``.
            ServerDrainingError: The server shuts down; the batches that were read were answered.

        """
        reader = awaited(self._read(requests))
        starter = awaited(self._start_storing())
        drain_watcher = awaited(self._stop_reading_in_drain(reader))
        try:
            while (batch := await self._started_batches.get()) is not None:
                yield await batch.response
                self._storing.remove(batch)
                self._slots.release()
            await starter
            if self._lifecycle.end_streams.is_set() and reader.cancelled():
                raise self._lifecycle.refusal()
            await reader
        finally:
            responses = [batch.response for batch in self._storing]
            await _cancel([reader, starter, drain_watcher, *self._validating, *responses])

    async def _read(self, requests: AsyncIterator[Request]) -> None:
        """Read batches while there are free slots, and start the validation of each."""
        try:
            await self._slots.acquire()
            async for request in requests:
                validation = awaited(
                    validate_batch(request, self._worker_pool, self._backend.indexer)
                )
                self._validating.append(validation)
                self._read_batches.put_nowait(validation)
                await self._slots.acquire()
        finally:
            self._read_batches.put_nowait(None)

    async def _start_storing(self) -> None:
        """Start to store each batch, in the order sent, once it is validated.

        Raises:
            InvalidRequestError: A batch as a whole is invalid.

        """
        try:
            while (validation := await self._read_batches.get()) is not None:
                batch = await validation
                self._validating.remove(validation)
                ids = frozenset(draft.id for draft in batch.drafts)
                await self._wait_for_earlier(ids)
                storing = _StoringBatch(ids, awaited(self._store(batch)))
                self._storing.append(storing)
                self._started_batches.put_nowait(storing)
        finally:
            self._started_batches.put_nowait(None)

    async def _wait_for_earlier(self, ids: frozenset[str]) -> None:
        for batch in list(self._storing):
            if not batch.ids.isdisjoint(ids):
                await asyncio.wait({batch.response})

    async def _store(self, batch: Batch) -> storage_pb2.BulkSaveResponse:
        response = storage_pb2.BulkSaveResponse(sequence=batch.sequence, rejected=batch.rejected)
        if batch.drafts:
            result = await self._backend.bulk_save(batch.drafts, batch.on_conflict, batch.terms)
            response.saved, response.unchanged, response.skipped = result
        return response

    async def _stop_reading_in_drain(self, reader: asyncio.Task[None]) -> None:
        await self._lifecycle.end_streams.wait()
        reader.cancel()


async def validate_batch(
    request: Request, worker_pool: WorkerPool, indexer: Indexer | None = None
) -> Batch:
    """Return the valid messages of a request as drafts, and the invalid ones with reasons.

    ``indexer`` extracts the index terms of each draft.

    Raises:
        InvalidRequestError: The batch as a whole is invalid.

    """
    unreadable: dict[int, list[Violation]] = {}
    if isinstance(request, InvalidText):
        request, unreadable = _repaired(request)
    on_conflict = _check_batch(request)
    keep = request.keep_created_at
    sent = []
    for number, message in enumerate(request.messages, start=1):
        sent.append((keep, message.SerializeToString(), indexer))
        if number % _MESSAGES_AT_ONCE == 0:
            await asyncio.sleep(0)
    size = sum([_MESSAGE_OVERHEAD + len(message) for _, message, _ in sent])
    drafts: list[NewMessage] = []
    terms: list[object] = []
    rejected: list[storage_pb2.RejectedMessage] = []
    results = (
        [bulk_validation.check(*one) for one in sent]
        if size < SHORT
        else await worker_pool.map(bulk_validation.check, sent)
    )
    for index, (found, draft, one) in enumerate(results):
        violations = merged(unreadable[index], found) if index in unreadable else found
        if violations:
            rejected.append(_rejected(index, draft[0], violations))
        else:
            drafts.append(NewMessage._make(draft))
            terms.append(one)
    prepared = None if indexer is None else PreparedTerms(indexer, terms)
    return Batch(request.sequence, drafts, prepared, rejected, on_conflict)


def _check_batch(request: storage_pb2.BulkSaveRequest) -> OnConflict:
    check = Violations()
    count = len(request.messages)
    if not 1 <= count <= MAX_BATCH:
        check.add("messages", f"has {count:,} entries, 1 to {MAX_BATCH:,} are allowed")
    on_conflict = convert.ON_CONFLICT.get(request.on_conflict)
    if on_conflict is None:
        check.add("on_conflict", f"is {request.on_conflict}, not a known value")
    check.raise_if_any()
    return on_conflict or OnConflict.REPLACE


def _repaired(
    request: InvalidText,
) -> tuple[storage_pb2.BulkSaveRequest, dict[int, list[Violation]]]:
    """Return the repaired request, and the violations of unreadable text by message index."""
    if request.repaired is None:
        raise InvalidRequestError(request.violations)
    unreadable = by_entry(request.violations, "messages")
    return cast("storage_pb2.BulkSaveRequest", request.repaired), unreadable


def _rejected(
    index: int, message_id: str, violations: list[Violation]
) -> storage_pb2.RejectedMessage:
    # Truncated, because a thousand ids that are too long would not fit into a response.
    shown = message_id if len(message_id) <= MAX_ID else message_id[:MAX_ID] + "…"
    return storage_pb2.RejectedMessage(
        index=index, id=shown, field=violations[0].field, reason=one_line(violations)
    )


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel the tasks that still run, and wait until every task has ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
