"""Runs what a pipe may hold up for ever, so that the command can still be stopped."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["run_in_daemon_thread"]

T = TypeVar("T")


async def run_in_daemon_thread(function: Callable[[], T]) -> T:
    """Run a function in a thread for which nobody waits once the task is cancelled.

    A loop waits for its own threads when it ends, and Python for others that are no
    daemons. What the function has in hand may be half done then: it must hold no
    lock that the rest of the command, or the end of the process, needs.

    Raises:
        Exception: What the function raised.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]  # None only where T is

    def run() -> None:
        result: T | None = None
        error: Exception | None = None
        try:
            result = function()
        except Exception as exc:  # noqa: BLE001 - raised again where the outcome is awaited
            error = exc
        with contextlib.suppress(RuntimeError):  # The loop has ended meanwhile.
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="sagastore-io", daemon=True).start()
    return await outcome
