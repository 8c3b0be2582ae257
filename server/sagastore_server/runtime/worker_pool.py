"""Work on many messages in other processes, so that calls need not wait for the interpreter.

The analysis of texts and the checks of messages are Python, and only one thread of a process
runs Python at a time: a thousand messages take it for 30 ms, in which the event loop stands
still again and again. A process started here does nothing but that. It knows no connection and
no secret, and no file but the copy of a legacy one that it may be told to read; it ends with
whoever started it, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, TypeVar

FEW = 50
"""Texts that are analysed where they are, unless they are long."""

SHORT = 20_000
"""Characters, together, of texts that are not long: their analysis takes about 5 ms."""

MANY = 3_000
"""Texts after which a process is started, which takes as long as the analysis of about as many."""

_AGAIN = 60.0
"""Seconds until it is tried again to start a process that could not be started, or has ended."""

_PATIENCE = 30.0
"""Seconds after which a process that has not answered is ended: the largest question, of a
thousand messages of 100,000 characters, takes about ten."""

_NICENESS = 5
"""Calls that somebody waits for have precedence."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


class WorkerPool:
    """Some processes, started when they are first needed, and a thread for each."""

    def __init__(self, count: int | None = None) -> None:
        """Use ``count`` processes; None: one less than there are processors, one to four."""
        self._count = count or min(4, max(1, (os.cpu_count() or 1) - 1))
        self._mine = threading.local()
        self._started: list[_Worker] = []
        self._threads: ThreadPoolExecutor | None = None

    async def map(
        self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]
    ) -> list[T]:
        """Return ``function(*one)`` for each of ``arguments``, worked out elsewhere.

        ``function`` is one of a module; it and all values can be pickled. Where no process
        can be had, a thread of this one does the work.
        """
        return await asyncio.wrap_future(self.submit(function, arguments))

    def submit(
        self,
        function: Callable[..., T],
        arguments: Sequence[tuple[Any, ...]],
        texts: int | None = None,
    ) -> Future[list[T]]:
        """Do what ``map`` does, for a thread that has something else to do meanwhile.

        ``texts`` says how much work it is, where that is not a text each.
        """
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._count, "analysis")
        return self._threads.submit(self._map, function, arguments, texts or len(arguments))

    @property
    def at_once(self) -> int:
        """How many questions are worked on at the same time."""
        return self._count

    async def close(self) -> None:
        """End the processes, when they have done what they were given. New ones may be needed."""
        await asyncio.to_thread(self.end)

    def end(self) -> None:
        """Do what ``close`` does, for a thread that may wait."""
        threads, self._threads = self._threads, None
        started, self._started = self._started, []
        if threads is not None:
            threads.shutdown(cancel_futures=True)
        for analyst in started:
            analyst.end()

    def _map(
        self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], texts: int
    ) -> list[T]:
        analyst: _Worker | None = getattr(self._mine, "analyst", None)
        if analyst is None:
            analyst = self._mine.analyst = _Worker()
            self._started.append(analyst)
        return analyst.map(function, arguments, texts)


class _Worker:
    """One process. Belongs to one thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Connection | None = None
        self._ready = False
        self._not_before = 0.0
        self._asked = 0

    def map(
        self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], texts: int
    ) -> list[T]:
        self._asked += texts
        line = self._usable() if self._asked >= MANY else None
        if line is not None:
            try:
                with self._limited():
                    line.send((function, arguments))
                    found: list[T] | Exception = line.recv()
            except (OSError, EOFError) as exc:
                self._lost(exc)
            else:
                if isinstance(found, Exception):
                    raise found
                return found
        return [function(*one) for one in arguments]

    def end(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._process is not None:
            # It ends by itself when its line is cut; but nobody waits for what it is at.
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        """End the process, and with it what waits for it, if it takes too long."""
        limit = threading.Timer(_PATIENCE, self._kill)
        limit.start()
        try:
            yield
        finally:
            limit.cancel()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _usable(self) -> Connection | None:
        """Return the line to the process, if it has said that it is ready."""
        if self._line is None and time.monotonic() >= self._not_before:
            try:
                self._start()
            except OSError as exc:
                self._lost(exc)
        if self._line is None:
            return None
        if not self._ready:
            try:
                self._ready = self._line.poll() and self._line.recv() is None
            except (OSError, EOFError) as exc:
                self._lost(exc)
        return self._line if self._ready else None

    def _start(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - nothing of it comes from outside
                [sys.executable, "-m", __spec__.name, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=_without_settings(),
            )
        self._line = ours

    def _lost(self, why: Exception) -> None:
        _log.warning("texts are analysed by the server itself for now: %s", type(why).__name__)
        self.end()
        self._ready = False
        self._not_before = time.monotonic() + _AGAIN


def _without_settings() -> dict[str, str]:
    """Return the environment without settings: some are secrets, and none is needed."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SAGASTORE_")}


def _serve(line: Connection) -> None:
    """Do what is asked until nobody is there to ask."""
    line.send(None)
    with contextlib.suppress(EOFError, OSError):
        while True:
            function, arguments = line.recv()
            try:
                answer: list[object] | Exception = [function(*one) for one in arguments]
            except Exception as exc:  # noqa: BLE001 - raised where it was asked for
                answer = exc
            line.send(answer)


def main() -> None:
    """Serve on the file descriptor that the command line names."""
    # Whoever stops the server stops it alone: what is under way there needs this to the end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(_NICENESS)
    _serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
