"""Rules of the API about the values of a message: lengths, U+0000, lone surrogates, JSON.

The server checks requests and legacy rows with them, and imports check rows before they send them,
so all of them reject the same values with the same reasons. The limits are those of api.md; lengths
count Unicode code points. This module needs only the standard library.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from sagastore.canonical_json import MAX_BYTES, JsonTextError, canonical_object

__all__ = [
    "MAX_CONTENT",
    "MAX_ID",
    "MAX_PROVIDER",
    "MAX_ROLE",
    "MAX_SESSION_ID",
    "MAX_TAG",
    "MAX_TAGS",
    "MessageRules",
    "is_plain",
    "unstorable",
]

MAX_ID = 128
MAX_PROVIDER = 64
MAX_ROLE = 32
MAX_CONTENT = 1_000_000
MAX_TAGS = 512
MAX_TAG = 256
MAX_SESSION_ID = 256


class MessageRules(ABC):
    """Checks values and passes every violation to `add`."""

    @abstractmethod
    def add(self, field: str, reason: str) -> None:
        """Note that ``field`` violates a rule; ``reason`` is a predicate of the field."""

    def text(self, field: str, value: str, longest: int, *, required: bool = False) -> None:
        """Check a string: its length, U+0000 and lone surrogates."""
        if required and not value:
            self.add(field, f"is required: 1 to {longest:,} characters")
        if len(value) > longest:
            self.add(field, f"has {len(value):,} characters, at most {longest:,} are allowed")
        problem = unstorable(value)
        if problem:
            self.add(field, problem)

    def tags(self, field: str, tags: Sequence[str]) -> None:
        """Check a list of tags."""
        if len(tags) > MAX_TAGS:
            self.add(field, f"has {len(tags):,} entries, at most {MAX_TAGS} are allowed")
            return
        for index, tag in enumerate(tags):
            if not is_plain(tag, MAX_TAG):
                self.text(f"{field}[{index}]", tag, MAX_TAG, required=True)

    def metadata(self, field: str, text: str, most_bytes: int = MAX_BYTES) -> str:
        """Check a JSON object and return its canonical text (``{}`` if it is invalid).

        ``most_bytes`` is no more than MAX_BYTES.
        """
        try:
            canonical = canonical_object(text)
            if max(len(text.encode()), len(canonical.encode())) > most_bytes:
                self.add(field, f"is larger than {most_bytes:,} bytes")
            return canonical
        except JsonTextError as exc:
            self.add(field, str(exc))
            return "{}"

    def message(
        self,
        prefix: str,
        *,
        message_id: str,
        provider: str,
        role: str,
        content: str,
        tags: Sequence[str],
        metadata: str,
        session_id: str | None,
    ) -> str:
        """Check all fields of a message except times; return the canonical text of ``metadata``.

        ``prefix`` goes before the field names, as in ``message.``.
        """
        # Most messages are valid, so their field names are computed only on demand.
        if not is_plain(message_id, MAX_ID):
            self.text(prefix + "id", message_id, MAX_ID, required=True)
        if not is_plain(provider, MAX_PROVIDER):
            self.text(prefix + "provider", provider, MAX_PROVIDER, required=True)
        if not is_plain(role, MAX_ROLE):
            self.text(prefix + "role", role, MAX_ROLE, required=True)
        if content and not is_plain(content, MAX_CONTENT):
            self.text(prefix + "content", content, MAX_CONTENT)
        if tags:
            self.tags(prefix + "tags", tags)
        canonical = self.metadata(prefix + "metadata_json", metadata)
        if session_id and not is_plain(session_id, MAX_SESSION_ID):
            self.text(prefix + "session_id", session_id, MAX_SESSION_ID)
        return canonical


def is_plain(text: str, longest: int) -> bool:
    """Tell whether a required string is valid for certain: a quick check for common text."""
    return 0 < len(text) <= longest and text.isascii() and "\x00" not in text


def unstorable(text: str) -> str | None:
    """Tell why no store can hold ``text``, or None if both can."""
    if "\x00" in text:
        return "holds U+0000, which PostgreSQL cannot store"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "holds a lone surrogate, which is not a character"
    return None
