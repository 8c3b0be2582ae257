"""Runs operations of a store as calls, each with its own requirement and position."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from sagastore_server.interfaces.call_context import begin
from sagastore_server.interfaces.consistency import (
    Consistency,
    Level,
    WalPosition,
    noted,
    require,
)

T = TypeVar("T")


class Called(NamedTuple):
    """An answered call."""

    result: object
    position: WalPosition | None


def at_least(position: WalPosition) -> Consistency:
    """Return the requirement of a position."""
    return Consistency(Level.AT_LEAST, position)


async def as_call(
    operation: Callable[[], Awaitable[object]], wanted: Consistency | None = None
) -> Called:
    """Run ``operation`` as a call that requires ``wanted``."""

    async def run() -> Called:
        begin("sagastore.v1.StorageService/Test")
        if wanted is not None:
            require(wanted)
        return Called(await operation(), noted())

    # A task has its own context.
    return await asyncio.create_task(run())
