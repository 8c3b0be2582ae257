"""systemd notifications: the protocol of ``sd_notify(3)``, and the watchdog.

Messages are datagrams to the socket that ``NOTIFY_SOCKET`` names. Without that variable nothing
is sent, so the same code runs with and without systemd.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from sagastore_server.runtime.supervisor import SupervisedTask, Supervisor

EXTENSION = 30.0
"""Seconds by which each message extends the start timeout."""

EXTEND_EVERY = 10.0
"""Seconds between two such messages."""

_CLOSING = 30.0
"""Seconds that a stop may take beyond the drain: the write-ahead log is checkpointed."""

_SEND_TIMEOUT = 0.5
"""Seconds that a datagram may wait for space in the socket."""

_log = logging.getLogger(__name__)


class Notifier:
    """Sends the state of the service to systemd while the context lasts.

    Two messages are sent by tasks of the event loop, so that they stop when the loop hangs:

    * the watchdog's keep-alive, twice in the time that ``WATCHDOG_USEC`` gives. Without it
      systemd kills and restarts the service;
    * until `ready`, an extension of the start timeout.

    The other methods are safe in any thread.
    """

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        supervisor: Supervisor | None = None,
    ) -> None:
        """Read the address and the watchdog interval; run the tasks under ``supervisor``."""
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog_seconds(environment)
        self._supervisor = supervisor
        self._socket: socket.socket | None = None
        self._starting = True
        self._tasks: list[SupervisedTask] = []

    async def __aenter__(self) -> Self:
        """Open the socket and start the tasks."""
        if self._address is not None:
            supervisor = self._supervisor or Supervisor()
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(_SEND_TIMEOUT)
            self._tasks.append(supervisor.start("systemd-start", self._extend))
            if self._watchdog is not None:
                every = self._watchdog / 2
                self._tasks.append(
                    supervisor.start("systemd-watchdog", lambda: self._keep_alive(every))
                )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the tasks and close the socket."""
        await asyncio.gather(*(task.stop() for task in self._tasks))
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ready(self, status: str) -> None:
        """Report that calls are accepted: units ordered after this service may start."""
        self._starting = False
        self._send(f"READY=1\nSTATUS={_line(status)}")

    def status(self, status: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        self._send(f"STATUS={_line(status)}")

    def stopping(self, grace: float) -> None:
        """Report that the service stops, and that calls in progress have ``grace`` seconds."""
        self._starting = False
        extension = _microseconds(grace + _CLOSING)
        self._send(f"STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC={extension}")

    async def _extend(self) -> None:
        while self._starting:
            self._send(f"EXTEND_TIMEOUT_USEC={_microseconds(EXTENSION)}")
            await asyncio.sleep(EXTEND_EVERY)

    async def _keep_alive(self, every: float) -> None:
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(every)

    def _send(self, text: str) -> None:
        # A local variable, because the event loop may close the socket meanwhile.
        channel, address = self._socket, self._address
        if channel is None or address is None:
            return
        try:
            channel.sendto(text.encode(), address)
        except OSError as exc:
            _log.warning("cannot notify systemd: %s", exc)


def _address(name: str) -> bytes | None:
    """Return the address of the socket: a path, or an abstract name that begins with ``@``."""
    if not name.startswith(("/", "@")):
        return None  # Not set, or an unsupported kind of address, such as vsock.
    encoded = os.fsencode(name)
    return b"\0" + encoded[1:] if name.startswith("@") else encoded


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """Return the interval of the watchdog; None if this process has none."""
    interval, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not interval.isdecimal() or int(interval) == 0:
        return None
    if process and process != str(os.getpid()):
        return None
    return int(interval) / 1_000_000


def _microseconds(seconds: float) -> int:
    return int(seconds * 1_000_000)


def _line(text: str) -> str:
    return " ".join(text.split())
