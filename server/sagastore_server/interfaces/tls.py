"""TLS material: read by ``security``, used by ``rpc``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """A certificate chain with its matching private key, as PEM."""

    chain: bytes = field(repr=False)
    """The server's certificate, followed by its intermediate certificates."""
    key: bytes = field(repr=False)
    """The private key."""
    client_ca: bytes | None = field(default=None, repr=False)
    """Authorities of client certificates; None: clients need no certificate."""


@dataclass(frozen=True, slots=True)
class ClientTlsMaterial:
    """What a connection to another server needs, as PEM."""

    authorities: bytes = field(repr=False)
    """Authorities of the certificate of the other server."""
    chain: bytes | None = field(default=None, repr=False)
    """The client certificate, followed by its intermediate certificates; None: none."""
    key: bytes | None = field(default=None, repr=False)
    """The private key of the client certificate."""


TlsSource = Callable[[], TlsMaterial]
"""Returns the current material. Called from any thread; neither blocks nor raises. It returns the
same object until the material changes."""
