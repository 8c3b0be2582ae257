"""Every rule of the API about the values of a request.

The service checks a request here before a backend sees it, so a message that one store accepts the
other accepts too. All rules that a request breaks are reported together. The rules of a message are
`sagastore.message_rules`, which the imports of legacy files share.

The limits are those of api.md; lengths count Unicode code points.
"""

from __future__ import annotations

from collections.abc import Sequence

from sagastore.message_rules import (
    MAX_CONTENT,
    MAX_ID,
    MAX_PROVIDER,
    MAX_ROLE,
    MAX_SESSION_ID,
    MAX_TAG,
    MAX_TAGS,
    MessageRules,
    is_plain,
    unstorable,
)
from sagastore_server.storage.errors import InvalidRequestError, Violation
from sagastore_server.storage.model import NewMessage

__all__ = [
    "DEFAULT_EXPORT_BATCH",
    "DEFAULT_PAGE_SIZE",
    "MAX_BATCH",
    "MAX_CONTENT",
    "MAX_EXPORT_BATCH",
    "MAX_EXTRACTED_TEXT",
    "MAX_FILENAME",
    "MAX_FILEPATH",
    "MAX_FILE_SIZE",
    "MAX_FILE_TYPE",
    "MAX_ID",
    "MAX_PAGE_SIZE",
    "MAX_PROVIDER",
    "MAX_QUERY",
    "MAX_ROLE",
    "MAX_SESSION_ID",
    "MAX_SESSION_METADATA",
    "MAX_TAG",
    "MAX_TAGS",
    "MAX_TIMESTAMP",
    "MAX_TITLE",
    "MAX_VIOLATIONS",
    "MIN_TIMESTAMP",
    "Sent",
    "Violations",
    "is_plain",
    "unstorable",
]

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
"""Messages of a BulkSave batch, requests of a BatchSave, and ids of a BatchGet."""

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


class Violations(MessageRules):
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
        canonical = self.message(
            prefix,
            message_id=message_id,
            provider=provider,
            role=role,
            content=content,
            tags=tags,
            metadata=metadata,
            session_id=session_id,
        )
        return NewMessage(
            message_id, provider, role, content, tuple(tags), timestamp, canonical, session_id
        )
