"""Ports for tests: reserved, so that no other process of the machine is given one meanwhile.

A port that was free a moment ago, or that a stopped server has used, can belong to another process
of a busy machine by the time it is used. A reserved port is bound, but not listened on: it refuses
connections until the server that the test starts on it listens.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_HOST = "127.0.0.1"
_ATTEMPTS = 100


class ReservedPort:
    """A port of the loopback addresses, for servers that set SO_REUSEADDR, as most do."""

    def __init__(self, *others: str) -> None:
        """Reserve a port of 127.0.0.1, and the same port of the addresses ``others``.

        Raises:
            OSError: There is none.

        """
        for _ in range(_ATTEMPTS):
            self._sockets = [_bound(_HOST, 0)]
            self.number: int = self._sockets[0].getsockname()[1]
            try:
                self._sockets += [_bound(host, self.number) for host in others]
            except OSError as exc:
                self.close()
                if exc.errno != errno.EADDRINUSE:
                    raise
            else:
                return
        raise OSError(errno.EADDRINUSE, f"no port is free at {_HOST} and {' and '.join(others)}")

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{_HOST}:{self.number}"

    def close(self) -> None:
        """Give up the reservation."""
        for one in self._sockets:
            one.close()


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reserved = socket.socket(family)
    try:
        # Linux then allows another socket with this option to listen on the port, but gives it to
        # none that asks for any port.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((host, port))
    except OSError:
        reserved.close()
        raise
    return reserved


@contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a port of 127.0.0.1 while the context lasts."""
    reserved = ReservedPort()
    try:
        yield reserved.number
    finally:
        reserved.close()


@contextmanager
def taken_port() -> Iterator[int]:
    """Listen on a port of 127.0.0.1 while the context lasts."""
    with socket.create_server((_HOST, 0)) as listener:
        yield listener.getsockname()[1]


def has_ipv6() -> bool:
    """Report whether this machine has IPv6."""
    with suppress(OSError):
        _bound("::1", 0).close()
        return True
    return False
