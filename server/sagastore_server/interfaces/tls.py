"""What TLS is spoken with: read in one room, used in another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """A certificate and its key, checked: they belong together. PEM data."""

    chain: bytes = field(repr=False)
    """The server's certificate, and those that link it to its authority."""
    key: bytes = field(repr=False)
    """Its private key."""
    client_ca: bytes | None = field(default=None, repr=False)
    """The authorities whose clients are let in; None: clients are not asked for certificates."""


TlsSource = Callable[[], TlsMaterial]
"""Tells what to speak TLS with now. Called from any thread; neither blocks nor raises."""
