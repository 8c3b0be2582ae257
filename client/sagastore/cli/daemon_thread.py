"""Blocking calls in a daemon thread, which does not prevent the command from exiting."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["run_in_daemon_thread"]

T = TypeVar("T")


async def run_in_daemon_thread(function: Callable[[], T]) -> T:
    """Run a function that may block forever, such as a write to a pipe.

    If the task is cancelled, the thread is abandoned: an event loop waits for the threads
    of its executor when it closes, and Python waits for non-daemon threads at exit. The
    function must not hold locks that the rest of the command or the exit needs.

    Raises:
        Exception: The exception of the function.
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
        except Exception as exc:  # noqa: BLE001 - raised where the result is awaited
            error = exc
        with contextlib.suppress(RuntimeError):  # The loop is closed.
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="sagastore-io", daemon=True).start()
    return await outcome
