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
from typing import Any, NamedTuple

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


class _Read:
    """A read in progress."""

    __slots__ = ("began", "error", "limit", "owner", "task", "ticks")

    def __init__(self, task: asyncio.Task[Any], owner: str, limit: float, began: float) -> None:
        self.task = task
        self.owner = owner
        self.limit = limit
        self.began = began
        self.ticks = 0
        self.error: StorageError | None = None


class PendingReads:
    """The reads in progress. Belongs to one event loop."""

    _tick_seconds = TICK

    def __init__(self, limits: ReadLimits) -> None:
        """Create an empty registry."""
        self._limits = limits
        self._reads: dict[_Read, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return the number of reads in progress."""
        return len(self._reads)

    async def read(self, context: Any, owner: str, seconds: float | None = None) -> Any:
        """Return the next message of a call, or ``grpc.aio.EOF``.

        Args:
            context: The context of the call.
            owner: Caller or source address.
            seconds: Time limit; by default that of the limits.

        Raises:
            SilentError: The message did not arrive in time.
            OverloadedError: Too many messages are being received.

        """
        limit = self._limits.seconds if seconds is None else seconds
        # Not always the task of the call: a BulkSave reads in a separate task.
        task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]
        read = _Read(task, owner, limit, time.monotonic())
        self._reads[read] = None
        if self._timer is None and len(self._reads) > self._limits.slow:
            self._start_timer()
        try:
            return await context.read()
        except asyncio.CancelledError:
            # Cancelled by `_end`, and not by gRPC at the same time.
            if read.error is None or task.uncancel():
                raise
            raise read.error from None
        finally:
            del self._reads[read]

    def end_silent(self) -> None:
        """End the reads whose time limit has passed. Call it about once a second."""
        now = time.monotonic()
        for read in list(self._reads):
            if now - read.began > read.limit:
                error = SilentError(
                    f"the client sent no complete message for {read.limit:g} seconds; call again"
                )
                self._end(read, error)

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
        for read in list(self._reads):
            read.ticks += 1
            if read.ticks < PROMPT_TICKS or read.error is not None:
                continue
            slow += 1
            slow_by_owner[read.owner] += 1
            if slow > self._limits.slow or slow_by_owner[read.owner] > self._limits.slow_of_owner:
                slow -= 1
                slow_by_owner[read.owner] -= 1
                self._end(read, _too_many())

    @staticmethod
    def _end(read: _Read, error: StorageError) -> None:
        if read.error is None:
            read.error = error
            read.task.cancel()


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

    async def read(self, context: Any, owner: str, seconds: float | None = None) -> Any:
        """See `PendingReads.read`."""
        if self._active < self._limits.slow:
            self._active += 1
        else:
            await self._turn(owner)
        try:
            return await super().read(context, owner, seconds)
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
        for read in list(self._reads):
            read.ticks += 1
            if read.ticks > 1:
                self._end(read, _too_many())


def _too_many() -> OverloadedError:
    return OverloadedError(
        "too many requests are being received; retry later", retry_after=_RETRY_AFTER
    )
