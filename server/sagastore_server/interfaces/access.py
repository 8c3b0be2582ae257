"""Access control: callers, their roles, and the interface that authenticates them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Role(enum.IntEnum):
    """Permission level of a caller. Each role includes the ones before it."""

    READER = 1
    """Reads: Get, BatchGet, List, Search, Export, GetSession, ListSessions, GetFile and
    ListFiles."""
    WRITER = 2
    """Also writes: Save, BatchSave, BulkSave, Delete, Append, UpdateSession, TruncateSession,
    DeleteSession, SaveFile and DeleteFile."""
    ADMIN = 3
    """Also MigrationService."""


class Caller(NamedTuple):
    """An authenticated caller."""

    name: str
    """Name from the access file. For logs; never a metric label, whose values must be few."""
    role: Role
    credential: str = ""
    """First 12 hexadecimal digits of the SHA-256 of the token, as ``token list`` shows it; empty
    for a certificate."""


ANYONE = Caller("anyone", Role.ADMIN)
"""Every caller of a server without access control."""


class AccessControl:
    """Authenticates callers. This class allows every call.

    Its methods are called on the event loop for every call, and do not block.
    """

    is_open = True
    """Whether every call is allowed, so that `caller` need not be called."""

    def caller(self, token: str | None, certificate_names: Sequence[str]) -> Caller:
        """Return the authenticated caller.

        Args:
            token: The bearer token of the call, or None.
            certificate_names: Subject alternative names and common name of the verified
                client certificate; empty without one.

        Raises:
            UnauthenticatedError: The credentials are missing or unknown.

        """
        del token, certificate_names
        return ANYONE

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` on the event loop whenever a caller may have lost access."""
        del listener  # Access never changes here.
