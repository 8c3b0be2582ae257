"""Lets writes through, and holds them for the moment in which a phase changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class FenceTimeoutError(Exception):
    """Writes under way did not end in time; the gate is open again."""


class WriteFence:
    """Counts the writes inside; closed, it makes new ones wait. None is refused."""

    def __init__(self) -> None:
        """Begin open."""
        self._inside = 0
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()

    async def enter(self) -> None:
        """Go inside; waits while the gate is closed."""
        while not self._open.is_set():
            await self._open.wait()
        self._inside += 1

    def leave(self) -> None:
        """Go outside again."""
        self._inside -= 1
        if not self._inside:
            self._empty.set()

    @contextlib.asynccontextmanager
    async def closed(self, within: float) -> AsyncIterator[None]:
        """Close the gate, and wait until nobody is inside; open it at the end.

        Raises:
            FenceTimeoutError: Somebody still was after ``within`` seconds.

        """
        self._open.clear()
        try:
            await self._wait_until_empty(within)
            yield
        finally:
            self._open.set()

    async def _wait_until_empty(self, within: float) -> None:
        try:
            async with asyncio.timeout(within):
                while self._inside:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            raise FenceTimeoutError from None
