"""Listen addresses: HOST:PORT."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

_FORM = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\s:\[\]/]+)):(?P<port>\d{1,5})")


class Address(NamedTuple):
    """A host (name, IPv4, or IPv6 without brackets) and a port; 0 is any free port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse ``HOST:PORT``; an IPv6 host is in brackets.

        Raises:
            ValueError: The text has another form.

        """
        form = _FORM.fullmatch(text.strip())
        if form is None or int(form["port"]) > 65535:
            raise ValueError(f"{text!r} is not HOST:PORT, like 127.0.0.1:50051 or [::1]:50051")
        return cls(form["v6"] or form["host"], int(form["port"]))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect to it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"
