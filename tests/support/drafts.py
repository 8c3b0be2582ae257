"""New messages for tests, and helpers to store and find them."""

from __future__ import annotations

from collections.abc import Sequence

from sagastore_server.search.parser import parse_query
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.model import Message, NewMessage, OnConflict, Page, Position
from sagastore_server.storage.query import Criteria, Scan

NOW = 1_700_000_000_000_000
"""Microseconds of a time in November 2023."""


def draft(
    id: str = "m-1",
    content: str = "The quick brown fox",
    *,
    provider: str = "anthropic",
    role: str = "user",
    tags: Sequence[str] = (),
    timestamp: int | None = NOW,
    metadata: str = "{}",
    session_id: str | None = "s-1",
) -> NewMessage:
    """Return a valid new message with the given fields."""
    return NewMessage(id, provider, role, content, tuple(tags), timestamp, metadata, session_id)


def lone(id: str = "m-1", content: str = "The quick brown fox") -> NewMessage:
    """Return a new message that belongs to no session, so that only itself is journalled."""
    return draft(id, content, session_id=None)


def as_draft(message: Message) -> NewMessage:
    """Return the new message that stores ``message`` unchanged."""
    return NewMessage(*message[:8])


async def save_all(backend: StorageBackend, drafts: Sequence[NewMessage]) -> None:
    """Store new messages in batches."""
    for start in range(0, len(drafts), 1000):
        batch = drafts[start : start + 1000]
        result = await backend.bulk_save(batch, OnConflict.REPLACE)
        assert result == (len(batch), 0, 0)


async def walk(
    backend: StorageBackend, criteria: Criteria, *, newest_first: bool = False, limit: int = 100
) -> list[Page]:
    """Return all pages of a search, from one end to the other."""
    pages: list[Page] = []
    after: Position | None = None
    while True:
        page = await backend.search(criteria, Scan(newest_first, limit, after))
        pages.append(page)
        if not page.more:
            return pages
        after = page.messages[-1].position


async def found(backend: StorageBackend, criteria: Criteria | str) -> list[str]:
    """Return the ids that match ``criteria``, or a query text, oldest first."""
    if isinstance(criteria, str):
        criteria = Criteria(parse_query(criteria))
    pages = await walk(backend, criteria)
    return [message.id for page in pages for message in page.messages]
