"""Every rule of the API about values, in one place.

The service checks a request here before a backend sees it, and the takeover of
a legacy file checks its rows here, so a message that one store accepts the other
accepts too. All rules that a request breaks are reported together.

The limits are those of api.md; lengths count Unicode code points.
"""

from __future__ import annotations

from collections.abc import Sequence

from sagastore_server.storage.canonical_json import MAX_BYTES, JsonTextError, canonical_object
from sagastore_server.storage.errors import InvalidRequestError, Violation
from sagastore_server.storage.model import NewMessage

MAX_ID = 128
MAX_PROVIDER = 64
MAX_ROLE = 32
MAX_CONTENT = 1_000_000
"""The search index covers a part of a longer one only in rare cases: ``search.analysis``."""

MAX_TAGS = 512
MAX_TAG = 256
MAX_SESSION_ID = 256
MAX_QUERY = 100_000
MAX_TITLE = 512
MAX_FILENAME = 1024
MAX_FILEPATH = 4096
MAX_FILE_TYPE = 256
MAX_EXTRACTED_TEXT = 3 * 1024 * 1024
"""Bytes of the text of a file."""
MAX_FILE_SIZE = (1 << 63) - 1
MAX_SESSION_METADATA = 256 * 1024
"""Bytes of the metadata of a session, as sent and in canonical spelling."""
MAX_BATCH = 1000
"""Messages of a BulkSave batch, and ids of a BatchGet."""

MAX_VIOLATIONS = 1000
"""Broken rules that are noted for one request. A status has room for about fifty."""

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
DEFAULT_EXPORT_BATCH = 500
MAX_EXPORT_BATCH = 1000

MIN_TIMESTAMP = -62_135_596_800_000_000
"""0001-01-01T00:00:00Z in microseconds: the first instant of a protobuf Timestamp."""
MAX_TIMESTAMP = 253_402_300_799_999_999
"""9999-12-31T23:59:59.999999Z in microseconds."""

_MICRO = 1_000_000

Sent = tuple[
    str,
    str,
    str,
    str,
    tuple[str, ...],
    tuple[int, int] | None,
    str,
    str | None,
    tuple[int, int] | None,
]
"""A message as it came in, unchecked: id, provider, role, content, tags, timestamp (seconds and
nanos), metadata, session_id, created_at (as timestamp; None: the current time)."""


class Violations:
    """Collects the broken rules of one request."""

    def __init__(self) -> None:
        """Begin with none."""
        self.found: list[Violation] = []

    def add(self, field: str, reason: str) -> None:
        """Note that ``field`` breaks a rule; beyond `MAX_VIOLATIONS` it is ignored."""
        if len(self.found) < MAX_VIOLATIONS:
            self.found.append(Violation(field, reason))

    def raise_if_any(self) -> None:
        """Refuse the request.

        Raises:
            InvalidRequestError: At least one rule was broken.

        """
        if self.found:
            raise InvalidRequestError(tuple(self.found))

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
        """Check a JSON object and return its canonical text (``{}`` if it is broken).

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

    def timestamp(self, field: str, seconds: int, nanos: int) -> int:
        """Check a protobuf Timestamp and return its microseconds (0 if it is broken).

        Nanoseconds are truncated toward the past: Go and Java have them in every ``now()``.
        """
        if not 0 <= nanos < 1_000_000_000:
            self.add(field, f"has {nanos} nanos, 0 to 999,999,999 are allowed")
            return 0
        # Nanos count forward also before 1970, so this is a floor.
        micros = seconds * _MICRO + nanos // 1000
        if not MIN_TIMESTAMP <= micros <= MAX_TIMESTAMP:
            self.add(field, "is outside of the years 0001 to 9999")
            return 0
        return micros

    def revision(self, field: str, value: int | None, *, lowest: int) -> int | None:
        """Check an ``if_revision``; None means that there is no condition."""
        if value is not None and value < lowest:
            self.add(field, f"is {value}, must be {lowest} or greater")
        return value

    def size(self, field: str, value: int, default: int, largest: int) -> int:
        """Check a page or batch size: 0 is the default, too large is the largest."""
        if value < 0:
            self.add(field, f"is {value}, must not be negative; 0 means {default}")
            return default
        return min(value, largest) or default

    def sent(self, prefix: str, sent: Sent) -> NewMessage:
        """Check a message that came in; the result counts only if nothing of it is broken.

        ``prefix`` goes before the field names, as in ``message.``.
        """
        message_id, provider, role, content, tags, timestamp, metadata, session_id, created = sent
        micros = None if timestamp is None else self.timestamp(prefix + "timestamp", *timestamp)
        draft = self.draft(
            prefix,
            message_id=message_id,
            provider=provider,
            role=role,
            content=content,
            tags=tags,
            timestamp=micros,
            metadata=metadata,
            session_id=session_id,
        )
        if created is None:
            return draft
        return draft._replace(created_at=self.timestamp(prefix + "created_at", *created))

    def draft(
        self,
        prefix: str,
        *,
        message_id: str,
        provider: str,
        role: str,
        content: str,
        tags: Sequence[str],
        timestamp: int | None,
        metadata: str,
        session_id: str | None,
    ) -> NewMessage:
        """Check the fields of a message; the result counts only if none is broken.

        ``prefix`` goes before the field names, as in ``message.``; ``timestamp``
        is in microseconds and has been checked by ``timestamp`` above.
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
        return NewMessage(
            message_id, provider, role, content, tuple(tags), timestamp, canonical, session_id
        )


def is_plain(text: str, longest: int) -> bool:
    """Tell whether a required string breaks no rule for certain: at first sight."""
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
