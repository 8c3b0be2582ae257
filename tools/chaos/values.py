"""What a history keeps of messages: what was sent, and what was shown.

A value is told apart by a digest of everything that a client sets. Two values with one
digest are the same message; a digest that nobody has sent is a message that nobody wrote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sagastore import Message

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LETTERS = "bcdfghjkmnpqrtvw"


class Shown(NamedTuple):
    """A message in an answer, as a history keeps it. Times are microseconds since 1970."""

    id: str
    digest: str
    label: str
    """Its content, cut: for people."""
    revision: int
    created: int | None
    timestamp: int

    @property
    def place(self) -> tuple[int, bytes]:
        """What lists are ordered by."""
        return self.timestamp, self.id.encode()


@dataclass(frozen=True)
class Value:
    """A message that was sent, as a history keeps it."""

    id: str
    digest: str
    label: str
    timestamp: int
    session: str | None = None
    tags: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    """Words of the content that searches ask for; no stemmer changes them."""

    @property
    def place(self) -> tuple[int, bytes]:
        """What lists are ordered by."""
        return self.timestamp, self.id.encode()

    def as_json(self) -> dict[str, Any]:
        """Return it as it is saved."""
        return {
            "id": self.id,
            "digest": self.digest,
            "label": self.label,
            "timestamp": self.timestamp,
            "session": self.session,
            "tags": list(self.tags),
            "words": list(self.words),
        }

    @classmethod
    def of(cls, message: Message, words: Sequence[str]) -> Value:
        """Return what is kept of a message that has an id and a time."""
        assert message.timestamp is not None
        return cls(
            message.id,
            digest_of(message),
            label_of(message.content),
            microseconds(message.timestamp),
            message.session_id,
            tuple(message.tags),
            tuple(words),
        )

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Value:
        """Return what `as_json` made a record of."""
        return cls(
            record["id"],
            record["digest"],
            record.get("label", ""),
            record["timestamp"],
            record.get("session"),
            tuple(record.get("tags", ())),
            tuple(record.get("words", ())),
        )


def shown(message: Message) -> Shown:
    """Return what is kept of a message in an answer."""
    assert message.timestamp is not None
    return Shown(
        message.id,
        digest_of(message),
        label_of(message.content),
        message.revision,
        None if message.created_at is None else microseconds(message.created_at),
        microseconds(message.timestamp),
    )


def digest_of(message: Message) -> str:
    """Return what tells one value from another: of all that a client sets."""
    fields = [
        message.provider,
        message.role,
        message.content,
        message.tags,
        None if message.timestamp is None else microseconds(message.timestamp),
        message.metadata,
        message.session_id,
    ]
    text = json.dumps(fields, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def label_of(content: str) -> str:
    """Return the first word of a content, cut."""
    return content.split(maxsplit=1)[0][:40]


def microseconds(moment: datetime) -> int:
    """Return a time in microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def moment(timestamp: int) -> datetime:
    """Return the time so many microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=timestamp)


def word_of(text: str) -> str:
    """Return a word for a text: no other ASCII text has it, and no stemmer changes it."""
    return "z" + "".join(_LETTERS[byte >> 4] + _LETTERS[byte & 15] for byte in text.encode()) + "z"
