"""Transparent coalescing: concurrent saves, and concurrent gets, share calls to the server.

One attempt of a call is coalesced, not the call: deadline, guard, retries, history and errors stay
those of each call (`_call.Caller`).

- While less than `ALONE` requests are unanswered and no attempt waits, an attempt is sent at once,
  and alone: it takes the same time and the same bytes as without coalescing.
- Otherwise it waits, in order. When every request is answered, all attempts that wait are sent
  together, up to `MOST_ITEMS` and `MOST_BYTES`. Nothing is ever delayed to wait for more.
- An attempt waits for `STALL_SECONDS` at most: then all that wait are sent, although other requests
  are unanswered. So a server that hangs, or is far away, delays no call to the others.
- An attempt whose deadline passes, or whose task is cancelled, while it waits is never sent. In
  flight it leaves the others alone; its outcome is then unknown, as that of any such call.
- A shared request has the time of its longest deadline, and the trace context and the token of its
  oldest attempt.
- Each attempt gets the response or the status that it would have got alone. If one attempt may be
  the reason why a shared request failed (invalid, too large), each is sent alone. So they are for
  `UNSUPPORTED_SECONDS` after a server of an older version did not know the RPC.
- A waiting attempt holds its request, as any call does, and nothing more. Large requests never
  wait.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

import grpc
import grpc.aio

from sagastore import _status
from sagastore._pool import Endpoint, Metadata, Pool
from sagastore._retry import Deadline
from sagastore.errors import (
    InternalError,
    NotFoundError,
    ResourceExhaustedError,
    SagaStoreError,
)
from sagastore.v1 import message_pb2
from sagastore.v1 import storage_pb2 as pb

__all__ = ["AttemptError", "Coalescer", "Gets", "Saves", "closed"]

ALONE: Final = 2
"""Unanswered requests from which attempts wait. With 1, two tasks that get messages would take
turns, and with 4, eight tasks would share hardly any requests (0.6 to 0.9 times the rate of 2)."""

MOST_ITEMS: Final = 500
MOST_BYTES: Final = 1024 * 1024
"""Serialized requests that are sent together. A server accepts 32 MiB unless it is configured
otherwise."""

LARGE_BYTES: Final = 64 * 1024
"""Serialized size from which an attempt is sent alone: sharing saves it little."""

STALL_SECONDS: Final = 0.01
"""Seconds for which an attempt waits at most: a few times a usual request in one data center."""

UNSUPPORTED_SECONDS: Final = 60.0

Q = TypeVar("Q")
R = TypeVar("R")
Q_contra = TypeVar("Q_contra", contravariant=True)

Alone = Callable[[], Awaitable[R]]
"""Sends an attempt alone, in the task of its caller."""

_TRAILER = "grpc-status-details-bin"
_EMPTY = grpc.aio.Metadata()


class AttemptError(Exception):
    """An attempt failed with a status of gRPC or of the server."""

    def __init__(
        self,
        status: grpc.aio.AioRpcError,
        endpoint: Endpoint,
        metadata: Metadata | None,
        *,
        connected: bool,
    ) -> None:
        super().__init__()
        self.status = status
        self.endpoint = endpoint
        self.metadata = metadata
        self.connected = connected

    def error(self, call: str, timeout: float | None) -> SagaStoreError:
        """Return the public error for the call named `call`, which had `timeout` seconds."""
        return _status.from_rpc_error(
            self.status,
            call,
            self.endpoint.address,
            self.endpoint.security,
            timeout=timeout,
            connected=self.connected,
        )


def closed(name: str) -> SagaStoreError:
    """Return the error for a call that was in progress when its client was closed."""
    return SagaStoreError(f"{name}: the client was closed during the call", code="CANCELLED")


class _Item(Generic[Q, R]):
    """An attempt that waits or is in flight."""

    __slots__ = ("context", "deadline", "future", "request", "size")

    def __init__(
        self, request: Q, size: int, deadline: Deadline, future: asyncio.Future[R]
    ) -> None:
        self.request = request
        self.size = size
        self.deadline = deadline
        self.future = future
        # Of the caller: its trace context.
        self.context = contextvars.copy_context()

    def succeed(self, response: R) -> None:
        if not self.future.done():
            self.future.set_result(response)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Kind(Protocol[Q_contra, R]):
    """What is coalesced: one RPC, and the one that takes many of its requests."""

    name: str
    refusals: frozenset[grpc.StatusCode]
    """Statuses of a shared request after which each attempt is sent alone: it had no effect."""

    def shares_with(self, first: Q_contra, other: Q_contra) -> bool:
        """Report whether two requests may be sent together."""

    def alone(self, endpoint: Endpoint) -> Callable[..., Awaitable[R]]:
        """Return the RPC for one request."""

    def together(self, endpoint: Endpoint) -> Callable[..., Awaitable[Any]]:
        """Return the RPC for several requests."""

    def join(self, requests: Sequence[Q_contra]) -> Any:
        """Return the request for several."""

    def split(self, requests: Sequence[Q_contra], response: Any) -> list[R | Exception]:
        """Return the response or the error of each request.

        A status is returned as an `AioRpcError`.
        """


class Coalescer(Generic[Q, R]):
    """Sends the attempts of one RPC of one client. Belongs to its event loop."""

    def __init__(self, pool: Pool, kind: _Kind[Q, R]) -> None:
        self._pool = pool
        self._kind = kind
        self._waiting: deque[_Item[Q, R]] = deque()
        self._flights = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._alone_until = 0.0
        self._stall: asyncio.TimerHandle | None = None

    async def send(self, request: Q, deadline: Deadline, alone: Alone[R]) -> R:
        """Send one attempt, alone or with others.

        Raises:
            AttemptError: It failed with a status.
            SagaStoreError: The client was closed, or a get found nothing.
        """
        size: int = request.ByteSize()  # type: ignore[attr-defined]
        if size >= LARGE_BYTES or self._loop.time() < self._alone_until:
            return await alone()
        if self._flights < ALONE and not self._waiting:
            self._flights += 1
            try:
                return await alone()
            finally:
                self._landed()
        self._pool.open()
        item: _Item[Q, R] = _Item(request, size, deadline, self._loop.create_future())
        self._waiting.append(item)
        if self._stall is None:
            self._stall = self._loop.call_later(STALL_SECONDS, self._stalled)
        left = deadline.remaining()
        timer = None if left is None else self._loop.call_later(left, self._expire, item)
        try:
            return await item.future
        finally:
            if timer is not None:
                timer.cancel()

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def _expire(self, item: _Item[Q, R]) -> None:
        if self._pool.closed:
            item.fail(closed(self._kind.name))
            return
        status = grpc.aio.AioRpcError(
            grpc.StatusCode.DEADLINE_EXCEEDED, _EMPTY, _EMPTY, "Deadline Exceeded"
        )
        endpoint = self._pool.open()[0]
        item.fail(AttemptError(status, endpoint, None, connected=endpoint.connected()))

    def _landed(self) -> None:
        self._flights -= 1
        if not self._flights:
            self._start()

    def _stalled(self) -> None:
        self._stall = None
        self._start()
        if self._waiting:
            self._stall = self._loop.call_later(STALL_SECONDS, self._stalled)

    def _start(self) -> None:
        """Send the next attempts, if any wait."""
        batch = self._next_batch()
        if not self._waiting and self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if not batch:
            return
        self._flights += 1
        task = self._loop.create_task(self._fly(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _next_batch(self) -> list[_Item[Q, R]]:
        """Take the oldest attempt and those after it that may share a request with it."""
        batch: list[_Item[Q, R]] = []
        left: list[_Item[Q, R]] = []
        size = 0
        waiting = self._waiting
        while waiting and len(batch) < MOST_ITEMS and size < MOST_BYTES:
            item = waiting.popleft()
            if item.future.done():
                continue
            if batch and not self._kind.shares_with(batch[0].request, item.request):
                left.append(item)
                continue
            batch.append(item)
            size += item.size
        waiting.extendleft(reversed(left))
        return batch

    async def _fly(self, batch: list[_Item[Q, R]]) -> None:
        try:
            if self._pool.closed:
                _fail(batch, lambda: closed(self._kind.name))
            elif len(batch) == 1:
                await self._send_alone(batch[0])
            else:
                await self._send_together(batch)
        except asyncio.CancelledError:
            # Closing the client cancels the calls of its channels.
            _fail(batch, lambda: closed(self._kind.name))
            if not self._pool.closed:
                raise
        except Exception as exc:  # noqa: BLE001 - every error goes to the callers
            error = exc
            _fail(batch, lambda: error)
        finally:
            self._landed()

    async def _send_alone(self, item: _Item[Q, R]) -> None:
        endpoint = await self._pool.acquire(item.deadline)
        metadata = item.context.run(self._pool.metadata)
        left = item.deadline.remaining()
        call = self._kind.alone(endpoint)
        try:
            item.succeed(await call(item.request, timeout=left, metadata=metadata))
        except grpc.aio.AioRpcError as exc:
            connected = endpoint.connected()
            item.fail(AttemptError(exc, endpoint, metadata, connected=connected))

    async def _send_together(self, batch: list[_Item[Q, R]]) -> None:
        latest = max((item.deadline for item in batch), key=lambda deadline: deadline.at)
        endpoint = await self._pool.acquire(latest)
        metadata = batch[0].context.run(self._pool.metadata)
        requests = [item.request for item in batch]
        call = self._kind.together(endpoint)
        try:
            response = await call(
                self._kind.join(requests), timeout=latest.remaining(), metadata=metadata
            )
        except grpc.aio.AioRpcError as exc:
            if self._may_be_one(exc, endpoint):
                await asyncio.gather(*(self._send_alone(item) for item in batch))
                return
            connected = endpoint.connected()
            status = exc
            _fail(batch, lambda: AttemptError(status, endpoint, metadata, connected=connected))
            return
        for item, outcome in zip(batch, self._kind.split(requests, response), strict=True):
            if isinstance(outcome, grpc.aio.AioRpcError):
                item.fail(AttemptError(outcome, endpoint, metadata, connected=True))
            elif isinstance(outcome, Exception):
                item.fail(outcome)
            else:
                item.succeed(outcome)

    def _may_be_one(self, status: grpc.aio.AioRpcError, endpoint: Endpoint) -> bool:
        """Report whether a shared request failed because of one, or of the sharing itself."""
        code = status.code()
        if code is grpc.StatusCode.UNIMPLEMENTED:
            self._alone_until = self._loop.time() + UNSUPPORTED_SECONDS
            return True
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            error = _status.from_rpc_error(status, self._kind.name, endpoint.address)
            return isinstance(error, ResourceExhaustedError) and error.too_large
        return code in self._kind.refusals


def _fail(batch: Sequence[_Item[Any, Any]], make: Callable[[], BaseException]) -> None:
    """Fail every attempt of a batch with an error of its own."""
    for item in batch:
        item.fail(make())


class Saves:
    """Saves share a BatchSave."""

    name = "Save"
    refusals = frozenset({grpc.StatusCode.INVALID_ARGUMENT})

    def shares_with(self, first: pb.SaveRequest, other: pb.SaveRequest) -> bool:
        """See `_Kind`. A request that waits for both stores would delay the others."""
        return first.durability == other.durability

    def alone(self, endpoint: Endpoint) -> Callable[..., Awaitable[pb.SaveResponse]]:
        """See `_Kind`."""
        return endpoint.storage.Save

    def together(self, endpoint: Endpoint) -> Callable[..., Awaitable[pb.BatchSaveResponse]]:
        """See `_Kind`."""
        return endpoint.storage.BatchSave

    def join(self, requests: Sequence[pb.SaveRequest]) -> pb.BatchSaveRequest:
        """See `_Kind`."""
        return pb.BatchSaveRequest(requests=requests)

    def split(
        self, requests: Sequence[pb.SaveRequest], response: pb.BatchSaveResponse
    ) -> list[pb.SaveResponse | Exception]:
        """See `_Kind`."""
        outcomes = response.outcomes
        if len(outcomes) != len(requests):
            line = f"BatchSave: {len(requests)} requests have {len(outcomes)} outcomes"
            return [InternalError(line) for _ in requests]
        return [
            _saved(request, outcome, response.position)
            for request, outcome in zip(requests, outcomes, strict=True)
        ]


def _saved(
    request: pb.SaveRequest, outcome: pb.Outcome, position: str
) -> pb.SaveResponse | Exception:
    if outcome.HasField("failure"):
        failure = outcome.failure
        code = _CODES.get(failure.code, grpc.StatusCode.UNKNOWN)
        trailer = grpc.aio.Metadata((_TRAILER, failure.status))
        return grpc.aio.AioRpcError(code, _EMPTY, trailer, failure.message)
    saved = outcome.saved
    if saved.id != request.message.id:
        # An acknowledgement must never reach another call.
        return InternalError(f"BatchSave: {request.message.id!r} has the outcome of {saved.id!r}")
    if position:
        saved.position = position
    return saved


_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class Gets:
    """Gets share a BatchGet, if they require the same consistency."""

    name = "Get"
    refusals = frozenset(
        {
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.INTERNAL,
            grpc.StatusCode.UNKNOWN,
        }
    )

    def shares_with(self, first: pb.GetRequest, other: pb.GetRequest) -> bool:
        """See `_Kind`."""
        return first.consistency == other.consistency

    def alone(self, endpoint: Endpoint) -> Callable[..., Awaitable[pb.GetResponse]]:
        """See `_Kind`."""
        return endpoint.storage.Get

    def together(self, endpoint: Endpoint) -> Callable[..., Awaitable[pb.BatchGetResponse]]:
        """See `_Kind`."""
        return endpoint.storage.BatchGet

    def join(self, requests: Sequence[pb.GetRequest]) -> pb.BatchGetRequest:
        """See `_Kind`."""
        joined = pb.BatchGetRequest(ids=[request.id for request in requests])
        if requests[0].HasField("consistency"):
            joined.consistency.CopyFrom(requests[0].consistency)
        return joined

    def split(
        self, requests: Sequence[pb.GetRequest], response: pb.BatchGetResponse
    ) -> list[pb.GetResponse | Exception]:
        """See `_Kind`."""
        found = {message.id: message for message in response.messages}
        return [_got(request.id, found.get(request.id), response.position) for request in requests]


def _got(id: str, message: message_pb2.Message | None, position: str) -> pb.GetResponse | Exception:
    if message is None:
        # As the server answers Get.
        return NotFoundError(
            f"no message has the id {id!r}",
            reason="MESSAGE_NOT_FOUND",
            domain="sagastore",
            metadata={"id": id},
        )
    return pb.GetResponse(message=message, position=position)
