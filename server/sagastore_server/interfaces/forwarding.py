"""Forwarding: what a server knows of the holder of a migration, to which it passes its calls on.

During a migration one server, the *holder*, has the SQLite file and answers every call. The other
servers are *forwarders*.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from sagastore_server.storage.phase import Phase

FORWARDED_KEY = "sagastore-forwarded"
"""Header of a forwarded call: the store that it is meant for, and the address of its client."""


class HolderRecord(NamedTuple):
    """What PostgreSQL knows of a migration and its holder."""

    phase: Phase
    store_id: str
    """Identity of the contents of the SQLite file."""
    address: str
    """Where the holder can be reached, ``HOST:PORT``; empty: it has not said so."""


class HolderRecords(Protocol):
    """Reads the record of a migration."""

    async def read(self) -> HolderRecord | None:
        """Return the record; None: there is no migration to the database.

        Raises:
            StorageError: The database is unavailable or cannot be used.

        """

    async def close(self) -> None:
        """Disconnect."""


class ForwardingState(NamedTuple):
    """Whether and to where a server forwards its calls. Safe to pass between threads."""

    holder: str
    """Address of the holder; empty: not known."""
    phase: Phase | None
    """The phase according to PostgreSQL; None: not known."""
    is_serving: bool
    """Whether the holder answers and is ready."""
    detail: str
    """Why it is not, in one line."""


class ForwardingCounts(NamedTuple):
    """Events since the start of the server."""

    forwarded: int = 0
    """Calls that the holder has ended, with whatever status."""
    unreachable: int = 0
    """Calls that were refused because the holder could not be reached; none was sent."""
    lost: int = 0
    """Calls whose connection to the holder was lost; their outcome is unknown."""
