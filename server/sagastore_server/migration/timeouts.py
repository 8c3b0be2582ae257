"""Time limits for work that may not react to cancellation, and work that must not be cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from sagastore_server.runtime.supervisor import SupervisedTask, awaited
from sagastore_server.storage.errors import UnavailableError

T = TypeVar("T")


async def bounded(work: Coroutine[Any, Any, T], seconds: float, place: str) -> T:
    """Return the result of ``work``, or abandon it after ``seconds``.

    The work runs in its own task: a frozen database does not answer the request to cancel a
    statement either, so waiting for the end of the cancelled work could hang as well.

    Raises:
        UnavailableError: ``place`` did not answer in time.

    """
    task = awaited(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        abandon(task)
        raise
    if done:
        return task.result()
    abandon(task)
    raise UnavailableError(f"{place} did not answer within {seconds:g} s; check that it runs")


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end even if the caller is cancelled meanwhile.

    The cancellation is raised after ``work`` has ended, so locks that the caller holds are
    released only then.
    """
    task = awaited(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        _consume(task)
        raise cancelled
    return task.result()


async def stop_within(tasks: Iterable[SupervisedTask], seconds: float) -> None:
    """Cancel background tasks, and wait for their end for ``seconds`` at most."""
    stopping = list(tasks)
    for task in stopping:
        task.cancel()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for task in stopping:
                await task.stop()


def abandon(task: asyncio.Future[Any]) -> None:
    """Cancel a task without waiting for its end, and ignore its result."""
    task.cancel()
    task.add_done_callback(_consume)


def _consume(task: asyncio.Future[Any]) -> None:
    # asyncio logs an exception that is never retrieved as an error.
    if not task.cancelled():
        task.exception()
