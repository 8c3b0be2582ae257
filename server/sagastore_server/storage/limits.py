"""Size limits of responses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from sagastore_server.storage.files import File, FilePage
from sagastore_server.storage.model import Message, Page
from sagastore_server.storage.query import Ranked
from sagastore_server.storage.sessions import Session, SessionPage

MAX_PAGE_BYTES = 3 * 1024 * 1024
"""Bytes of messages in one page.

A gRPC client that was not told otherwise accepts 4 MiB (grpc.max_receive_message_length), and so
receives every page of messages up to this size. A larger message is returned alone: a client
must accept LARGEST_MESSAGE to receive every message, as the client library does. A file record
may take up to 4.6 MiB: 3 MiB of text, 1 MiB of metadata and 0.5 MiB of tags.
"""

LARGEST_MESSAGE = 6 * 1024 * 1024
"""Bytes of a message in a request or a response are fewer: at most 4,000,000 of content, 1,048,576
of metadata and 526,336 of tags, and 2,048 of other fields."""

WINDOW_BYTES = 16 * 1024 * 1024
"""Bytes of contents (UTF-8) that are ranked together, or one content. Bounds the time of a
statement that ranks: a window of 500 messages of usual length has 0.2 MB."""


class Sized(Protocol):
    """A value of a page."""

    @property
    def size(self) -> int:
        """Upper bound of its bytes in a response."""


T = TypeVar("T", bound=Sized)


def page_of(messages: Iterable[Message], limit: int) -> Page:
    """Return a page of the first messages: up to ``limit`` and MAX_PAGE_BYTES, but at least one.

    Takes at most one message more than the page holds, to set ``Page.more``.
    """
    return Page(*_first(messages, limit))


def session_page_of(sessions: Iterable[Session], limit: int) -> SessionPage:
    """Return a page of the first sessions, as ``page_of`` does."""
    return SessionPage(*_first(sessions, limit))


def file_page_of(files: Iterable[File], limit: int) -> FilePage:
    """Return a page of the first file records, as ``page_of`` does."""
    return FilePage(*_first(files, limit))


def ranked_page_of(ranked: Iterable[Ranked], limit: int) -> tuple[list[Ranked], bool]:
    """Return the first ranked messages, as ``page_of`` does, and whether more follow."""
    return _first(ranked, limit)


def _first(values: Iterable[T], limit: int) -> tuple[list[T], bool]:
    room = MAX_PAGE_BYTES
    taken: list[T] = []
    for value in values:
        room -= value.size
        if len(taken) >= limit or (taken and room < 0):
            return taken, True
        taken.append(value)
    return taken, False
