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
    """How a bulk write handles an id that exists."""

    REPLACE = "replace"
    SKIP = "skip"


class NewMessage(NamedTuple):
    """A message to store: valid (see ``validation``), with an id."""

    id: str
    provider: str
    role: str
    content: str
    tags: tuple[str, ...]
    timestamp: int | None
    """Microseconds since 1970-01-01 UTC; None: the stored time, or else the current time."""
    metadata: str
    """Canonical JSON text (see ``canonical_json``)."""
    session_id: str | None
    created_at: int | None = None
    """Microseconds since 1970-01-01 UTC to be stored if the id is new; None: the current time."""


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
    """Canonical JSON text (see ``canonical_json``)."""
    session_id: str | None
    created_at: int | None
    """Microseconds since 1970-01-01 UTC; None where a legacy row had none."""
    revision: int
    sequence: int
    """Order in which messages were first stored: assigned from the counter of revisions when the
    id appears, and kept by every later save."""

    @property
    def position(self) -> Position:
        """The position of the message in chronological order."""
        return Position(self.timestamp, self.sequence)

    @property
    def size(self) -> int:
        """Upper bound of the bytes of the message in a response."""
        text = len(self.content) if self.content.isascii() else 4 * len(self.content)
        tags = sum(4 * len(tag) + 4 for tag in self.tags)
        metadata = len(self.metadata) if self.metadata.isascii() else 4 * len(self.metadata)
        return text + tags + metadata + _REST


class Page(NamedTuple):
    """A page of messages."""

    messages: list[Message]
    more: bool
    """Whether more messages follow."""


class Position(NamedTuple):
    """A position in chronological order: by timestamp, then by sequence."""

    timestamp: int
    sequence: int


class SaveResult(NamedTuple):
    """Result of a save."""

    id: str
    revision: int
    """The stored revision."""
    created: bool
    """True when the id did not exist before."""
    durable_on: tuple[Store, ...]
    """The stores that had committed the message when the save returned."""


class SaveRequest(NamedTuple):
    """One request of a batch of saves; the arguments of ``StorageBackend.save``."""

    message: NewMessage
    if_revision: int | None = None
    everywhere_within: float | None = None


class BulkResult(NamedTuple):
    """Result of a bulk write; the three counts add up to the messages given."""

    saved: int
    unchanged: int
    skipped: int
    """Messages whose id exists (OnConflict.SKIP) or is repeated later in the batch."""


class QuarantinedRow(NamedTuple):
    """A row that cannot be represented as a message without loss."""

    number: int
    """Increases in the order of quarantining."""
    source_key: str
    """Its origin: ``messages/rowid=20029``."""
    reason: str
    """Every reason for the quarantine, in one line."""
    field: str
    """The first field at fault."""
    row: bytes
    """The raw values as JSON; see ``sagastore.legacy.raw_row_as_json``."""


class StoreHealth(NamedTuple):
    """Health of a store."""

    store: Store
    healthy: bool
    detail: str
    """Why it is unhealthy, in one line; empty if healthy."""
    messages: int
    """Number of messages, possibly a little old; -1: unknown."""
    schema_version: int
    """0: unknown."""
    sessions: int = -1
    """Number of sessions, possibly a little old; -1: unknown."""
    files: int = -1
    """Number of file records, possibly a little old; -1: unknown."""
    revision: int = -1
    """The revision at which the records were counted; the same for both stores of a migration.
    -1: the counts of the stores are of different moments."""
