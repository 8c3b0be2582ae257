"""Waiting for a condition in tests: by looking at it, since it has no event."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

WITHIN = 20.0
"""Seconds after which a condition counts as not met, on a machine that is busy."""


async def until(holds: Callable[[], bool], within: float = WITHIN) -> None:
    """Wait until ``holds`` returns True.

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
