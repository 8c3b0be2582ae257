"""Pending reads: calls that were admitted and wait for a message of the client.

gRPC opens a stream's flow-control window for a whole message, up to ``max_request_bytes``, as soon
as the message is asked for. Before that a stream occupies at most its initial window of 64 KiB. So
the number of reads bounds the memory of messages that are still being received:

* a message that arrives within `PROMPT_TICKS` ticks is not limited: what arrives in that time is
  limited by the network;
* of the reads that take longer, as many may continue as the memory for requests has room for
  messages of the maximum size, and a share of these for each owner. The others are ended.

The ticks run only while there are more reads than may be slow. A tick is a turn of the event
loop, in which it takes what has arrived: a loop that is held up ends no read.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from typing import Any, NamedTuple, Protocol

from sagastore_server.interfaces.errors import OverloadedError, SilentError
from sagastore_server.storage.errors import StorageError

TICK = 0.25
"""Seconds between two checks of the reads."""

PROMPT_TICKS = 8
"""Checks after which a read counts as slow. On a machine that is overloaded, a client may take a
second between the headers and the message of a call."""

_QUEUE_TICK = 0.05
"""Seconds between two checks in `QueuedReads`."""

_RETRY_AFTER = 0.5
"""Seconds after which a call that was ended for others may be retried, before jitter."""

_MOST_WAITING = 32
"""Reads of one owner that may wait in `QueuedReads`."""


class ReadLimits(NamedTuple):
    """Limits of `PendingReads`."""

    slow: int
    """Reads that may take longer than `PROMPT_TICKS`."""
    slow_of_owner: int
    """Of these, reads of one owner."""
    seconds: float
    """Time limit of a read, in seconds."""


class Reader(Protocol):
    """The reader of a call: a place, or a `StreamReader`."""

    @property
    def owner(self) -> str:
        """Caller or source address."""

    @property
    def task(self) -> asyncio.Task[Any]:
        """The task that reads."""


class StreamReader(NamedTuple):
    """The reader of a stream. A BulkSave reads in a task of its own."""

    owner: str
    task: asyncio.Task[Any]


class PendingReads:
    """The reads in progress. Belongs to one event loop."""

    _tick_seconds = TICK

    def __init__(self, limits: ReadLimits) -> None:
        """Create an empty registry."""
        self._limits = limits
        self._reads: dict[Reader, tuple[float, float]] = {}
        """The beginning of each read, and its time limit in seconds."""
        self._ticks: dict[Reader, int] = {}
        """Ticks during each read, once there were any."""
        self._errors: dict[Reader, StorageError] = {}
        """Why a read was ended, until its task knows."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return the number of reads in progress."""
        return len(self._reads)

    async def read(self, context: Any, reader: Reader, seconds: float | None = None) -> Any:
        """Return the next message of a call, or ``grpc.aio.EOF``.

        Args:
            context: The context of the call.
            reader: The running task, and whose limits apply.
            seconds: Time limit; by default that of the limits.

        Raises:
            SilentError: The message did not arrive in time.
            OverloadedError: Too many messages are being received.

        """
        limit = self._limits.seconds if seconds is None else seconds
        self._reads[reader] = time.monotonic(), limit
        if self._timer is None and len(self._reads) > self._limits.slow:
            self._start_timer()
        try:
            return await context.read()
        except asyncio.CancelledError:
            # Cancelled by `_end`, and not by gRPC at the same time.
            error = self._errors.get(reader)
            if error is None or reader.task.uncancel():
                raise
            raise error from None
        finally:
            del self._reads[reader]
            if self._ticks or self._errors:
                self._ticks.pop(reader, None)
                self._errors.pop(reader, None)

    def end_silent(self) -> None:
        """End the reads whose time limit has passed. Call it about once a second."""
        now = time.monotonic()
        for reader, (began, limit) in list(self._reads.items()):
            if now - began > limit:
                error = SilentError(
                    f"the client sent no complete message for {limit:g} seconds; call again"
                )
                self._end(reader, error)

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._needs_ticks():
            self._start_timer()
            self._end_slow()

    def _needs_ticks(self) -> bool:
        return len(self._reads) > self._limits.slow

    def _end_slow(self) -> None:
        slow = 0
        slow_by_owner: Counter[str] = Counter()
        for reader in self._reads:
            if self._tick_of(reader) < PROMPT_TICKS or reader in self._errors:
                continue
            slow += 1
            owner = reader.owner
            slow_by_owner[owner] += 1
            if slow > self._limits.slow or slow_by_owner[owner] > self._limits.slow_of_owner:
                slow -= 1
                slow_by_owner[owner] -= 1
                self._end(reader, _too_many())

    def _tick_of(self, reader: Reader) -> int:
        """Count a tick of a read; return the number of its ticks."""
        ticks = self._ticks[reader] = self._ticks.get(reader, 0) + 1
        return ticks

    def _end(self, reader: Reader, error: StorageError) -> None:
        if reader not in self._errors:
            self._errors[reader] = error
            reader.task.cancel()


class QueuedReads(PendingReads):
    """Reads of callers without credentials: few at a time, the others wait.

    The owners take turns, so that one of them does not keep the others waiting. While others wait,
    a read that takes longer than a tick is ended: what these callers send is small, and has
    arrived when it is asked for.
    """

    _tick_seconds = _QUEUE_TICK

    def __init__(self, limits: ReadLimits) -> None:
        """Create an empty registry; ``slow`` of the limits are the reads at a time."""
        super().__init__(limits)
        self._active = 0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Waiting reads by owner; the owner whose turn it is comes first."""

    async def read(self, context: Any, reader: Reader, seconds: float | None = None) -> Any:
        """See `PendingReads.read`."""
        if self._active < self._limits.slow:
            self._active += 1
        else:
            await self._turn(reader.owner)
        try:
            return await super().read(context, reader, seconds)
        finally:
            self._active -= 1
            self._wake_next()

    async def _turn(self, owner: str) -> None:
        """Wait for a turn, which `_wake_next` counts as active."""
        queue = self._waiting.setdefault(owner, deque())
        if len(queue) >= _MOST_WAITING:
            raise _too_many()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        if self._timer is None:
            self._start_timer()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(owner, turn)
            else:
                self._active -= 1
                self._wake_next()
            raise

    def _forget(self, owner: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(owner)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[owner]

    def _wake_next(self) -> None:
        while self._waiting and self._active < self._limits.slow:
            owner = next(iter(self._waiting))
            queue = self._waiting.pop(owner)
            turn = queue.popleft()
            if queue:
                self._waiting[owner] = queue
            if not turn.done():
                turn.set_result(None)
                self._active += 1

    def _needs_ticks(self) -> bool:
        return bool(self._waiting)

    def _end_slow(self) -> None:
        for reader in self._reads:
            if self._tick_of(reader) > 1:
                self._end(reader, _too_many())


def _too_many() -> OverloadedError:
    return OverloadedError(
        "too many requests are being received; retry later", retry_after=_RETRY_AFTER
    )
