"""An event loop on a thread of its own, for those who have none.

One for the whole process, started on first use and stopped at exit. gRPC's
asyncio machinery serves all loops of a process from one queue: a loop that
comes and goes with each client could be gone when its events arrive.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, Final, TypeVar

__all__ = ["Portal", "get_portal"]

T = TypeVar("T")

_EXIT_SECONDS: Final = 2.0
_END: Final = object()


class Portal:
    """Runs coroutines on the loop's thread, for other threads to wait for."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_handle)
        self._thread = threading.Thread(target=self._serve, name="sagastore", daemon=True)
        self._thread.start()
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        self._releasing: set[asyncio.Task[None]] = set()
        atexit.register(self._stop)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    @property
    def alive(self) -> bool:
        """False in a child that was forked: the thread stayed in the parent."""
        return self._pid == os.getpid()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result; blocks the calling thread.

        Raises:
            RuntimeError: It can never finish: called on the loop's own thread,
                or after a fork.
        """
        problem = self._problem()
        if problem:
            coroutine.close()
            raise RuntimeError(problem)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise RuntimeError("the client was closed during the call") from None
        except BaseException:  # Such as KeyboardInterrupt: do not leave the call running.
            future.cancel()
            raise

    def _problem(self) -> str:
        if not self.alive:
            return (
                "this client was made before the process forked; gRPC does not work after that: "
                "make clients only after forking, or start processes by spawn"
            )
        if threading.current_thread() is self._thread:
            return "a blocking client cannot be used on its own event loop's thread"
        if self._loop.is_closed():
            return "the interpreter is exiting"
        return ""

    def iterate(self, items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """Yield what an asynchronous generator yields, one step at a time."""
        try:
            while (item := self.run(_next(items))) is not _END:
                yield item
        finally:
            self.release(_close(items))

    def release(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run what frees something; wait for it where that is possible.

        An iterator that nobody holds any more is closed by the garbage
        collector, which may run on the loop's own thread, or at exit.
        """
        if not self._problem():
            self.run(coroutine)
        elif self.alive and not self._loop.is_closed():
            self._releasing.add(task := self._loop.create_task(coroutine))
            task.add_done_callback(self._releasing.discard)
        else:
            coroutine.close()

    def close_at_exit(self, client: Any) -> None:
        """Have a client, which has an async `close`, closed when the process ends."""
        self._open.add(client)

    def _stop(self) -> None:
        if not self.alive or not self._loop.is_running():
            return
        closing = asyncio.run_coroutine_threadsafe(self._close_all(), self._loop)
        concurrent.futures.wait([closing], _EXIT_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_EXIT_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    async def _close_all(self) -> None:
        for client in list(self._open):
            await client.close()
        await _end_others()


async def _end_others() -> None:
    """Let every other task on the loop come to its end, by itself or cancelled.

    gRPC's own tasks learn in later turns of the loop that their channels were closed;
    a loop that stops before leaves them behind, and Python complains of each.
    """
    await asyncio.sleep(0)
    for stop in (False, True):
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if not tasks:
            return
        if stop:
            for task in tasks:
                task.cancel()
        await asyncio.wait(tasks, timeout=_EXIT_SECONDS / 4)


async def _next(items: AsyncGenerator[T, None]) -> Any:
    # StopAsyncIteration cannot leave a coroutine.
    return await anext(items, _END)


async def _close(items: AsyncGenerator[Any, None]) -> None:
    await items.aclose()


def _handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what goes wrong on the loop, but for gRPC's false alarms.

    With several loops in a process, gRPC wakes all of them for each event, and
    those that come late fail to read what is no longer there.
    """
    exception = context.get("exception")
    handle = repr(context.get("handle", ""))
    if isinstance(exception, BlockingIOError) and "PollerCompletionQueue" in handle:
        return
    loop.default_exception_handler(context)


_portal: Portal | None = None
_lock = threading.Lock()


def get_portal() -> Portal:
    """Return the process's portal, started if need be."""
    global _portal  # noqa: PLW0603 - one for the process
    with _lock:
        if _portal is None or not _portal.alive:
            _portal = Portal()
        return _portal


def _after_fork() -> None:
    # Another thread may have held the lock when the process forked.
    global _lock  # noqa: PLW0603 - one for the process
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
