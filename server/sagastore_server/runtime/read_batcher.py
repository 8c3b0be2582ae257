"""ReadBatcher: concurrent reads of single rows, combined into one request.

A thread hop or a round trip to a database costs many times the read of a row. If no request is
pending, a read starts one at once. Otherwise reads are collected, and one request for all of them
starts when the pending one is answered and its callers have had time to send their next read
(`batch_delay.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from functools import partial
from itertools import islice
from typing import Generic, TypeVar

from sagastore_server.runtime.batch_delay import BatchDelay
from sagastore_server.runtime.supervisor import awaited

MOST = 100
"""Keys in one request at most, which bounds the memory of an answer."""

PATIENCE = 0.02
"""Seconds after which a request starts although another is pending: a request that hangs must
not delay others. A shorter time makes requests smaller, which costs more than it saves, with few
callers as with many."""

T = TypeVar("T")


class ReadBatcher(Generic[T]):
    """Combines reads by key. Belongs to one event loop."""

    def __init__(self, fetch: Callable[[list[str]], Awaitable[Mapping[str, T]]]) -> None:
        """Read with ``fetch``, which returns the rows found among up to ``MOST`` keys."""
        self._fetch = fetch
        self._waiting: dict[str, list[asyncio.Future[T | None]]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._late: set[asyncio.Task[None]] = set()
        """Running requests that the next one does not wait for, because they are late."""
        self._batch_size = 0
        """Number of keys in the last request."""
        self._pace = BatchDelay()
        self._next: asyncio.Handle | None = None
        """Starts the next request; set while keys are waiting."""

    async def get(self, key: str) -> T | None:
        """Return the row of ``key``, read at some time after this call began; None: no row.

        Raises:
            StorageError: ``fetch`` failed. All reads of the request get this error.

        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T | None] = loop.create_future()
        self._waiting.setdefault(key, []).append(future)
        if self._next is None:
            self._schedule(loop)
        return await future

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not at once: more calls may be ready in this iteration of the loop.
        if self._running <= self._late:
            self._next = self._pace.call(loop, partial(self._begin, loop))
        else:
            self._next = loop.call_later(PATIENCE, self._begin_late, loop)

    def _begin_late(self, loop: asyncio.AbstractEventLoop) -> None:
        self._late |= self._running
        self._begin(loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting = self._waiting
        batch = {key: waiting.pop(key) for key in list(islice(waiting, MOST))}
        # An empty context: the request belongs to no single call, so it has no call's trace.
        task = awaited(self._request(batch), context=Context())
        self._batch_size = len(batch)
        self._running.add(task)
        task.add_done_callback(self._ended)
        self._next = None
        if waiting:
            self._schedule(loop)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._late.discard(task)
        loop = task.get_loop()
        self._pace.answered(self._batch_size + len(self._waiting), loop.time())
        if self._next is not None and self._running <= self._late:
            self._next.cancel()
            self._schedule(loop)

    async def _request(self, batch: dict[str, list[asyncio.Future[T | None]]]) -> None:
        callers = [(key, future) for key, futures in batch.items() for future in futures]
        try:
            found = await self._fetch(list(batch))
        except asyncio.CancelledError:
            for _, future in callers:
                future.cancel()
            raise
        except Exception as exc:  # noqa: BLE001 - every caller gets the error
            for _, future in callers:
                if not future.done():
                    future.set_exception(exc)
            return
        for key, future in callers:
            if not future.done():
                future.set_result(found.get(key))
