"""The values that cross the storage contract.

Named tuples, because a backend makes one for every row that it reads: they
cost a third of a frozen dataclass to build.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Store(enum.Enum):
    """A store that can hold messages."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


class OnConflict(enum.Enum):
    """What a bulk write does with an id that is stored already."""

    REPLACE = "replace"
    SKIP = "skip"


class NewMessage(NamedTuple):
    """A message to be stored: valid (see ``validation``), ids assigned."""

    id: str
    provider: str
    role: str
    content: str
    tags: tuple[str, ...]
    timestamp: int | None
    """Microseconds since 1970-01-01 UTC; None: keep the stored time, else now."""
    metadata: str
    """Canonical JSON text (see ``jsontext``)."""
    session_id: str | None


_REST = 2048
"""Bytes that all other fields of a message take at most: id, provider, role and session at
their greatest lengths are 480 characters of up to four bytes, 1,920."""


class Message(NamedTuple):
    """A message as stored."""

    id: str
    provider: str
    role: str
    content: str
    tags: tuple[str, ...]
    timestamp: int
    """Microseconds since 1970-01-01 UTC, negative before."""
    metadata: str
    """Canonical JSON text (see ``jsontext``)."""
    session_id: str | None
    created_at: int | None
    """Microseconds since 1970-01-01 UTC; None where a legacy row had none."""
    revision: int

    @property
    def position(self) -> Position:
        """Where the message stands in chronological order."""
        return Position(self.timestamp, self.id)

    @property
    def size(self) -> int:
        """Roughly the bytes that the message takes in a response; never too few."""
        text = len(self.content) if self.content.isascii() else 4 * len(self.content)
        tags = sum(4 * len(tag) + 4 for tag in self.tags)
        return text + tags + 4 * len(self.metadata) + _REST


class Page(NamedTuple):
    """A stretch of messages that were read."""

    messages: list[Message]
    more: bool
    """True where the stretch goes on behind the last of them."""


class Position(NamedTuple):
    """A place in chronological order: by time, then by the bytes of the id."""

    timestamp: int
    id: str


class SaveResult(NamedTuple):
    """What a save did."""

    id: str
    revision: int
    """The revision that is stored now."""
    created: bool
    """True when the id did not exist before."""
    durable_on: tuple[Store, ...]
    """The stores that had committed the message when the save returned."""


class BulkResult(NamedTuple):
    """What became of a bulk write; the three add up to the drafts given."""

    saved: int
    unchanged: int
    skipped: int
    """Ids that exist (OnConflict.SKIP), or that came again later in the batch."""


class QuarantinedRow(NamedTuple):
    """A row that no message represents faithfully."""

    number: int
    """Grows in the order in which rows were set aside."""
    source_key: str
    """Where it came from: ``messages/rowid=20029``."""
    reason: str
    """Why it was set aside: every reason, in one line."""
    field: str
    """The first field at fault."""
    row: bytes
    """The raw values as JSON; see ``sagastore.legacy.raw_row_as_json``."""


class StoreHealth(NamedTuple):
    """How a store does."""

    store: Store
    healthy: bool
    detail: str
    """Why not, in one line; empty when healthy."""
    messages: int
    """Messages stored, as of a moment ago; -1 while unknown."""
    schema_version: int
    """0 while unknown."""
