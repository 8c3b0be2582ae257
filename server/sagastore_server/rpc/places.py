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
    """The place of one call, and the memory that it occupies."""

    __slots__ = (
        "_answer",
        "_is_stream",
        "_places",
        "_request",
        "_requests",
        "_reserved",
        "owner",
        "sweeps",
        "task",
    )

    def __init__(self, places: Places, owner: str, *, is_stream: bool) -> None:
        """Create it for the current task; use the methods of `Places`."""
        self._places = places
        self._is_stream = is_stream
        self.owner = owner
        """Caller or source address."""
        self.task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]
        self.sweeps = 0
        """Sweeps since the answer was ready."""
        self._request = 0
        """Size of the latest request."""
        self._requests: deque[int] | None = deque() if is_stream else None
        """Sizes of the requests of a stream that are in memory."""
        self._answer = 0
        """Bytes of the answer that is being sent."""
        self._reserved = 0

    def hold_request(self, size: int) -> None:
        """Count a request that has arrived.

        Raises:
            OverloadedError: There is no memory for it.

        """
        if not self._places.requests.take(self.owner, size):
            raise self._places.out_of_memory("requests")
        if self._requests is None:
            self._request = size
        else:
            self._requests.append(size)

    def check_answer_memory(self) -> None:
        """Check that there is memory for an answer.

        Raises:
            OverloadedError: There is none.

        """
        if self._places.answers.is_full(self.owner):
            raise self._places.out_of_memory("answers")

    def reserve_answer(self, size: int) -> None:
        """Reserve memory for an answer of ``size`` bytes, including what was reserved before.

        Raises:
            OverloadedError: There is none.

        """
        answers = self._places.answers
        answers.give_back(self.owner, self._reserved)
        if not answers.take(self.owner, size):
            self._answer = self._reserved = 0
            raise self._places.out_of_memory("answers")
        self._answer = self._reserved = size

    def send(self, size: int, *, may_refuse: bool) -> None:
        """Count an answer that is ready to be sent. The request is not needed any more.

        With ``may_refuse`` it counts only if there is memory; otherwise in any case.

        Raises:
            OverloadedError: There is no memory for it.

        """
        answers = self._places.answers
        if self._reserved:
            answers.give_back(self.owner, self._reserved)
            self._answer = self._reserved = 0
        if size <= SMALL or not may_refuse:
            answers.add(self.owner, size)
        elif not answers.take(self.owner, size):
            raise self._places.out_of_memory("answers")
        self._answer = size
        if not self._is_stream:
            self._drop_requests()
            self._places.begin_sending(self)

    def sent(self) -> None:
        """Record that an answer of a stream was sent, and with it the oldest request answered."""
        self._places.answers.give_back(self.owner, self._answer)
        self._answer = 0
        if self._requests:
            self._places.requests.give_back(self.owner, self._requests.popleft())

    def release(self, task: asyncio.Task[Any]) -> None:
        """Return the place; the callback of ``task``, which ends when the answer was sent."""
        # gRPC's own callback makes a cycle of objects, which waits for the garbage collector.
        del task
        places = self._places
        self._drop_requests()
        if self._is_stream:
            places.leave_stream(self.owner)
            if self._answer and places.keep_unread(self):
                return
        else:
            places.leave_call(self)
        self.forget_answer()

    def forget_answer(self, _: object = None) -> None:
        """Return the memory of the answer."""
        if self._answer:
            self._places.answers.give_back(self.owner, self._answer)
            self._answer = 0
        self._places.unread.pop(self, None)

    def _drop_requests(self) -> None:
        requests = self._places.requests
        if self._request:
            requests.give_back(self.owner, self._request)
            self._request = 0
        while self._requests:
            requests.give_back(self.owner, self._requests.popleft())


class Places:
    """The places of one server. Belongs to one event loop."""

    def __init__(self, limits: PlaceLimits) -> None:
        """Create free places."""
        self._limits = limits
        self.calls = 0
        """Unary calls in progress."""
        self.streams = 0
        """Open streams."""
        self.requests = ByteBudget(limits.request_memory, limits.owner_share)
        """Memory of the requests that have arrived."""
        self.answers = ByteBudget(limits.answer_memory, limits.owner_share)
        """Memory of the answers that were not sent yet."""
        self.unread: dict[Place, asyncio.Task[Any]] = {}
        """Ended streams with a message that the client has not read, and the tasks of gRPC that
        wait for the end of the call."""
        self._streams_by_owner: dict[str, int] = {}
        self._sending: dict[Place, None] = {}
        self._sending_by_owner: dict[str, int] = {}
        self._calls_share = _share(limits.max_calls, limits.owner_share)
        self._streams_share = _share(limits.max_streams, limits.owner_share)

    def call(self, owner: str) -> Place | None:
        """Take a place of a call; return None if there is none."""
        if (
            self.calls >= self._limits.max_calls
            or self._sending_by_owner.get(owner, 0) >= self._calls_share
        ):
            return None
        self.calls += 1
        return Place(self, owner, is_stream=False)

    def stream(self, owner: str) -> Place | None:
        """Take a place of a stream; return None if there is none."""
        if (
            self.streams >= self._limits.max_streams
            or self._streams_by_owner.get(owner, 0) >= self._streams_share
        ):
            return None
        self.streams += 1
        self._streams_by_owner[owner] = self._streams_by_owner.get(owner, 0) + 1
        return Place(self, owner, is_stream=True)

    def sweep(self) -> None:
        """End the calls whose answer stays unread. Call it once a second."""
        limit = self._limits.unread_seconds
        stalled = set()
        for place in self._sending:
            place.sweeps += 1
            if place.sweeps > limit:
                stalled.add(place.task)
        cancel_calls(stalled)
        for place, task in list(self.unread.items()):
            place.sweeps += 1
            if place.sweeps > limit:
                task.cancel()

    def begin_sending(self, place: Place) -> None:
        """Record that the answer of a call is being sent."""
        self._sending[place] = None
        sending = self._sending_by_owner
        sending[place.owner] = sending.get(place.owner, 0) + 1

    def leave_call(self, place: Place) -> None:
        """Return the place of a call."""
        self.calls -= 1
        if place in self._sending:
            del self._sending[place]
            _decrease(self._sending_by_owner, place.owner)

    def leave_stream(self, owner: str) -> None:
        """Return the place of a stream."""
        self.streams -= 1
        _decrease(self._streams_by_owner, owner)

    def keep_unread(self, place: Place) -> bool:
        """Keep counting an unread message of an ended stream as long as gRPC keeps it."""
        task = owners_of({place.task}).get(place.task)
        if task is None:
            return False
        self.unread[place] = task
        task.add_done_callback(place.forget_answer)
        return True

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
