"""Places of calls and streams, and the memory of their requests and answers.

A place is held until the answer has been sent, or the call has ended: gRPC keeps an answer that
the client does not read. An answer that stays unread is ended with its call.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Any, NamedTuple

from sagastore_server.interfaces.errors import OverloadedError
from sagastore_server.rpc.grpc_internals import cancel_calls, owners_of
from sagastore_server.rpc.memory_budget import SMALL, ByteBudget

_FEWEST = 8
"""Places that an owner may take in any case; a smaller limit is not divided."""

_RETRY_AFTER = 1.0
"""Seconds after which a call refused for lack of memory may be retried."""

_UNSETTLED = 32
"""Answers after which `Places` looks for those that were sent."""


class PlaceLimits(NamedTuple):
    """Limits of `Places`."""

    max_calls: int
    max_streams: int
    request_memory: int
    """Bytes of requests."""
    answer_memory: int
    """Bytes of answers that were not sent yet."""
    owner_share: float
    """Share (0 to 1) of the streams, of the unsent answers and of the memory for one owner."""
    unread_seconds: float
    """Time that an answer may stay unread, in seconds."""


class Place:
    """The place of a call or stream, and the memory that it occupies."""

    # Defaults: few calls change all of them.
    sweeps = 0
    """Sweeps since the answer was ready."""
    _request = 0
    """Size of the request."""
    _answer = 0
    """Bytes of the answer that is being sent."""
    _reserved = 0

    def __init__(self, places: Places, owner: str, task: asyncio.Task[Any]) -> None:
        """Create it for the call that ``task`` serves; use the methods of `Places`."""
        self._places = places
        self.owner = owner
        """Caller or source address."""
        self.task = task

    def hold_request(self, size: int) -> None:
        """Count a request that has arrived.

        Raises:
            OverloadedError: There is no memory for it.

        """
        if not self._places.requests.take(self.owner, size):
            raise self._places.out_of_memory("requests")
        self._request = size

    def reserve_answer(self, size: int) -> None:
        """Reserve memory for an answer of ``size`` bytes, including what was reserved before.

        Raises:
            OverloadedError: There is none.

        """
        answers = self._places.answers
        answers.give_back(self.owner, self._reserved)
        self._answer = self._reserved = 0
        if not self._places.take_answer(self.owner, size):
            raise self._places.out_of_memory("answers")
        self._answer = self._reserved = size

    def send(self, size: int, *, may_refuse: bool) -> None:
        """Count an answer that is ready to be sent.

        With ``may_refuse`` it counts only if there is memory; otherwise in any case.

        Raises:
            OverloadedError: There is no memory for it.

        """
        places = self._places
        if self._reserved:
            places.answers.give_back(self.owner, self._reserved)
            self._answer = self._reserved = 0
        if size <= SMALL or not may_refuse:
            places.answers.add(self.owner, size)
        elif not places.take_answer(self.owner, size):
            raise places.out_of_memory("answers")
        self._answer = size

    def forget_answer(self, _: object = None) -> None:
        """Return the memory of the answer."""
        if self._answer:
            self._places.answers.give_back(self.owner, self._answer)
            self._answer = 0


class CallPlace(Place):
    """The place of a unary call."""

    def send(self, size: int, *, may_refuse: bool) -> None:
        """Count an answer that is ready to be sent; `Places` returns the place when it was sent.

        The request is not needed any more. See `Place.send`.
        """
        super().send(size, may_refuse=may_refuse)
        places = self._places
        if self._request:
            places.requests.give_back(self.owner, self._request)
            self._request = 0
        places.begin_sending(self)

    def release(self) -> None:
        """Return the place and its memory."""
        places = self._places
        if self._request:
            places.requests.give_back(self.owner, self._request)
        if self._answer:
            places.answers.give_back(self.owner, self._answer)
        places.calls -= 1


class StreamPlace(Place):
    """The place of a stream. It is returned when the task of the stream has ended."""

    def __init__(self, places: Places, owner: str, task: asyncio.Task[Any]) -> None:
        """See `Place`."""
        super().__init__(places, owner, task)
        self._requests: deque[int] = deque()
        """Sizes of the requests in memory."""
        task.add_done_callback(self._ended)

    def hold_request(self, size: int) -> None:
        """See `Place.hold_request`."""
        super().hold_request(size)
        self._requests.append(size)

    def sent(self) -> None:
        """Record that an answer was sent, and with it the oldest request answered."""
        self.forget_answer()
        if self._requests:
            self._places.requests.give_back(self.owner, self._requests.popleft())

    def forget_answer(self, _: object = None) -> None:
        """See `Place.forget_answer`."""
        super().forget_answer()
        self._places.unread.pop(self, None)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        # gRPC's own callback makes a cycle of objects, which waits for the garbage collector.
        del task
        places = self._places
        while self._requests:
            places.requests.give_back(self.owner, self._requests.popleft())
        places.leave_stream(self.owner)
        if not (self._answer and places.keep_unread(self)):
            self.forget_answer()


class Places:
    """The places of one server. Belongs to one event loop.

    The end of sending is not awaited: a callback for each call takes as long as everything else
    here. A call whose answer was sent is counted until `settle` finds it, which happens several
    times a second, and before a limit of calls or answers is applied.
    """

    def __init__(self, limits: PlaceLimits) -> None:
        """Create free places."""
        self._limits = limits
        self.calls = 0
        """Unary calls in progress, and those that `settle` has not found yet."""
        self.streams = 0
        """Open streams."""
        self.requests = ByteBudget(limits.request_memory, limits.owner_share)
        """Memory of the requests that have arrived."""
        self.answers = ByteBudget(limits.answer_memory, limits.owner_share)
        """Memory of the answers that were not sent yet."""
        self.unread: dict[StreamPlace, asyncio.Task[Any]] = {}
        """Ended streams with a message that the client has not read, and the tasks of gRPC that
        wait for the end of the call."""
        self._streams_by_owner: dict[str, int] = {}
        self._sending: dict[CallPlace, None] = {}
        self._settle_at = _UNSETTLED
        self._calls_share = _share(limits.max_calls, limits.owner_share)
        self._streams_share = _share(limits.max_streams, limits.owner_share)
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop, once `settle` was called."""

    def call(self, owner: str) -> CallPlace | None:
        """Take a place of a call; return None if the limit, or the share of the owner, is reached.

        Raises:
            OverloadedError: There is no memory for an answer.

        """
        if self.calls >= self._limits.max_calls and self.settle() >= self._limits.max_calls:
            return None
        if len(self._sending) >= self._calls_share and self._has_share_unsent(owner):
            return None
        if self.answers.is_full(owner):
            self.settle()
            if self.answers.is_full(owner):
                raise self.out_of_memory("answers")
        self.calls += 1
        # With the loop, Python saves a system call.
        return CallPlace(self, owner, asyncio.current_task(self._loop))  # type: ignore[arg-type]

    def stream(self, owner: str) -> StreamPlace | None:
        """Take a place of a stream; return None if there is none."""
        if (
            self.streams >= self._limits.max_streams
            or self._streams_by_owner.get(owner, 0) >= self._streams_share
        ):
            return None
        self.streams += 1
        self._streams_by_owner[owner] = self._streams_by_owner.get(owner, 0) + 1
        return StreamPlace(self, owner, asyncio.current_task(self._loop))  # type: ignore[arg-type]

    def settle(self) -> int:
        """Return the places of calls whose answer was sent; return the number of calls left."""
        self._loop = asyncio.get_running_loop()
        for place in [one for one in self._sending if one.task.done()]:
            del self._sending[place]
            place.release()
        # Twice the rest, so that the time for each call does not grow with it.
        self._settle_at = 2 * len(self._sending) + _UNSETTLED
        return self.calls

    def sweep(self) -> None:
        """End the calls whose answer stays unread. Call it once a second."""
        self.settle()
        limit = self._limits.unread_seconds
        stalled = set()
        for place in self._sending:
            place.sweeps += 1
            if place.sweeps > limit:
                stalled.add(place.task)
        cancel_calls(stalled)
        for stream, task in list(self.unread.items()):
            stream.sweeps += 1
            if stream.sweeps > limit:
                task.cancel()

    def begin_sending(self, place: CallPlace) -> None:
        """Record that the answer of a call is being sent."""
        self._sending[place] = None
        if len(self._sending) >= self._settle_at:
            self.settle()

    def take_answer(self, owner: str, size: int) -> bool:
        """Count ``size`` bytes of answers for ``owner``; return False if that exceeds a limit."""
        if self.answers.take(owner, size):
            return True
        self.settle()
        return self.answers.take(owner, size)

    def leave_stream(self, owner: str) -> None:
        """Return the place of a stream."""
        self.streams -= 1
        _decrease(self._streams_by_owner, owner)

    def keep_unread(self, place: StreamPlace) -> bool:
        """Keep counting an unread message of an ended stream as long as gRPC keeps it."""
        task = owners_of({place.task}).get(place.task)
        if task is None:
            return False
        self.unread[place] = task
        task.add_done_callback(place.forget_answer)
        return True

    def _has_share_unsent(self, owner: str) -> bool:
        self.settle()
        return sum(place.owner == owner for place in self._sending) >= self._calls_share

    @staticmethod
    def out_of_memory(what: str) -> OverloadedError:
        """Return the error for a call that needs more memory than there is."""
        return OverloadedError(
            f"too many bytes of {what} are in memory; retry later", retry_after=_RETRY_AFTER
        )


def _share(limit: int, share: float) -> int:
    return min(limit, max(_FEWEST, math.ceil(limit * share)))


def _decrease(counts: dict[str, int], owner: str) -> None:
    if counts[owner] == 1:
        del counts[owner]
    else:
        counts[owner] -= 1
