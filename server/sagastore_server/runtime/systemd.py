"""Tells systemd how the service does: the protocol of ``sd_notify(3)``, and its watchdog.

Datagrams to the socket that ``NOTIFY_SOCKET`` names. Without that nothing happens, so the
same code runs under systemd and anywhere else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Self

EXTENSION = 30.0
"""Seconds that a start asks for again and again while it goes on."""

EXTEND_EVERY = 10.0

_CLOSING = 30.0
"""Seconds beyond those for calls under way that a stop may take: to empty the log."""

_PATIENCE = 0.5
"""Seconds that a datagram may wait for room in the socket."""

_log = logging.getLogger(__name__)


class Notifier:
    """An asynchronous context in which systemd is kept informed.

    Two things are said by a task of the event loop, so that they are true only while the
    loop turns: the watchdog's sign of life, twice in the time that ``WATCHDOG_USEC`` gives,
    and, until `ready`, that the start needs longer. A loop that stands still is killed and
    started anew. The other methods may be called from any thread.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Read the address, and how often the watchdog wants to hear."""
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog_seconds(environment)
        self._socket: socket.socket | None = None
        self._starting = True
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Begin to give signs of life."""
        if self._address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(_PATIENCE)
            self._tasks.append(asyncio.create_task(self._extend(), name="systemd-start"))
            if self._watchdog is not None:
                watching = self._watch(self._watchdog / 2)
                self._tasks.append(asyncio.create_task(watching, name="systemd-watchdog"))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Say nothing more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ready(self, status: str) -> None:
        """Calls are taken: what is ordered after this service may start."""
        self._starting = False
        self._send(f"READY=1\nSTATUS={_line(status)}")

    def status(self, status: str) -> None:
        """Show a line to those who ask ``systemctl status``."""
        self._send(f"STATUS={_line(status)}")

    def stopping(self, grace: float) -> None:
        """The service ends; calls under way have ``grace`` seconds."""
        self._starting = False
        extension = _microseconds(grace + _CLOSING)
        self._send(f"STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC={extension}")

    async def _extend(self) -> None:
        while self._starting:
            self._send(f"EXTEND_TIMEOUT_USEC={_microseconds(EXTENSION)}")
            await asyncio.sleep(EXTEND_EVERY)

    async def _watch(self, every: float) -> None:
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(every)

    def _send(self, text: str) -> None:
        # Kept in a variable: the loop may close it while another thread is here.
        channel, address = self._socket, self._address
        if channel is None or address is None:
            return
        try:
            channel.sendto(text.encode(), address)
        except OSError as exc:
            _log.warning("systemd could not be told: %s", exc)


def _address(name: str) -> bytes | None:
    """Return the address of a socket: a path, or an abstract name that begins with ``@``."""
    if not name.startswith(("/", "@")):
        return None  # Nothing, or a kind of address that this does not speak.
    encoded = os.fsencode(name)
    return b"\0" + encoded[1:] if name.startswith("@") else encoded


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """Return within which time the watchdog wants to hear; None: there is none for us."""
    wanted, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not wanted.isdecimal() or int(wanted) == 0:
        return None
    if process and process != str(os.getpid()):
        return None
    return int(wanted) / 1_000_000


def _microseconds(seconds: float) -> int:
    return int(seconds * 1_000_000)


def _line(text: str) -> str:
    return " ".join(text.split())
