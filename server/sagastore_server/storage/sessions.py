"""The values of sessions that cross the storage contract."""

from __future__ import annotations

import enum
import json
from functools import lru_cache
from typing import NamedTuple

from sagastore_server.storage.model import Message, Store

EXTRACT = 200
"""Characters of ``Session.first_message`` at most (api.md)."""

_REST = 4096
"""Bytes that the fields without a size of their own take at most: the id and the extract are 456
characters of up to four bytes, and the others are numbers."""


class RecordKind(enum.IntEnum):
    """A kind of rows that a migration replicates."""

    MESSAGE = 0
    SESSION = 1
    FILE = 2


class SessionPosition(NamedTuple):
    """A position in the order of activity: by time, then by the bytes of the session id."""

    active_at: int
    session_id: str


class Session(NamedTuple):
    """A session as stored.

    A session without messages that was not created by itself does not exist (``exists``); its row
    remains, so that its revision keeps growing.
    """

    session_id: str
    title: str
    metadata: str
    """Canonical JSON text of an object."""
    explicit: bool
    """Whether ``update_session`` has created it: it exists without messages as well."""
    message_count: int
    providers: tuple[tuple[str, int], ...]
    """Number of messages of each provider, ordered by provider."""
    first_time: int | None
    """Earliest timestamp of its messages, in microseconds; None: no message."""
    first_sequence: int
    """Sequence of the first message in chronological order; 0: no message."""
    first_message: str
    """The beginning of that message."""
    last_time: int | None
    """Latest timestamp of its messages, in microseconds; None: no message."""
    last_sequence: int
    """Greatest sequence of its messages; 0: no message."""
    created_at: int
    updated_at: int
    revision: int
    """Revision of the last change of the session, or of a message in it."""
    deleting: int
    """Messages up to this sequence are being deleted; 0: none."""

    @property
    def exists(self) -> bool:
        """Whether it has a message or was created by itself."""
        return self.explicit or self.message_count > 0

    @property
    def active_at(self) -> int:
        """Time of the last message; without messages, of its creation."""
        return self.created_at if self.last_time is None else self.last_time

    @property
    def position(self) -> SessionPosition:
        """The position of the session in the order of activity."""
        return SessionPosition(self.active_at, self.session_id)

    @property
    def size(self) -> int:
        """Upper bound of the bytes of the session in a response."""
        characters = len(self.title) + len(self.metadata)
        for name, _ in self.providers:
            characters += len(name) + 1
        return 4 * characters + _REST


@lru_cache(maxsize=1024)
def providers_from_json(text: str) -> tuple[tuple[str, int], ...]:
    """Return ``Session.providers`` of a JSON object. Most sessions have one of a few texts."""
    return tuple(sorted(json.loads(text).items()))


class SessionCriteria(NamedTuple):
    """The conditions of a list of sessions; all that are not None must match."""

    start: int | None = None
    """Earliest activity, inclusive, in microseconds."""
    end: int | None = None
    """Latest activity, exclusive, in microseconds."""
    metadata: str | None = None
    """Canonical JSON text of an object that the metadata contains (jsonb ``@>``)."""
    provider: str | None = None
    """Provider of at least one message."""
    title_prefix: str | None = None
    """The beginning of the title, compared by characters."""


class SessionScan(NamedTuple):
    """A range of the order of activity to read."""

    oldest_first: bool
    limit: int
    """Sessions at most."""
    after: SessionPosition | None = None
    """Start after this position, in the direction of the scan."""


class SessionPage(NamedTuple):
    """A page of sessions."""

    sessions: list[Session]
    more: bool
    """Whether more sessions follow."""


class SavedMessage(NamedTuple):
    """Result of one message of an append."""

    id: str
    revision: int
    sequence: int
    created: bool
    """True when the id did not exist before."""


class AppendResult(NamedTuple):
    """Result of an append."""

    session: Session
    """The session after the append; its revision guards the next one."""
    saved: tuple[SavedMessage, ...]
    durable_on: tuple[Store, ...]
    """The stores that had committed the messages when the append returned."""

    @property
    def revision(self) -> int:
        """Revision of the session after the append."""
        return self.session.revision


class Truncation(NamedTuple):
    """Result of a truncation."""

    removed: tuple[Message, ...]
    """In chronological order."""
    session: Session


class DeletionStep(NamedTuple):
    """Result of a step of the deletion of a session."""

    deleted: int
    """Messages that this step has deleted."""
    done: bool
    """Whether no message is left to delete."""
