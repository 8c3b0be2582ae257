"""Program of a worker process: a server that the supervising process controls."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sagastore_server.banner import Serving
from sagastore_server.config.secrets import secrets_of
from sagastore_server.runtime import event_loop
from sagastore_server.runtime.signals import StopSignals
from sagastore_server.storage.errors import CannotOpenError
from sagastore_server.telemetry import logs
from sagastore_server.telemetry.readiness import Readiness
from sagastore_server.workers.channel import Assignment, BlockingChannel, Failed, Order, Report

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_PR_SET_PDEATHSIG = 1
"""Operation of ``prctl`` in Linux's ``linux/prctl.h``."""

_ORPHAN_SECONDS = 5.0
"""Seconds from the end of the supervising process until a worker that hangs ends itself. A worker
that does not hang ends within about a second."""

_STDERR = 2
"""File descriptor; `sys.stderr` has the encoding of this isolated process."""

_OF_SYSTEMD = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})
"""Variables by which systemd talks to the supervising process only."""


class OrderedStop(StopSignals):
    """Stop signals, and the orders of the supervising process.

    An order does not count as a signal: a service manager may send SIGTERM to every process of the
    service while the supervising process gives the order to drain.
    """

    def call(self, order: Order) -> None:
        """Stop as ordered. Safe in any thread."""
        with contextlib.suppress(RuntimeError):  # The loop has ended.
            self._loop.call_soon_threadsafe(self.obey, order)

    def obey(self, order: Order) -> None:
        """Stop as ordered, in the event loop."""
        self.first.set()
        if order is Order.STOP:
            self.second.set()


class Control:
    """Obeys the orders of the supervising process, in a separate thread.

    So a worker whose event loop hangs still reports that, and ends with the supervising process.
    """

    def __init__(self, channel: BlockingChannel) -> None:
        """Start the thread."""
        self._channel = channel
        self._readiness = Readiness()
        self._registry: CollectorRegistry | None = None
        self._lock = threading.Lock()
        self._signals: OrderedStop | None = None
        self._stop: Order | None = None
        threading.Thread(target=self._run, name="control", daemon=True).start()

    def signals(self) -> OrderedStop:
        """Return the signals of this process, with the orders that have arrived already."""
        signals = OrderedStop()
        with self._lock:
            self._signals = signals
            if self._stop is not None:
                signals.obey(self._stop)
        return signals

    def publish(self, readiness: Readiness, registry: CollectorRegistry) -> None:
        """Report these from now on."""
        self._readiness, self._registry = readiness, registry

    def announce(self, serving: Serving) -> None:
        """Report that this worker accepts calls."""
        self.report(measure=False)  # First, because its state is ready now.
        self.send(serving)

    def send(self, message: Serving | Report | Failed) -> None:
        """Send a message, unless the supervising process has ended."""
        with contextlib.suppress(OSError):
            self._channel.send(message)

    def report(self, *, measure: bool) -> None:
        """Send the state of this worker, on request with its metrics."""
        readiness, registry = self._readiness, self._registry
        document = readiness.document()
        self.send(
            Report(
                reasons=readiness.reasons(),
                warnings=readiness.warnings(),
                phase=document["phase"],
                progress=document["progress"],
                silence=readiness.silence if registry is not None else 0.0,
                metrics=list(registry.collect()) if measure and registry is not None else None,
            )
        )

    def _run(self) -> None:
        while (order := self._channel.receive()) is not None:
            if order in {Order.DRAIN, Order.STOP}:
                assert isinstance(order, Order)  # noqa: S101 - for the type checker
                self._obey(order)
            else:
                self.report(measure=order is Order.MEASURE)
        self._obey(Order.STOP)
        time.sleep(_ORPHAN_SECONDS)
        os._exit(1)

    def _obey(self, order: Order) -> None:
        with self._lock:
            self._stop = order
            if self._signals is not None:
                self._signals.call(order)


class _RelayedLog(io.TextIOWrapper):
    """Standard error that the supervising process passes on to its own."""

    def __init__(self, *, encoding: str, is_terminal: bool) -> None:
        super().__init__(
            io.BufferedWriter(io.FileIO(_STDERR, "w", closefd=False)),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=True,
        )
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        """Whether people read the log."""
        return self._is_terminal


def main(descriptor: int) -> None:
    """Serve as a worker whose control channel is the file descriptor ``descriptor``."""
    _end_with_parent()
    channel = BlockingChannel(socket.socket(fileno=descriptor))
    assignment = channel.receive()
    if not isinstance(assignment, Assignment):
        raise SystemExit(1)  # The supervising process has ended.
    _adopt(assignment.environment)
    log = _RelayedLog(encoding=assignment.encoding, is_terminal=assignment.is_terminal)
    sys.stderr = log
    settings = assignment.settings
    control = Control(channel)
    logs.configure(settings.log_level, log, secrets_of(settings), worker=assignment.number)
    logs.capture_unhandled()
    # Imported here, because gRPC reads the environment when it is imported.
    from sagastore_server import app  # noqa: PLC0415

    process = app.Process(control.signals, control.publish, control.announce, shares_port=True)
    try:
        event_loop.run(app.serve(settings, _say_nothing, process))
    except (app.ServerError, CannotOpenError) as exc:
        control.send(Failed(str(exc)))
        raise SystemExit(1) from None
    finally:
        control.report(measure=True)


def _end_with_parent() -> None:
    """Have the kernel kill this process when the supervising process has ended.

    Also while it hangs or is stopped, because the next supervising process needs the port. Where
    this is not permitted, the closed channel ends the worker.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _adopt(environment: Mapping[str, str]) -> None:
    os.environ.update(
        (name, value) for name, value in environment.items() if name not in _OF_SYSTEMD
    )


def _say_nothing(text: str) -> None:
    """Print nothing: the supervising process prints the banner."""
    del text
