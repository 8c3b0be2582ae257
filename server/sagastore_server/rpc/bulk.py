"""BulkSave: batches stored side by side, answered in order, read no faster than stored.

One task reads and has batches checked, so that the check of the next one runs while one is
stored; one starts the storing of those that are checked, in order; the call itself answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, cast

from sagastore.v1 import storage_pb2
from sagastore_server.rpc import bulk_validation, convert
from sagastore_server.rpc.lifecycle import Lifecycle
from sagastore_server.rpc.offload import aside
from sagastore_server.rpc.status import one_line
from sagastore_server.rpc.wire import InvalidText
from sagastore_server.storage.base import Indexer, PreparedTerms, StorageBackend
from sagastore_server.storage.errors import InvalidRequestError, Violation
from sagastore_server.storage.model import NewMessage, OnConflict
from sagastore_server.storage.validation import MAX_BATCH, MAX_ID, Violations

READ_AHEAD = 4
"""Batches of one stream that are read and not yet answered, at most."""

_PER_MESSAGE = 100
"""Bytes that a message counts for beside its own: what is small takes time too."""

Request = storage_pb2.BulkSaveRequest | InvalidText


class Batch(NamedTuple):
    """A checked batch."""

    sequence: int
    drafts: list[NewMessage]
    terms: PreparedTerms | None
    """Of the drafts."""
    rejected: list[storage_pb2.RejectedMessage]
    on_conflict: OnConflict


class _Flight(NamedTuple):
    ids: frozenset[str]
    answer: asyncio.Task[storage_pb2.BulkSaveResponse]


class BulkStream:
    """One BulkSave call.

    Batches that share an id are stored one after the other, in the order sent,
    because a backend promises no order between calls.
    """

    def __init__(self, backend: StorageBackend, lifecycle: Lifecycle) -> None:
        """Store into ``backend``; end early when ``lifecycle`` ends streams."""
        self._backend = backend
        self._lifecycle = lifecycle
        self._slots = asyncio.Semaphore(READ_AHEAD)
        self._checks: asyncio.Queue[asyncio.Task[Batch] | None] = asyncio.Queue()
        self._flights: asyncio.Queue[_Flight | None] = asyncio.Queue()
        self._checking: list[asyncio.Task[Batch]] = []
        self._under_way: list[_Flight] = []

    async def run(
        self, requests: AsyncIterator[Request]
    ) -> AsyncIterator[storage_pb2.BulkSaveResponse]:
        """Yield the answer to each request, in order, once it is durable.

        Raises:
            InvalidRequestError: A batch is empty or too large; those before it
                were answered.
            StorageError: As ``StorageBackend.bulk_save``.
            ServerDrainingError: The server shuts down; what was read was answered.

        """
        reader = asyncio.create_task(self._read(requests))
        starter = asyncio.create_task(self._start())
        ender = asyncio.create_task(self._end_early(reader))
        try:
            while (flight := await self._flights.get()) is not None:
                yield await flight.answer
                self._under_way.remove(flight)
                self._slots.release()
            await starter
            if self._lifecycle.end_streams.is_set() and reader.cancelled():
                raise self._lifecycle.refusal()
            await reader
        finally:
            answers = [flight.answer for flight in self._under_way]
            await _end([reader, starter, ender, *self._checking, *answers])

    async def _read(self, requests: AsyncIterator[Request]) -> None:
        """Have each batch that comes in checked, while there are free slots."""
        try:
            await self._slots.acquire()
            async for request in requests:
                check = asyncio.create_task(checked(request, self._backend.indexer))
                self._checking.append(check)
                self._checks.put_nowait(check)
                await self._slots.acquire()
        finally:
            self._checks.put_nowait(None)

    async def _start(self) -> None:
        """Start the storing of each batch, in order, when it is checked.

        Raises:
            InvalidRequestError: A batch as a whole breaks a rule.

        """
        try:
            while (check := await self._checks.get()) is not None:
                batch = await check
                self._checking.remove(check)
                ids = frozenset(draft.id for draft in batch.drafts)
                await self._wait_for_earlier(ids)
                flight = _Flight(ids, asyncio.create_task(self._store(batch)))
                self._under_way.append(flight)
                self._flights.put_nowait(flight)
        finally:
            self._flights.put_nowait(None)

    async def _wait_for_earlier(self, ids: frozenset[str]) -> None:
        for flight in list(self._under_way):
            if not flight.ids.isdisjoint(ids):
                await asyncio.wait({flight.answer})

    async def _store(self, batch: Batch) -> storage_pb2.BulkSaveResponse:
        answer = storage_pb2.BulkSaveResponse(sequence=batch.sequence, rejected=batch.rejected)
        if batch.drafts:
            result = await self._backend.bulk_save(batch.drafts, batch.on_conflict, batch.terms)
            answer.saved, answer.unchanged, answer.skipped = result
        return answer

    async def _end_early(self, reader: asyncio.Task[None]) -> None:
        """Stop reading when the server wants streams to end."""
        await self._lifecycle.end_streams.wait()
        reader.cancel()


async def checked(request: Request, indexer: Indexer | None = None) -> Batch:
    """Return the valid messages of a request as drafts, and the others with reasons.

    ``indexer`` makes what the store indexes of each draft.

    Raises:
        InvalidRequestError: The batch as a whole breaks a rule.

    """
    broken: dict[int, list[Violation]] = {}
    if isinstance(request, InvalidText):
        request, broken = _repaired(request)
    on_conflict = _check_batch(request)
    sent = [(message.SerializeToString(), indexer) for message in request.messages]
    size = sum([_PER_MESSAGE + len(message) for message, _ in sent])
    drafts: list[NewMessage] = []
    terms: list[object] = []
    rejected: list[storage_pb2.RejectedMessage] = []
    for index, (found, draft, one) in enumerate(await aside(bulk_validation.check, sent, size)):
        violations = _merged(broken[index], found) if index in broken else found
        if violations:
            rejected.append(_rejected(index, draft[0], violations))
        else:
            drafts.append(NewMessage._make(draft))
            terms.append(one)
    made = None if indexer is None else PreparedTerms(indexer, terms)
    return Batch(request.sequence, drafts, made, rejected, on_conflict)


def _check_batch(request: storage_pb2.BulkSaveRequest) -> OnConflict:
    check = Violations()
    count = len(request.messages)
    if not 1 <= count <= MAX_BATCH:
        check.add("messages", f"has {count:,} entries, 1 to {MAX_BATCH:,} are allowed")
    on_conflict = convert.ON_CONFLICT.get(request.on_conflict)
    if on_conflict is None:
        check.add("on_conflict", f"is {request.on_conflict}, which is not a known value")
    check.raise_if_any()
    return on_conflict or OnConflict.REPLACE


def _repaired(
    request: InvalidText,
) -> tuple[storage_pb2.BulkSaveRequest, dict[int, list[Violation]]]:
    """Sort what could not be read by message; it spoils only those."""
    if request.repaired is None:
        raise InvalidRequestError(request.violations)
    broken: dict[int, list[Violation]] = {}
    for field, reason in request.violations:
        head, _, name = field.partition("].")
        broken.setdefault(int(head.removeprefix("messages[")), []).append(Violation(name, reason))
    return cast("storage_pb2.BulkSaveRequest", request.repaired), broken


def _merged(unreadable: list[Violation], found: list[Violation]) -> list[Violation]:
    """Add the rules that other fields break: an unreadable one was replaced by ``?``."""
    fields = {violation.field for violation in unreadable}
    return unreadable + [violation for violation in found if violation.field not in fields]


def _rejected(
    index: int, message_id: str, violations: list[Violation]
) -> storage_pb2.RejectedMessage:
    # An id that is too long is cut, or a thousand of them would not fit into an answer.
    shown = message_id if len(message_id) <= MAX_ID else message_id[:MAX_ID] + "…"
    return storage_pb2.RejectedMessage(
        index=index, id=shown, field=violations[0].field, reason=one_line(violations)
    )


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel what still runs and wait until it has ended, whatever it ends with."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
