"""Sessions of the in-memory reference: all values of messages are computed for each read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from sagastore_server.storage.errors import (
    InvalidRequestError,
    NotFoundError,
    ResponseTooLargeError,
    SessionExistsError,
    SessionNotFoundError,
    SessionRevisionMismatchError,
    Violation,
)
from sagastore_server.storage.model import Message
from sagastore_server.storage.session_base import MAX_TRUNCATED
from sagastore_server.storage.sessions import Session


class Own(NamedTuple):
    """What a session has apart from its messages."""

    title: str = ""
    metadata: str = "{}"
    explicit: bool = False
    created_at: int = 0
    updated_at: int = 0
    revision: int = 0
    deleting: int = 0


def session_of(session_id: str, own: Own, messages: Sequence[Message]) -> Session:
    """Return the session with these messages."""
    ordered = sorted(messages, key=lambda one: (one.timestamp, one.sequence))
    first = ordered[0] if ordered else None
    return Session(
        session_id=session_id,
        title=own.title,
        metadata=own.metadata,
        explicit=own.explicit,
        message_count=len(ordered),
        providers=tuple(sorted(Counter(one.provider for one in ordered).items())),
        first_time=first.timestamp if first else None,
        first_sequence=first.sequence if first else 0,
        first_message=first.content[:200] if first else "",
        last_time=max((one.timestamp for one in ordered), default=None),
        last_sequence=max((one.sequence for one in ordered), default=0),
        created_at=own.created_at,
        updated_at=own.updated_at,
        revision=own.revision,
        deleting=own.deleting,
    )


def check(session: Session, if_revision: int | None, *, needed: bool = False) -> None:
    """Check a guard; ``needed``: the session must exist."""
    if needed and not session.exists:
        raise SessionNotFoundError(session.session_id)
    if if_revision == 0:
        if session.exists:
            raise SessionExistsError(session.session_id, session.revision)
    elif if_revision is not None:
        found = session.revision if session.exists else None
        if found != if_revision:
            raise SessionRevisionMismatchError(session.session_id, if_revision, found)


def last_messages(
    ordered: Sequence[Message], drop_last: int | None, keep_through: str | None, most_bytes: int
) -> list[Message]:
    """Return the messages that a truncation of a session with messages ``ordered`` removes."""
    if keep_through is None:
        removed = list(ordered[max(0, len(ordered) - (drop_last or 0)) :])
    else:
        ids = [one.id for one in ordered]
        if keep_through not in ids:
            raise NotFoundError(keep_through)
        removed = list(ordered[ids.index(keep_through) + 1 :])
    if len(removed) > MAX_TRUNCATED:
        raise InvalidRequestError((Violation("keep_through", "too many"),))
    if most_bytes and sum(one.size for one in removed) > most_bytes:
        raise ResponseTooLargeError("too large")
    return removed
