"""One worker, as the supervising process sees it: its process, its messages and its log."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

from sagastore_server.banner import Serving
from sagastore_server.config.settings import Settings
from sagastore_server.runtime import isolated_python
from sagastore_server.runtime.supervisor import awaited
from sagastore_server.telemetry.readiness import LIVE_WITHIN
from sagastore_server.workers.channel import Assignment, Failed, Order, Report, encoded, receive

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

REPORT_EVERY = 0.5
"""Seconds between two requests for the state of a worker."""

_PROGRAM = "sagastore_server.workers.child"
_READ_BYTES = 65_536
_LONGEST_LINE = 1024 * 1024
"""Bytes of a log line after which it is written without its end."""
_LOG_SECONDS = 2.0
"""Seconds after the end of a worker to read the rest of its log. Its own children may hold it."""

WriteLines = Callable[[bytes], None]


class Worker:
    """A worker process. Belongs to one event loop; its state is safe to read in any thread."""

    def __init__(
        self,
        number: int,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_message: Callable[[Worker], None],
    ) -> None:
        """Describe a started process; ``on_message`` is called after each message."""
        self.number = number
        self._process = process
        self._reader = reader
        self._writer = writer
        self._on_message = on_message
        self.serving: Serving | None = None
        """What the worker serves; None before it accepts calls."""
        self.failure = ""
        """Why it cannot start or had to end, as it has reported; one line."""
        self.report: Report | None = None
        """Its latest state; None before the first."""
        self.metrics: Sequence[Metric] = ()
        """Its latest metrics."""
        self._unanswered = 0
        """Requests for its state since its latest report."""
        self._measured: asyncio.Future[None] | None = None

    @classmethod
    async def start(
        cls, number: int, settings: Settings, on_message: Callable[[Worker], None]
    ) -> Self:
        """Start the worker with its ``settings``.

        Raises:
            OSError: The process cannot be started.

        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *isolated_python.command(_PROGRAM, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env=isolated_python.environment(),
                # Ctrl+C reaches this process only, which then gives the order to drain.
                start_new_session=True,
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        worker = cls(number, process, reader, writer, on_message)
        assignment = Assignment(
            number, settings, dict(os.environ), sys.stderr.isatty(), sys.stderr.encoding
        )
        worker._send(assignment)
        return worker

    @property
    def pid(self) -> int:
        """PID of the process."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it accepts calls, its store answers, and its event loop runs."""
        if self.serving is None or self.report is None:
            return False
        return not self.report.reasons and self.silence <= LIVE_WITHIN

    @property
    def silence(self) -> float:
        """Seconds since its event loop ran, as far as known.

        Counted in requests, so that a pause of the supervising process does not count.
        """
        told = 0.0 if self.report is None else self.report.silence
        return told + max(0, self._unanswered - 1) * REPORT_EVERY

    def ask(self, *, measure: bool = False) -> None:
        """Request a report, with ``measure`` also its metrics."""
        self._unanswered += 1
        self.order(Order.MEASURE if measure else Order.REPORT)

    async def measure(self) -> None:
        """Request its metrics and wait for them, or for its end."""
        if self._measured is None:
            self._measured = asyncio.get_running_loop().create_future()
            self.order(Order.MEASURE)
        await asyncio.shield(self._measured)

    def order(self, order: Order) -> None:
        """Give an order. A worker that has ended ignores it."""
        self._send(order)

    def kill(self) -> None:
        """Kill the process, if it runs."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def run(self, write: WriteLines) -> int:
        """Receive messages and relay the log until the process has ended; kill it if cancelled.

        Args:
            write: Writes complete lines to the log.

        Returns:
            The exit status; the negative number of the signal that ended it.

        """
        log = awaited(self._relay(write))
        messages = awaited(self._receive())
        try:
            return await self._process.wait()
        finally:
            self.kill()
            await asyncio.wait({log, messages}, timeout=_LOG_SECONDS)
            log.cancel()
            messages.cancel()
            self._writer.close()
            if self._measured is not None:
                self._measured.set_result(None)
                self._measured = None

    async def _receive(self) -> None:
        while (message := await receive(self._reader)) is not None:
            if isinstance(message, Serving):
                self.serving = message
            elif isinstance(message, Failed):
                self.failure = message.line
            elif isinstance(message, Report):
                self._take(message)
            self._on_message(self)

    def _take(self, report: Report) -> None:
        self._unanswered = 0
        self.report = report._replace(metrics=None)
        if report.metrics is None:
            return
        self.metrics = report.metrics
        if self._measured is not None:
            self._measured.set_result(None)
            self._measured = None

    async def _relay(self, write: WriteLines) -> None:
        """Pass complete lines on, so that those of several workers do not mix."""
        log, rest = self._process.stderr, b""
        assert log is not None  # noqa: S101 - it is a pipe
        while part := await log.read(_READ_BYTES):
            lines, newline, rest = (rest + part).rpartition(b"\n")
            if len(rest) > _LONGEST_LINE:
                lines, newline, rest = lines + newline + rest, b"\n", b""
            if newline:
                write(lines + newline)
        if rest:
            write(rest + b"\n")

    def _send(self, message: object) -> None:
        if not self._writer.is_closing():
            self._writer.write(encoded(message))


def ending(status: int) -> str:
    """Return how a process has ended, as it follows "the process"."""
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"
