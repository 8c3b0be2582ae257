"""Compact form of messages in a history: sent values and returned messages.

A digest over all fields that a client sets identifies a value. Equal digests mean equal messages;
an unknown digest is a message that no client wrote.
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
    """Message in an answer, as stored in a history. Times are microseconds since 1970."""

    id: str
    digest: str
    label: str
    """Truncated content, for display."""
    revision: int
    created: int | None
    timestamp: int
    sequence: int = 0
    """0: unknown."""

    @property
    def place(self) -> tuple[int, int]:
        """Sort key of lists."""
        return self.timestamp, self.sequence


@dataclass(frozen=True)
class Value:
    """Message that was sent, as stored in a history."""

    id: str
    digest: str
    label: str
    timestamp: int
    session: str | None = None
    tags: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    """Words of the content that searches use; no stemmer changes them."""

    def as_json(self) -> dict[str, Any]:
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
        """Return the compact form of a message that has an id and a time."""
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
        """Read a record written by `as_json`."""
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
    """Return the compact form of a message in an answer."""
    assert message.timestamp is not None
    return Shown(
        message.id,
        digest_of(message),
        label_of(message.content),
        message.revision,
        None if message.created_at is None else microseconds(message.created_at),
        microseconds(message.timestamp),
        message.sequence,
    )


def digest_of(message: Message) -> str:
    """Return the digest of all fields that a client sets."""
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
    """Return the first word of a content, truncated."""
    words = content.split(maxsplit=1)
    return words[0][:40] if words else ""


def microseconds(moment: datetime) -> int:
    """Return a time in microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def moment(timestamp: int) -> datetime:
    """Return the time of a timestamp in microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=timestamp)


def word_of(text: str) -> str:
    """Return a word that is unique for an ASCII text and that no stemmer changes."""
    return "z" + "".join(_LETTERS[byte >> 4] + _LETTERS[byte & 15] for byte in text.encode()) + "z"
