"""Control channel: messages between the supervising process and a worker.

A socket pair that only these two processes have. It carries the settings, so that secrets are
neither in the arguments nor in the environment of a worker. Messages are pickled, as by
`multiprocessing`, with their length in front.
"""

from __future__ import annotations

import asyncio
import enum
import pickle
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from sagastore_server.config.settings import Settings
from sagastore_server.telemetry.readiness import Finding

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_LENGTH = struct.Struct("!I")


class Assignment(NamedTuple):
    """First message to a worker."""

    number: int
    """1 to the number of workers; a replacement has the number of the worker that ended."""
    settings: Settings
    """Settings of this worker: its share of the limits, and the port to listen on."""
    environment: dict[str, str]
    """Environment of the service, for the libraries that read it (PG*, OTEL_*, GRPC_*)."""
    is_terminal: bool
    """Whether people read the log."""
    encoding: str
    """Encoding of the log."""


class Order(enum.Enum):
    """Further messages to a worker."""

    REPORT = enum.auto()
    """Send a `Report` without metrics."""
    MEASURE = enum.auto()
    """Send a `Report` with metrics."""
    DRAIN = enum.auto()
    """Refuse new calls, complete those in progress, and end."""
    STOP = enum.auto()
    """End at once."""


class Report(NamedTuple):
    """State of a worker, as its readiness tells it."""

    reasons: list[Finding]
    warnings: list[Finding]
    phase: str | None
    progress: dict[str, Any] | None
    silence: float
    """Seconds since the last heartbeat of its event loop."""
    metrics: list[Metric] | None = None


class Failed(NamedTuple):
    """The worker cannot start, or has to end. One line: what is wrong, what to do."""

    line: str


def encoded(message: object) -> bytes:
    """Return a message with its length in front."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


async def receive(reader: asyncio.StreamReader) -> object | None:
    """Return the next message; None once the other end is closed."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return _decoded(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, OSError):
        return None


class BlockingChannel:
    """The worker's end. One thread receives, any thread sends."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over the ``connection``."""
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, message: object) -> None:
        """Send a message.

        Raises:
            OSError: The supervising process has ended.

        """
        with self._sending:
            self._connection.sendall(encoded(message))

    def receive(self) -> object | None:
        """Return the next message; None once the supervising process has ended."""
        length = self._read(_LENGTH.size)
        body = None if length is None else self._read(_LENGTH.unpack(length)[0])
        return None if body is None else _decoded(body)

    def _read(self, size: int) -> bytes | None:
        found = bytearray()
        while len(found) < size:
            try:
                part = self._connection.recv(size - len(found))
            except OSError:
                return None
            if not part:
                return None
            found += part
        return bytes(found)


def _decoded(body: bytes) -> object:
    message: object = pickle.loads(body)  # noqa: S301 - written by this program
    return message
