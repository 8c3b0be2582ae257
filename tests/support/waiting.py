"""Waiting for a condition in tests: by looking at it, since it has no event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

WITHIN = 120.0
"""Seconds after which a condition counts as not met, on a machine that is slow and busy."""


async def until(holds: Callable[[], object], within: float = WITHIN) -> None:
    """Wait until ``holds`` returns a true value.

    Raises:
        TimeoutError: It did not within ``within`` seconds.

    """
    async with asyncio.timeout(within):
        while not holds():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.001)


async def until_async(holds: Callable[[], Awaitable[bool]], within: float = WITHIN) -> None:
    """As `until`, for a condition that has to be asked for.

    Raises:
        TimeoutError: It did not hold within ``within`` seconds.

    """
    async with asyncio.timeout(within):
        while not await holds():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.01)


def eventually(holds: Callable[[], object], within: float = WITHIN, every: float = 0.005) -> None:
    """Wait until ``holds`` returns a true value, in a test without an event loop.

    It is called once in ``every`` seconds, which must leave the machine time for what it waits for.

    Raises:
        TimeoutError: It did not within ``within`` seconds.

    """
    end = time.monotonic() + within
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"the condition was not met within {within:g} s")
        time.sleep(every)
