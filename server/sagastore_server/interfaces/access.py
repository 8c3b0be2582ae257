"""Who calls, and what they may do."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Role(enum.IntEnum):
    """What a caller may do; each may do all that those before it may."""

    READER = 1
    """Get, BatchGet, List, Search and Export."""
    WRITER = 2
    """Save, BulkSave and Delete as well."""
    ADMIN = 3
    """The migration as well."""


class Caller(NamedTuple):
    """Who makes a call."""

    name: str
    """As the operator named them. Fit for logs, never for the labels of a metric."""
    role: Role


ANYONE = Caller("anyone", Role.ADMIN)
"""The caller of a server that was not told whom to let in."""


class AccessControl:
    """Tells callers apart. This one lets everybody do everything.

    Its methods are called for every call, on the event loop: they must not block.
    """

    is_open = True
    """Whether everybody may do everything, so that nobody need be told apart."""

    def caller(self, token: str | None, certificate_names: Sequence[str]) -> Caller:
        """Tell who calls.

        Args:
            token: The bearer token that came with the call, if one did.
            certificate_names: The names in the caller's certificate, which was
                verified: alternative names and the common name; none without one.

        Raises:
            UnauthenticatedError: Nobody we know.

        """
        del token, certificate_names
        return ANYONE

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called, on the event loop, when callers may have lost their rights."""
        del listener  # Here everybody stays.
