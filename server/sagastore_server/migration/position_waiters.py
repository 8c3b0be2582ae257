"""PositionWaiters: callers that wait until the target has applied a journal position."""

from __future__ import annotations

import asyncio
import heapq
import itertools

_COMPACT_AT = 64
"""Waiters below which answered and cancelled ones are not looked for."""


class PositionWaiters:
    """A heap of futures, ordered by the position that each waits for.

    A waiter whose caller has gone stays in the heap until `release` reaches its position or
    the heap has doubled since the last compaction. So the heap holds at most twice as many
    futures as there are callers, and adding one costs O(log n) on average.
    """

    def __init__(self) -> None:
        """Create it without waiters."""
        self._heap: list[tuple[int, int, asyncio.Future[bool]]] = []
        self._numbers = itertools.count()
        self._compact_at = _COMPACT_AT
        self.added = asyncio.Event()
        """Set when a waiter is added. The replicator clears it."""

    def __len__(self) -> int:
        """Return how many there are, including some that are cancelled."""
        return len(self._heap)

    def add(self, position: int) -> asyncio.Future[bool]:
        """Return a future that becomes True once ``position`` is applied."""
        self.added.set()
        if len(self._heap) >= self._compact_at:
            self._compact()
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._heap, (position, next(self._numbers), waiter))
        return waiter

    def release(self, applied: int) -> None:
        """Answer those that wait for ``applied`` or less with True."""
        while self._heap and self._heap[0][0] <= applied:
            _answer(heapq.heappop(self._heap)[2], reached=True)

    def give_up(self) -> None:
        """Answer all with False."""
        for _, _, waiter in self._heap:
            _answer(waiter, reached=False)
        self._heap.clear()

    def _compact(self) -> None:
        self._heap = [entry for entry in self._heap if not entry[2].done()]
        heapq.heapify(self._heap)
        self._compact_at = max(_COMPACT_AT, 2 * len(self._heap))


def _answer(waiter: asyncio.Future[bool], *, reached: bool) -> None:
    if not waiter.done():
        waiter.set_result(reached)
