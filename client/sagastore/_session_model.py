"""Sessions and the results of calls about them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sagastore._enums import Store
from sagastore._model import Message

__all__ = ["AppendResult", "SavedMessage", "Session", "TruncateResult"]


@dataclass(frozen=True, slots=True)
class Session:
    """One conversation.

    A session exists when it has a message or was created by `sessions.update`.

    Attributes:
        session_id: Identifies the session; at most 256 characters.
        title: For people, at most 512 characters. Empty unless set by
            `sessions.update`.
        metadata: A JSON object, at most 256 KiB as text; `{}` unless set by
            `sessions.update`. Numbers that a Python float cannot represent are
            read as `decimal.Decimal`.
        message_count: Number of its messages, exact.
        first_time: Earliest timestamp of its messages; None without messages.
        last_time: Latest timestamp of its messages; None without messages.
        created_at: Time when it was created.
        updated_at: Time when it, or a message in it, was last changed.
        revision: Increases with every change of the session or of a message in
            it, also across its deletion; guards a write as `if_revision`.
            Compare for equality only.
        providers: The providers of its messages, without repetition, ordered by
            their UTF-8 bytes.
        first_message: The beginning of its first message in chronological
            order, at most 200 characters.
        last_sequence: Greatest sequence of its messages; 0 without messages.
    """

    session_id: str
    title: str
    metadata: dict[str, Any]
    message_count: int
    first_time: datetime | None
    last_time: datetime | None
    created_at: datetime | None
    updated_at: datetime | None
    revision: int
    providers: tuple[str, ...]
    first_message: str
    last_sequence: int

    def __hash__(self) -> int:
        """Hash the fields that identify a state of the session."""
        return hash((self.session_id, self.revision))


@dataclass(frozen=True, slots=True)
class SavedMessage:
    """The result of one message of an append.

    Attributes:
        id: The message's id, which the client assigned if it was empty.
        revision: The stored revision.
        sequence: Place of the message in the order of storage.
        created: True if the id did not exist before.
    """

    id: str
    revision: int
    sequence: int
    created: bool


@dataclass(frozen=True, slots=True)
class AppendResult:
    """The result of an append.

    Attributes:
        session: The session after the append; its revision guards the next
            write.
        saved: One result per message, in the order given.
        durable_on: The stores that have committed the messages.
        position: The state of the store that has the write, for the `consistency` of a
            read; "" if the server tells none.
    """

    session: Session
    saved: tuple[SavedMessage, ...]
    durable_on: frozenset[Store]
    position: str = ""


@dataclass(frozen=True, slots=True)
class TruncateResult:
    """The result of a truncation.

    Attributes:
        removed: The removed messages, in chronological order.
        session: The session after the truncation. If nothing is left of it, its
            `message_count` is 0.
        complete: False if an earlier attempt of the call, whose response was
            lost, may have removed messages that are not in `removed`.
        position: The state of the store that has the write, for the `consistency` of a
            read; "" if the server tells none.
    """

    removed: tuple[Message, ...]
    session: Session
    complete: bool = True
    position: str = ""
