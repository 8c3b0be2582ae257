"""PositionWaiters: callers that wait until the target has applied a journal position."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class PositionWaiters:
    """Futures in the order of the sequences that they wait for."""

    def __init__(self) -> None:
        """Begin without any."""
        self._heap: list[tuple[int, int, asyncio.Future[bool]]] = []
        self._numbers = itertools.count()

    def __bool__(self) -> bool:
        """Tell whether there are any, cancelled ones included."""
        return bool(self._heap)

    def add(self, sequence: int) -> asyncio.Future[bool]:
        """Return a future that becomes True once ``sequence`` is applied."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._heap, (sequence, next(self._numbers), waiter))
        return waiter

    def release(self, applied: int) -> None:
        """Answer those that wait for ``applied`` or less."""
        while self._heap and self._heap[0][0] <= applied:
            _answer(heapq.heappop(self._heap)[2], reached=True)

    def give_up(self) -> None:
        """Answer all with False."""
        for _, _, waiter in self._heap:
            _answer(waiter, reached=False)
        self._heap.clear()


def _answer(waiter: asyncio.Future[bool], *, reached: bool) -> None:
    if not waiter.done():
        waiter.set_result(reached)
