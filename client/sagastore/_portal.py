"""An event loop on a background thread, which runs the blocking client's calls.

There is one per process, started on first use and stopped at exit. One per client
would be unsafe: gRPC serves all event loops of a process from one queue, so events
could arrive for a loop that no longer exists.
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
_WAKE_SECONDS: Final = 1.0


class Portal:
    """Runs coroutines on the background thread; other threads wait for the results."""

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
        """False in a forked child, which does not have the thread."""
        return self._pid == os.getpid()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result; blocks the calling thread.

        Raises:
            RuntimeError: The caller is the background thread, the process has
                forked, or the interpreter exits.
        """
        problem = self._problem()
        if problem:
            coroutine.close()
            raise RuntimeError(problem)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return _result(future)
        except concurrent.futures.CancelledError:
            raise RuntimeError("the client was closed during the call") from None
        except BaseException:  # For example KeyboardInterrupt: the call must not continue.
            future.cancel()
            raise

    def _problem(self) -> str:
        if not self.alive:
            return (
                "this client was created before the process forked, and gRPC does not work "
                "after a fork; create clients after forking, or start processes with spawn"
            )
        if threading.current_thread() is self._thread:
            return (
                "a blocking client cannot be used on its own event loop's thread; "
                "use AsyncClient there"
            )
        if self._loop.is_closed():
            return "the interpreter is exiting"
        return ""

    def iterate(self, items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """Yield the items of an asynchronous generator."""
        try:
            while (item := self.run(_next(items))) is not _END:
                yield item
        finally:
            self.release(_close(items))

    def release(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that releases resources; wait for it if possible.

        Waiting is impossible on the background thread and at exit, where the
        garbage collector may close an abandoned iterator.
        """
        if not self._problem():
            self.run(coroutine)
        elif self.alive and not self._loop.is_closed():
            self._releasing.add(task := self._loop.create_task(coroutine))
            task.add_done_callback(self._releasing.discard)
        else:
            coroutine.close()

    def close_at_exit(self, client: Any) -> None:
        """Await `client.close()` when the process ends."""
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
        await _end_other_tasks()


def _result(future: concurrent.futures.Future[T]) -> T:
    """Return the result of a call; a signal is handled within `_WAKE_SECONDS`.

    Python does not notice a signal that arrives just before a thread waits for a lock
    without a time limit: Ctrl+C would have no effect before the call ends.
    """
    while True:
        try:
            return future.result(_WAKE_SECONDS)
        except concurrent.futures.TimeoutError:
            if future.done():  # The call itself has failed with this error, or just ended.
                return future.result()


async def _end_other_tasks() -> None:
    """Wait for all other tasks of the loop; cancel those that do not end.

    gRPC's tasks end some iterations of the loop after their channels are closed. If
    the loop stopped earlier, Python would print a warning for each of them.
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
    """Report errors of the loop, except false alarms of gRPC.

    With several loops in a process, gRPC wakes all of them for each event. All but
    one then fail to read the event.
    """
    exception = context.get("exception")
    handle = repr(context.get("handle", ""))
    if isinstance(exception, BlockingIOError) and "PollerCompletionQueue" in handle:
        return
    loop.default_exception_handler(context)


_portal: Portal | None = None
_lock = threading.Lock()


def get_portal() -> Portal:
    """Return the portal of the process; start it if necessary."""
    global _portal  # noqa: PLW0603 - one per process
    with _lock:
        if _portal is None or not _portal.alive:
            _portal = Portal()
        return _portal


def _after_fork() -> None:
    # Another thread may hold the lock when the process forks.
    global _lock  # noqa: PLW0603 - one per process
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
