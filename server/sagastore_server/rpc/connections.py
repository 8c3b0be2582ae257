"""Connections: their number by source address, and the end of those that exceed a share.

gRPC limits the number of connections in all, so one address could take every one of them, and has
no method that closes one. The sockets are known to the operating system. A connection is closed by
shutting its socket down: gRPC then finds that the peer has closed it.

Only Linux lists the sockets of a process; elsewhere this module does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import stat
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import structlog

_FOLDER = "/proc/self/fd"
_SCAN_SECONDS = 1.0
"""Seconds between two scans. One takes about 10 microseconds for each connection, in a thread."""

_FULL_SHARE = 0.9
"""Share of the limit above which the connections that are idle longest are closed, those of the
address with the most first: others must be able to connect."""

_FEWEST = 8
"""Connections that an address may have in any case."""

_LAST_DATA_RECEIVED = slice(52, 56)
"""Place of ``tcpi_last_data_recv`` in Linux's ``struct tcp_info``: milliseconds, 32 bits."""

_TCP_INFO = getattr(socket, "TCP_INFO", 11)

_log = structlog.get_logger(__name__)


class Connection(NamedTuple):
    """A connection of a client."""

    idle: float
    """Seconds since data arrived. The pings of gRPC bring data every minute."""
    peer: tuple[str, int]
    descriptor: int

    @property
    def source(self) -> str:
        """The address of the client."""
        return self.peer[0]


class Connections:
    """Closes connections that exceed the share of their address."""

    def __init__(self, limit: int, share: float) -> None:
        """Allow ``limit`` connections, and ``share`` (0 to 1) of them to each address."""
        self._limit = limit
        self._share = max(min(limit, _FEWEST), math.ceil(limit * share))
        self._port = 0
        self.open = 0
        """Connections at the last scan. Safe to read in any thread."""

    def listen_on(self, port: int) -> None:
        """Set the port of the server."""
        self._port = port

    async def run(self) -> None:
        """Scan at intervals until cancelled."""
        if not sys.platform.startswith("linux"):
            return
        while True:
            await asyncio.sleep(_SCAN_SECONDS)
            closed = await asyncio.to_thread(self.scan)
            if closed:
                _log.warning(
                    "connections closed",
                    count=sum(closed.values()),
                    address=max(closed, key=lambda source: closed[source]),
                    addresses=len(closed),
                    remedy="caller_share and max_connections set the limits",
                )

    def scan(self) -> dict[str, int]:
        """Count the connections, and close those that exceed a limit.

        Returns:
            The number of closed connections by address.

        """
        found = list(_connections(self._port))
        self.open = len(found)
        by_source: dict[str, list[Connection]] = defaultdict(list)
        for one in sorted(found, reverse=True):
            by_source[one.source].append(one)
        excess = [one for each in by_source.values() for one in each[: -self._share]]
        kept = {source: each[-self._share :] for source, each in by_source.items()}
        surplus = self.open - len(excess) - int(self._limit * _FULL_SHARE)
        excess += [max(kept.values(), key=len).pop(0) for _ in range(surplus)]
        closed: dict[str, int] = defaultdict(int)
        for one in excess:
            closed[one.source] += _close(one, self._port)
        return closed


def _connections(port: int) -> list[Connection]:
    """Return the connections to ``port`` of this process."""
    found = []
    for path in Path(_FOLDER).iterdir():
        descriptor = int(path.name)
        # A descriptor may be closed meanwhile, and be no socket.
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            peer = _peer(descriptor, port)
            if peer is not None:
                found.append(Connection(_idle(descriptor), peer, descriptor))
    return found


def _peer(descriptor: int, port: int) -> tuple[str, int] | None:
    """Return the peer of a connection to ``port``; None if the socket is something else."""
    one = socket.socket(fileno=descriptor)
    try:
        if one.family not in {socket.AF_INET, socket.AF_INET6} or one.type != socket.SOCK_STREAM:
            return None
        if one.getsockname()[1] != port:
            return None
        address, peer_port = one.getpeername()[:2]
        return address, peer_port
    finally:
        one.detach()


def _idle(descriptor: int) -> float:
    one = socket.socket(fileno=descriptor)
    try:
        information = one.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _LAST_DATA_RECEIVED.stop)
    finally:
        one.detach()
    return int.from_bytes(information[_LAST_DATA_RECEIVED], sys.byteorder) / 1000


def _close(one: Connection, port: int) -> bool:
    """Shut the connection down, unless its descriptor belongs to another one by now."""
    try:
        descriptor = os.dup(one.descriptor)
    except OSError:
        return False
    with contextlib.suppress(OSError):
        try:
            if _peer(descriptor, port) == one.peer:
                with socket.socket(fileno=os.dup(descriptor)) as copy:
                    copy.shutdown(socket.SHUT_RDWR)
                return True
        finally:
            os.close(descriptor)
    return False
