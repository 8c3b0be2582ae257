"""Bulk save: divides the input into batches and keeps several of them in flight."""

# Timeouts are sent to the server or span several calls; `asyncio.timeout` cannot replace them.
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
from sagastore._call import stalled
from sagastore._checks import at_least, invalid, wrong_type
from sagastore._coalescing import closed
from sagastore._consistency import covering
from sagastore._convert import member, message_to_pb
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
# A batch ends before the message that would exceed this; a larger message is sent alone.
_MAX_BYTES = 2 * 1024 * 1024
# Larger than any valid message (1,000,000 characters of content, 1 MiB of metadata, 512 tags), and
# less than the smallest request limit of a server (8 MiB), which would end the stream.
_MAX_MESSAGE_BYTES = 6 * 1024 * 1024
_FINISH_SECONDS = 5.0
# The server's status arrives at once, or never if the stream is lost; a resent
# batch then receives it again.
_STATUS_SECONDS = 0.25
_WRITE_FAILED = "Internal error from Core"

# Wire format of BulkSaveRequest. Each message is serialized to learn its size.
# Building a request from messages would serialize them again, which took as long
# as all other work together.
_SEQUENCE_TAG = b"\x08"
_MESSAGE_TAG = b"\x12"
_ON_CONFLICT_TAG = b"\x18"
_KEEP_CREATED_AT = b"\x20\x01"


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
        count: Number of input messages, including those that the client rejected.
        payload: The serialized request; None if the client rejected all messages.
        positions: Input positions of the messages sent; None if they are
            consecutive.
        rejected: Messages that cannot be sent.
    """

    sequence: int
    first_position: int
    count: int = 0
    payload: bytes | None = None
    positions: list[int] | None = None
    rejected: list[RejectedMessage] = field(default_factory=list)

    def acknowledged(self, pb: storage_pb2.BulkSaveResponse) -> BulkAck:
        """Return the result of the batch for the server's response."""
        by_server = [
            RejectedMessage(self._position(r.index), r.id, r.field, r.reason) for r in pb.rejected
        ]
        rejected = sorted(self.rejected + by_server, key=lambda r: r.position)
        return BulkAck(
            first_position=self.first_position,
            count=self.count,
            saved=pb.saved,
            unchanged=pb.unchanged,
            skipped=pb.skipped,
            rejected=tuple(rejected),
            position=pb.position,
        )

    def _position(self, index: int) -> int:
        return self.first_position + index if self.positions is None else self.positions[index]


class Batcher:
    """Divides messages into batches, limited by number and by bytes."""

    def __init__(
        self, batch_size: int, on_conflict: OnConflict | str, *, keep_created_at: bool = False
    ) -> None:
        if not 1 <= batch_size <= _MAX_MESSAGES:
            raise invalid("batch_size", f"must be 1 to {_MAX_MESSAGES}, not {batch_size}")
        self._batch_size = batch_size
        self._tail = _ON_CONFLICT_TAG + _varint(member(OnConflict, on_conflict, "on_conflict"))
        if keep_created_at:
            self._tail += _KEEP_CREATED_AT
        self._keep_created_at = keep_created_at
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
        """Add a message; return a batch if one is now complete.

        Raises:
            ArgumentTypeError: `message` is not a Message.
        """
        if not isinstance(message, Message):
            raise wrong_type(f"messages[{self._position}]", "a Message", message)
        id = message.id or new_id()
        full = None
        try:
            data = message_to_pb(
                message, id, keep_created_at=self._keep_created_at
            ).SerializeToString()
        except InvalidArgumentError as exc:
            violation = exc.violations[0]
            self._reject(id, violation.field, violation.description)
        else:
            if len(data) > _MAX_MESSAGE_BYTES:
                size = f"{len(data):,} bytes, more than the maximum size of a message"
                self._reject(id, "message", size)
            else:
                if self._bytes + len(data) > _MAX_BYTES:
                    full = self.flush()
                self._append(data)
        # After a flush by bytes, the new batch has one message. It is complete only
        # if batch_size is 1, and then the flush did not happen.
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
        """Return the current batch, of any size; None if it is empty."""
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
        self._status_received: asyncio.Future[grpc.aio.AioRpcError] = (
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
        """Record the status with which the server ended the call.

        If a write fails because the server has ended the call, gRPC (issue
        36066) replaces the server's status with another error, before or
        after the status arrives. gRPC runs this callback for each of the two
        once it is set, so the coroutines below complete at once.
        """
        code, details = _now(call.code()), _now(call.details())
        if code is grpc.StatusCode.OK or details == _WRITE_FAILED or self._status_received.done():
            return
        trailing = _now(call.trailing_metadata()) or grpc.aio.Metadata()
        self._status_received.set_result(
            grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=details)
        )

    def send(self, payload: bytes) -> None:
        self._requests.put_nowait(payload)

    @property
    def ready(self) -> bool:
        """True if `read` would not wait."""
        return self._reading().done()

    def _reading(self) -> asyncio.Task[Any]:
        # One read is always pending: unread responses would fill the connection,
        # and the server would then stop reading requests.
        if self._read is None:
            self._read = asyncio.ensure_future(self._call.read())
        return self._read

    async def read(self, timeout: float) -> storage_pb2.BulkSaveResponse | SagaStoreError | None:
        """Return the next response, the error that ended the call, or None at the end."""
        task = self._reading()
        done, _ = await asyncio.wait({task}, timeout=timeout)
        if not done:
            return stalled("BulkSave", self.address, timeout)
        self._read = None
        if task.cancelled():
            return closed("BulkSave")
        try:
            response = task.result()
        except grpc.aio.AioRpcError as exc:
            await asyncio.wait({self._status_received}, timeout=_STATUS_SECONDS)
            cause = self._status_received.result() if self._status_received.done() else exc
            error = _status.from_rpc_error(cause, "BulkSave", self.address, self._security)
            self._pool.note_token(error, self._metadata)
            return error
        return None if response is grpc.aio.EOF else response

    async def finish(self) -> None:
        """End the call after all responses have been read."""
        self._requests.put_nowait(None)
        await self.read(_FINISH_SECONDS)
        self.close()

    def close(self) -> None:
        self._call.cancel()
        # After the cancellation of a failed call, gRPC still waits for requests.
        self._requests.put_nowait(None)
        if self._read is not None:
            self._read.add_done_callback(_forget)
            self._read.cancel()
            self._read = None


def _now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of a coroutine that does not wait."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    return None


def _forget(task: asyncio.Task[Any]) -> None:
    """Retrieve a task's exception so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


class BulkSender:
    """Sends batches and collects their results, over several calls if necessary.

    When a call breaks, the batches without an acknowledgement are resent in
    order over a new call. Not safe for concurrent use.
    """

    def __init__(self, caller: Caller, max_in_flight: int, timeout: float) -> None:
        at_least(max_in_flight, 1, "max_in_flight")
        self._caller = caller
        self._max_in_flight = max_in_flight
        self._retry = caller.stream_retry(timeout)
        self._pending: deque[Batch] = deque()
        self._stream: _Stream | None = None
        self._began = caller.positions.turn

    @property
    def in_flight(self) -> int:
        """Number of batches without an acknowledgement."""
        return len(self._pending)

    async def exchange(self, batch: Batch) -> list[BulkAck]:
        """Send a batch; return the results that have arrived.

        Waits until another batch may be sent.

        Raises:
            SagaStoreError: The batches in flight cannot be saved.
        """
        self._pending.append(batch)
        if self._stream is None:
            await self._open()
        elif batch.payload is not None:
            self._stream.send(batch.payload)
        acks = await self._collect(self._max_in_flight - 1)
        # Lets the connection proceed if the input never waits.
        await asyncio.sleep(0)
        return acks

    async def drain(self) -> list[BulkAck]:
        """Wait for at least one result; return all that have arrived.

        Raises:
            SagaStoreError: The batches in flight cannot be saved.
        """
        return await self._collect(max(0, len(self._pending) - 1))

    async def finish(self) -> None:
        """End the call when no batch is in flight."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.finish()

    async def close(self) -> None:
        """Abort. Batches in flight may or may not be stored. Can be called more than once."""
        if any(batch.payload is not None for batch in self._pending):
            self._caller.positions.note("")
        self._drop()

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    async def _open(self) -> _Stream:
        """Start a call and send all pending batches."""
        self._retry.begin()
        self._stream = stream = _Stream(self._caller, await self._caller.pool.acquire())
        for batch in self._pending:
            if batch.payload is not None:
                stream.send(batch.payload)
        return stream

    async def _collect(self, limit: int) -> list[BulkAck]:
        acks: list[BulkAck] = []
        while self._pending:
            head = self._pending[0]
            if head.payload is None:  # The client rejected all messages.
                acks.append(head.acknowledged(storage_pb2.BulkSaveResponse()))
            elif len(self._pending) > limit or (self._stream is not None and self._stream.ready):
                acks.append(head.acknowledged(await self._answer(head)))
            else:
                break
            self._pending.popleft()
        return acks

    async def _answer(self, head: Batch) -> storage_pb2.BulkSaveResponse:
        """Return the response to the oldest batch, over a new call if necessary."""
        while True:
            stream = self._stream or await self._open()
            answer = await stream.read(self._retry.timeout)
            if isinstance(answer, storage_pb2.BulkSaveResponse):
                self._retry.progress()
                self._caller.positions.note(answer.position, self._began)
                return _checked(answer, head)
            self._drop()
            error = answer or UnavailableError(
                "BulkSave: the server ended the stream before it acknowledged all batches"
            )
            await self._retry.pause(error, "BulkSave")


def _checked(answer: storage_pb2.BulkSaveResponse, head: Batch) -> storage_pb2.BulkSaveResponse:
    if answer.sequence != head.sequence:
        raise InternalError(
            f"BulkSave: the server answered batch {answer.sequence} instead of {head.sequence}"
        )
    return answer


class Tally:
    """Sums the results of a bulk save."""

    def __init__(self) -> None:
        self._acknowledged = self._saved = self._unchanged = self._skipped = 0
        self._rejected: list[RejectedMessage] = []
        self._positions: set[str] = set()

    def add(self, ack: BulkAck) -> BulkProgress:
        """Add the result of one batch; return the progress."""
        self._acknowledged += ack.count
        self._saved += ack.saved
        self._unchanged += ack.unchanged
        self._skipped += ack.skipped
        self._rejected += ack.rejected
        if ack.position or ack.count > len(ack.rejected):
            self._positions = {covering({ack.position, *self._positions})}
        return BulkProgress(
            acknowledged=self._acknowledged,
            saved=self._saved,
            unchanged=self._unchanged,
            skipped=self._skipped,
            rejected=len(self._rejected),
        )

    def result(self) -> BulkResult:
        """Return the total."""
        return BulkResult(
            total=self._acknowledged,
            saved=self._saved,
            unchanged=self._unchanged,
            skipped=self._skipped,
            rejected=tuple(self._rejected),
            position=covering(self._positions),
        )
