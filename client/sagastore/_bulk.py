"""Bulk saves: cuts the input into batches, and keeps some of them in flight."""

# A timeout here goes with the call to the server, or spans several calls.
# ruff: noqa: ASYNC109

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from sagastore import _status
from sagastore._call import closed, silent
from sagastore._convert import message_to_pb
from sagastore._enums import OnConflict
from sagastore._ids import new_id
from sagastore._model import BulkAck, BulkProgress, BulkResult, Message, RejectedMessage
from sagastore.errors import (
    InternalError,
    InvalidArgumentError,
    SagaStoreError,
    UnavailableError,
)
from sagastore.v1 import storage_pb2

if TYPE_CHECKING:
    from sagastore._call import Caller
    from sagastore._pool import Endpoint

__all__ = ["Batch", "Batcher", "BulkSender", "Tally"]

_MAX_MESSAGES = 1000
_MAX_BYTES = 2 * 1024 * 1024
_GOODBYE_SECONDS = 5.0
# The server's status comes at once, or, where answers are lost with the stream,
# never; then sending again will bring it.
_VERDICT_SECONDS = 0.25
_WRITE_FAILED = "Internal error from Core"

# Wire form of BulkSaveRequest. The messages are serialized one by one to learn
# their size, and what is serialized need not be built into a request and
# serialized again: that took as long as everything else together.
_SEQUENCE_TAG = b"\x08"
_MESSAGE_TAG = b"\x12"
_ON_CONFLICT_TAG = b"\x18"


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@dataclass(slots=True)
class Batch:
    """Consecutive messages of the input, ready to be sent.

    Attributes:
        sequence: Number of the batch, from 0.
        first_position: Position in the input of its first message.
        count: Messages of the input in it, those rejected here included.
        payload: The serialized request; None when all were rejected here.
        positions: Positions in the input of the messages sent; None where they
            are simply consecutive.
        rejected: Those that cannot be sent at all.
    """

    sequence: int
    first_position: int
    count: int = 0
    payload: bytes | None = None
    positions: list[int] | None = None
    rejected: list[RejectedMessage] = field(default_factory=list)

    def acknowledged(self, pb: storage_pb2.BulkSaveResponse) -> BulkAck:
        """Return the outcome of the batch."""
        refused = [
            RejectedMessage(self._position(r.index), r.id, r.field, r.reason) for r in pb.rejected
        ]
        rejected = sorted(self.rejected + refused, key=lambda r: r.position)
        return BulkAck(
            first_position=self.first_position,
            count=self.count,
            saved=pb.saved,
            unchanged=pb.unchanged,
            skipped=pb.skipped,
            rejected=tuple(rejected),
        )

    def _position(self, index: int) -> int:
        return self.first_position + index if self.positions is None else self.positions[index]


class Batcher:
    """Cuts messages into batches, by number and by bytes."""

    def __init__(self, batch_size: int, on_conflict: OnConflict) -> None:
        if not 1 <= batch_size <= _MAX_MESSAGES:
            raise ValueError(f"batch_size must be 1 to {_MAX_MESSAGES}, not {batch_size}")
        self._batch_size = batch_size
        self._tail = _ON_CONFLICT_TAG + _varint(int(on_conflict))
        self._position = 0
        self._sequence = 0
        self._begin()

    def _begin(self) -> None:
        self._batch = Batch(self._sequence, self._position)
        self._parts = [_SEQUENCE_TAG, _varint(self._sequence)]
        self._bytes = 0
        self._sent: list[int] = []
        self._sequence += 1

    def add(self, message: Message) -> Batch | None:
        """Take one message; return the batch that is full with it or without it.

        Raises:
            TypeError: It is not a Message.
        """
        if not isinstance(message, Message):
            raise TypeError(
                f"position {self._position}: expected a Message, got {type(message).__name__}"
            )
        id = message.id or new_id()
        full = None
        try:
            data = message_to_pb(message, id).SerializeToString()
        except InvalidArgumentError as exc:
            violation = exc.violations[0]
            self._reject(id, violation.field, violation.description)
        else:
            if len(data) > _MAX_BYTES:
                size = f"{len(data):,} bytes, more than any message may have"
                self._reject(id, "message", size)
            else:
                if self._bytes + len(data) > _MAX_BYTES:
                    full = self.flush()
                self._append(data)
        # A batch just cut by bytes leaves one of a single message behind, which
        # is full only where batch_size is 1; then nothing was there to be cut.
        if full is None and self._batch.count >= self._batch_size:
            full = self.flush()
        return full

    def _append(self, data: bytes) -> None:
        self._parts += (_MESSAGE_TAG, _varint(len(data)), data)
        self._bytes += len(data)
        self._sent.append(self._position)
        self._batch.count += 1
        self._position += 1

    def _reject(self, id: str, field: str, reason: str) -> None:
        self._batch.rejected.append(RejectedMessage(self._position, id, field, reason))
        self._batch.count += 1
        self._position += 1

    def flush(self) -> Batch | None:
        """Return the batch begun, however small; None where it is empty."""
        batch = self._batch
        if not batch.count:
            return None
        if self._sent:
            self._parts.append(self._tail)
            batch.payload = b"".join(self._parts)
        if batch.rejected:
            batch.positions = self._sent
        self._begin()
        return batch


class _Stream:
    """One BulkSave call."""

    def __init__(self, caller: Caller, endpoint: Endpoint) -> None:
        self.address = endpoint.address
        self._security = endpoint.security
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._verdict: asyncio.Future[grpc.aio.AioRpcError] = (
            asyncio.get_running_loop().create_future()
        )
        self._pool = caller.pool
        self._metadata = caller.pool.metadata()
        self._call = endpoint.bulk_save(self._take(), metadata=self._metadata)
        self._call.add_done_callback(self._note_status)
        self._read: asyncio.Task[Any] | None = None

    async def _take(self) -> AsyncGenerator[bytes, None]:
        while (payload := await self._requests.get()) is not None:
            yield payload

    def _note_status(self, call: Any) -> None:
        """Keep the status with which the server ended the call.

        Where a write fails because the server has ended the call, gRPC (issue
        36066) puts an error of its own in the place of the server's status,
        before or after that arrives. It calls this for each of them, when it is
        set, so that none of the questions below has to wait.
        """
        code, details = _now(call.code()), _now(call.details())
        if code is grpc.StatusCode.OK or details == _WRITE_FAILED or self._verdict.done():
            return
        trailing = _now(call.trailing_metadata()) or grpc.aio.Metadata()
        self._verdict.set_result(
            grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=details)
        )

    def send(self, payload: bytes) -> None:
        self._requests.put_nowait(payload)

    @property
    def ready(self) -> bool:
        """True when `read` would not wait."""
        return self._reading().done()

    def _reading(self) -> asyncio.Task[Any]:
        # Always one read under way: answers that nobody reads would fill the
        # connection, and then the server would stop reading, too.
        if self._read is None:
            self._read = asyncio.ensure_future(self._call.read())
        return self._read

    async def read(self, timeout: float) -> storage_pb2.BulkSaveResponse | SagaStoreError | None:
        """Return the next answer, the error that ended the call, or None at its end."""
        task = self._reading()
        done, _ = await asyncio.wait({task}, timeout=timeout)
        if not done:
            return silent("BulkSave", self.address, timeout)
        self._read = None
        if task.cancelled():
            return closed("BulkSave")
        try:
            response = task.result()
        except grpc.aio.AioRpcError as exc:
            await asyncio.wait({self._verdict}, timeout=_VERDICT_SECONDS)
            true = self._verdict.result() if self._verdict.done() else exc
            error = _status.from_rpc_error(true, "BulkSave", self.address, self._security)
            self._pool.note_token(error, self._metadata)
            return error
        return None if response is grpc.aio.EOF else response

    async def finish(self) -> None:
        """End the call in good order; all answers have been read."""
        self._requests.put_nowait(None)
        await self.read(_GOODBYE_SECONDS)
        self.close()

    def close(self) -> None:
        self._call.cancel()
        # Cancelling a call that has failed leaves gRPC waiting for requests.
        self._requests.put_nowait(None)
        if self._read is not None:
            self._read.add_done_callback(_forget)
            self._read.cancel()
            self._read = None


def _now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine returns that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    return None


def _forget(task: asyncio.Task[Any]) -> None:
    """Take note of a task's exception, so that asyncio does not report it as lost."""
    if not task.cancelled():
        task.exception()


class BulkSender:
    """Sends batches and collects their outcomes, over as many calls as it takes.

    What is not acknowledged when a call breaks is sent again, in order, over
    the next one. Used by one task at a time.
    """

    def __init__(self, caller: Caller, max_in_flight: int, timeout: float) -> None:
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight must be at least 1, not {max_in_flight}")
        self._caller = caller
        self._max_in_flight = max_in_flight
        self._patience = caller.patience(timeout)
        self._pending: deque[Batch] = deque()
        self._stream: _Stream | None = None

    @property
    def in_flight(self) -> int:
        """Batches that are not acknowledged yet."""
        return len(self._pending)

    async def exchange(self, batch: Batch) -> list[BulkAck]:
        """Send a batch; return what was acknowledged meanwhile.

        Waits until there is room for another batch.

        Raises:
            SagaStoreError: The batches in flight cannot be saved.
        """
        self._pending.append(batch)
        if self._stream is None:
            await self._open()
        elif batch.payload is not None:
            self._stream.send(batch.payload)
        acks = await self._collect(self._max_in_flight - 1)
        # Lets the connection work where the input never waits.
        await asyncio.sleep(0)
        return acks

    async def drain(self) -> list[BulkAck]:
        """Wait for at least one outcome, and return those that are there.

        Raises:
            SagaStoreError: The batches in flight cannot be saved.
        """
        return await self._collect(max(0, len(self._pending) - 1))

    async def finish(self) -> None:
        """End in good order, once nothing is in flight."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.finish()

    async def close(self) -> None:
        """Break off; what is in flight may be stored or not. Safe to repeat."""
        self._drop()

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    async def _open(self) -> _Stream:
        """Begin a call and send it all that is pending."""
        self._stream = stream = _Stream(self._caller, await self._caller.pool.acquire())
        for batch in self._pending:
            if batch.payload is not None:
                stream.send(batch.payload)
        return stream

    async def _collect(self, limit: int) -> list[BulkAck]:
        acks: list[BulkAck] = []
        while self._pending:
            head = self._pending[0]
            if head.payload is None:  # Nothing of it was sent.
                acks.append(head.acknowledged(storage_pb2.BulkSaveResponse()))
            elif len(self._pending) > limit or (self._stream is not None and self._stream.ready):
                acks.append(head.acknowledged(await self._answer(head)))
            else:
                break
            self._pending.popleft()
        return acks

    async def _answer(self, head: Batch) -> storage_pb2.BulkSaveResponse:
        """Return the answer to the oldest batch, over a new call where need be."""
        while True:
            stream = self._stream or await self._open()
            answer = await stream.read(self._patience.timeout)
            if isinstance(answer, storage_pb2.BulkSaveResponse):
                self._patience.progress()
                return _checked(answer, head)
            self._drop()
            error = answer or UnavailableError("BulkSave: the server ended the stream too early")
            await self._patience.pause(error, "BulkSave")


def _checked(answer: storage_pb2.BulkSaveResponse, head: Batch) -> storage_pb2.BulkSaveResponse:
    if answer.sequence != head.sequence:
        raise InternalError(
            f"BulkSave: the server answered batch {answer.sequence} instead of {head.sequence}"
        )
    return answer


class Tally:
    """Adds up the outcomes of a bulk save."""

    def __init__(self) -> None:
        self._acknowledged = self._saved = self._unchanged = self._skipped = 0
        self._rejected: list[RejectedMessage] = []

    def add(self, ack: BulkAck) -> BulkProgress:
        """Take in the outcome of one batch; return how far the save is now."""
        self._acknowledged += ack.count
        self._saved += ack.saved
        self._unchanged += ack.unchanged
        self._skipped += ack.skipped
        self._rejected += ack.rejected
        return BulkProgress(
            acknowledged=self._acknowledged,
            saved=self._saved,
            unchanged=self._unchanged,
            skipped=self._skipped,
            rejected=len(self._rejected),
        )

    def result(self) -> BulkResult:
        """Return the outcome of the whole."""
        return BulkResult(
            total=self._acknowledged,
            saved=self._saved,
            unchanged=self._unchanged,
            skipped=self._skipped,
            rejected=tuple(self._rejected),
        )
