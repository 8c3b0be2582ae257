"""Reads of single rows, gathered: those that come while others are read go together.

A hop to a thread, or a round trip to a database, costs many times the reading of a row. An
idle store is asked at once; a busy one is asked for all that has come since, when it has answered
and those who were answered have had time to ask for more (``pacing``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from functools import partial
from itertools import islice
from typing import Generic, TypeVar

from sagastore_server.storage.batch_delay import BatchDelay

MOST = 100
"""Keys that are asked for together, which bounds what is in memory for one answer."""

PATIENCE = 0.02
"""Seconds after which a question is asked although another is under way: one that gets no
answer must hold up no others. Sooner, two at a time are smaller ones, and cost more than they
save, with few callers as with many."""

T = TypeVar("T")


class ReadBatcher(Generic[T]):
    """Asks for keys together. Belongs to one event loop."""

    def __init__(self, fetch: Callable[[list[str]], Awaitable[Mapping[str, T]]]) -> None:
        """Ask ``fetch``, which returns what it finds of up to ``MOST`` keys."""
        self._fetch = fetch
        self._waiting: dict[str, list[asyncio.Future[T | None]]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._late: set[asyncio.Task[None]] = set()
        """Those of them that the next question has not waited for any longer."""
        self._asked = 0
        """How many keys the last question was for."""
        self._pace = BatchDelay()
        self._next: asyncio.Handle | None = None
        """Begins the next question; there is one while keys wait."""

    async def get(self, key: str) -> T | None:
        """Return what is found under ``key``, as of some moment after the call began.

        Raises:
            StorageError: What ``fetch`` raises, which concerns all keys of a question.

        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T | None] = loop.create_future()
        self._waiting.setdefault(key, []).append(future)
        if self._next is None:
            self._schedule(loop)
        return await future

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not at once: more calls may lie ready in this turn of the loop.
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
        # No part of the call that happened to come first: neither its name nor its trace.
        task = loop.create_task(self._ask(batch), context=Context())
        self._asked = len(batch)
        self._running.add(task)
        task.add_done_callback(self._ended)
        self._next = None
        if waiting:
            self._schedule(loop)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._late.discard(task)
        loop = task.get_loop()
        self._pace.answered(self._asked + len(self._waiting), loop.time())
        if self._next is not None and self._running <= self._late:
            self._next.cancel()
            self._schedule(loop)

    async def _ask(self, batch: dict[str, list[asyncio.Future[T | None]]]) -> None:
        callers = [(key, future) for key, futures in batch.items() for future in futures]
        try:
            found = await self._fetch(list(batch))
        except asyncio.CancelledError:
            for _, future in callers:
                future.cancel()
            raise
        except Exception as exc:  # noqa: BLE001 - every caller must be told, whatever it is
            for _, future in callers:
                if not future.done():
                    future.set_exception(exc)
            return
        for key, future in callers:
            if not future.done():
                future.set_result(found.get(key))
