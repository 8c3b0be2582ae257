"""The port that the workers share.

Each worker listens with SO_REUSEPORT, and Linux distributes new connections among them. With that
option, another process of the same user could share the port as well. Therefore the supervising
process binds the port first without the option, which fails if any other socket listens on it, and
keeps it bound while workers come and go. It does not listen.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from sagastore_server.config.address import Address

_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared
_ABSENT = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


class PortError(Exception):
    """The port cannot be used. The text is the reason in a few words."""


class SharedPort:
    """The addresses of the service, bound. Close it at the end."""

    def __init__(self, address: Address) -> None:
        """Bind ``address``; port 0 is any free port.

        Raises:
            PortError: Another process uses the port, or the address is none of this machine.

        """
        self._sockets: list[socket.socket] = []
        port = address.port
        try:
            for family, place in _resolved(address):
                bound = _bound(family, (place[0], port, *place[2:]))
                if bound is not None:
                    self._sockets.append(bound)
                    port = bound.getsockname()[1]
        except OSError as exc:
            self.close()
            raise PortError(exc.strerror or str(exc)) from exc
        if not self._sockets:
            raise PortError("it is no address of this machine")
        self.address = address._replace(port=port)
        """The address with the number of the port."""
        for one in self._sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    def close(self) -> None:
        """Release the port."""
        for one in self._sockets:
            one.close()


def _resolved(address: Address) -> list[tuple[int, tuple[Any, ...]]]:
    """Return the socket addresses that gRPC listens on for ``address``."""
    host = address.host
    if host in _WILDCARDS:
        # gRPC listens on all addresses of IPv6 and IPv4 for either.
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - as set
    found = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((family, place) for family, _, _, _, place in found))


def _bound(family: int, place: tuple[Any, ...]) -> socket.socket | None:
    """Return a bound socket; None if this machine lacks the address."""
    try:
        return _bound_alone(family, place)
    except OSError as exc:
        if exc.errno in _ABSENT:
            return None
        if exc.errno != errno.EADDRINUSE:
            raise
    # Connections of an earlier server may linger (TIME_WAIT). Only a listener forbids this.
    return _bound_alone(family, place, reuse=True)


def _bound_alone(family: int, place: tuple[Any, ...], *, reuse: bool = False) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            # All addresses of IPv6 include those of IPv4, as in gRPC.
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(place[0] != "::"))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        bound.bind(place)
    except OSError:
        bound.close()
        raise
    return bound
