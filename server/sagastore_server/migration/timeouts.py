"""Waiting for what may hang."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from sagastore_server.storage.errors import UnavailableError

T = TypeVar("T")


async def bounded(work: Coroutine[Any, Any, T], seconds: float, who: str) -> T:
    """Return the result of ``work``, or give it up after so many seconds.

    It runs in a task of its own: a database that is frozen does not even answer the
    request to cancel, so waiting for the end of what was given up could hang as well.

    Raises:
        UnavailableError: ``who`` did not answer in time.

    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        abandon(task)
        raise
    if done:
        return task.result()
    abandon(task)
    raise UnavailableError(f"{who} did not answer within {seconds:g} s; see that it runs")


def abandon(task: asyncio.Future[Any]) -> None:
    """Cancel a task, and do not wait for its end nor hear of it."""
    task.cancel()
    task.add_done_callback(_forget)


def _forget(task: asyncio.Future[Any]) -> None:
    # An exception that nobody retrieves would be logged as a defect.
    if not task.cancelled():
        task.exception()
