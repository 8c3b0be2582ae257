"""Guard that restricts attacks to this machine.

Every address that an attack connects to passes `require_loopback`. The attacker binds its sockets
to `SOURCE`, another loopback address than that of the callers beside it, so that a limit per
source address applies to the attacker alone.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

SOURCE = "127.0.0.66"
"""Source address of attacks."""


class NotLoopbackError(Exception):
    """The target of an attack is another machine."""


class Address(NamedTuple):
    """IP address and port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address ``HOST:PORT``.

        Raises:
            NotLoopbackError: It is not a numeric loopback address.
        """
        host, _, port = text.rpartition(":")
        return require_loopback(cls(host, int(port)))


def require_loopback(address: Address) -> Address:
    """Return ``address``.

    Names are refused, because they can resolve to any machine.

    Raises:
        NotLoopbackError: It is not a numeric loopback address.
    """
    try:
        is_loopback = ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise NotLoopbackError(
            f"{address.host} is not a loopback address; attacks run against 127.0.0.1 only"
        )
    return address
