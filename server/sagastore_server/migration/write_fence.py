"""Write fence: holds new writes while the phase changes or the target becomes current."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class FenceTimeoutError(Exception):
    """Pending writes did not end in time; the fence is open again."""


class WriteFence:
    """Counts pending writes. While it is closed, new writes wait; none is refused."""

    def __init__(self) -> None:
        """Create an open fence."""
        self._inside = 0
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()

    async def enter(self) -> None:
        """Begin a write; waits while the fence is closed."""
        while not self._open.is_set():
            await self._open.wait()
        self._inside += 1

    def leave(self) -> None:
        """End a write."""
        self._inside -= 1
        if not self._inside:
            self._empty.set()

    @contextlib.asynccontextmanager
    async def closed(self, within: float) -> AsyncIterator[None]:
        """Close the fence, and wait for pending writes; open it on exit.

        Raises:
            FenceTimeoutError: Writes were still pending after ``within`` seconds.

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
