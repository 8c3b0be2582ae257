"""Pool of worker processes for CPU-bound work: text analysis and message validation.

Both are pure Python, and one thread of a process runs Python at a time: a thousand messages take
30 ms, during which the event loop of the server would stall again and again.

A worker process

* starts when there is enough work to justify it, and never keeps a caller waiting for its start;
* has no secrets in its environment and no open connection, and runs no modules of the working
  folder of the server (`isolated_python`); it works in the root folder;
* ends with the server, even if that is killed with SIGKILL;
* is replaced after it has died or hung; meanwhile a thread of the server does the work.

`concurrent.futures.ProcessPoolExecutor` gives two of these guarantees up: its processes (worker,
fork server and resource tracker) inherit the environment with the secrets, which a worker can
delete from `os.environ` but not from `/proc/PID/environ`, and they survive a SIGKILL of the
server. Before Python 3.14 it also has no method to kill a worker that hangs.
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
from pathlib import Path
from typing import Any, TypeVar

from sagastore_server.runtime import isolated_python

FEW = 50
"""Number of texts that are analysed in the calling thread, unless they are long."""

SHORT = 20_000
"""Total length, in characters, of texts that are not long: their analysis takes about 5 ms. So
does the validation of metadata of this length."""

MANY = 3_000
"""Number of texts after which a worker process starts. The start takes as long as the analysis of
about as many. A long text counts as several: one of a million characters as 2,500."""

_RETRY_SECONDS = 60.0
"""Time until a worker that failed to start, or died, is replaced."""

_TIMEOUT = 30.0
"""Seconds after which a worker that has not answered is killed. The largest task, a request of 32
MiB (the default limit) of other than ASCII text, takes about ten."""

_NICENESS = 5
"""Priority of the workers: below that of the server, which answers calls."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


class WorkerPool:
    """Worker processes that start on demand, with one thread each that talks to its worker."""

    def __init__(self, count: int | None = None) -> None:
        """Use ``count`` processes; by default one less than there are CPUs, from 1 to 4."""
        self._count = count or min(4, max(1, (os.cpu_count() or 1) - 1))
        self._local = threading.local()
        self._workers: list[_Worker] = []
        self._threads: ThreadPoolExecutor | None = None

    async def map(
        self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]
    ) -> list[T]:
        """Return ``function(*one)`` for each of ``arguments``, computed by a worker.

        ``function`` is a module-level function; it and all values can be pickled. While no
        worker is available, a thread of this process does the work.
        """
        return await asyncio.wrap_future(self.submit(function, arguments))

    def submit(
        self,
        function: Callable[..., T],
        arguments: Sequence[tuple[Any, ...]],
        texts: int | None = None,
    ) -> Future[list[T]]:
        """Do what `map` does and return a future. Safe in any thread.

        ``texts`` is the amount of work, in texts; by default that of ``arguments``.
        """
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._count, "analysis")
        return self._threads.submit(self._map, function, arguments, texts or _texts_in(arguments))

    @property
    def at_once(self) -> int:
        """Number of tasks that run at the same time."""
        return self._count

    async def close(self) -> None:
        """Stop the processes after the tasks in progress. Later tasks start new ones."""
        await asyncio.to_thread(self.end)

    def end(self) -> None:
        """Do what `close` does, and block until it is done."""
        threads, self._threads = self._threads, None
        workers, self._workers = self._workers, []
        if threads is not None:
            threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.end()

    def _map(
        self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], texts: int
    ) -> list[T]:
        worker: _Worker | None = getattr(self._local, "worker", None)
        if worker is None:
            worker = self._local.worker = _Worker()
            self._workers.append(worker)
        return worker.map(function, arguments, texts)


class _Worker:
    """One worker process. Used by one thread only."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._ready = False
        self._not_before = 0.0
        self._texts = 0

    def map(
        self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], texts: int
    ) -> list[T]:
        self._texts += texts
        pipe = self._connected() if self._texts >= MANY else None
        if pipe is not None:
            try:
                with self._time_limit():
                    pipe.send((function, arguments))
                    result: list[T] | Exception = pipe.recv()
            except (OSError, EOFError) as exc:
                self._fail(exc)
            else:
                if isinstance(result, Exception):
                    raise result
                return result
        return [function(*one) for one in arguments]

    def end(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            # The closed pipe ends the worker too, but only after its current task.
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def _time_limit(self) -> Iterator[None]:
        """Kill the worker, and so unblock the thread that waits for it, after `_TIMEOUT`."""
        limit = threading.Timer(_TIMEOUT, self._kill)
        limit.start()
        try:
            yield
        finally:
            limit.cancel()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _connected(self) -> Connection | None:
        """Return the pipe to the worker once that has reported that it is ready."""
        if self._pipe is None and time.monotonic() >= self._not_before:
            try:
                self._start()
            except OSError as exc:
                self._fail(exc)
        if self._pipe is None:
            return None
        if not self._ready:
            try:
                self._ready = self._pipe.poll() and self._pipe.recv() is None
            except (OSError, EOFError) as exc:
                self._fail(exc)
        return self._pipe if self._ready else None

    def _start(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - no part of it is external input
                isolated_python.command(__spec__.name, theirs.fileno()),
                cwd=Path(sys.executable).anchor,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=isolated_python.environment(),
            )
        self._pipe = ours

    def _fail(self, exc: Exception) -> None:
        _log.warning(
            "worker process failed (%s); the server does its work for %.0f s",
            type(exc).__name__,
            _RETRY_SECONDS,
        )
        self.end()
        self._ready = False
        self._not_before = time.monotonic() + _RETRY_SECONDS


def _texts_in(arguments: Sequence[tuple[Any, ...]]) -> int:
    """Return the number of usual texts that take as long as ``arguments``."""
    size = sum(len(one) for each in arguments for one in each if isinstance(one, str | bytes))
    return len(arguments) + size // (SHORT // FEW)


def _serve(pipe: Connection) -> None:
    """Run tasks from the pipe until its other end is closed."""
    pipe.send(None)
    with contextlib.suppress(EOFError, OSError):
        while True:
            function, arguments = pipe.recv()
            try:
                result: list[object] | Exception = [function(*one) for one in arguments]
            except Exception as exc:  # noqa: BLE001 - raised in the calling process
                result = exc
            pipe.send(result)


def main(pipe: int) -> None:
    """Run the tasks that arrive on the file descriptor ``pipe``. The start of a worker process."""
    # A signal to the process group drains the server, and its calls need the worker meanwhile.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A sandbox may forbid it, and the work is the same without it.
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    _serve(Connection(pipe))
