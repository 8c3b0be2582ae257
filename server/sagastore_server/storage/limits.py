"""Size limits of responses."""

from __future__ import annotations

from collections.abc import Iterable

from sagastore_server.storage.model import Message, Page

MAX_PAGE_BYTES = 3 * 1024 * 1024
"""Bytes of messages in one page.

A gRPC client that was not told otherwise accepts 4 MiB (grpc.max_receive_message_length), and so
receives every page of messages up to this size. A larger message is returned alone: a client
must accept LARGEST_MESSAGE to receive every message, as the client library does.
"""

LARGEST_MESSAGE = 6 * 1024 * 1024
"""Bytes of a message in a request or a response are fewer: at most 4,000,000 of content, 1,048,576
of metadata and 526,336 of tags, and 2,048 of other fields."""


def page_of(messages: Iterable[Message], limit: int) -> Page:
    """Return a page of the first messages: up to ``limit`` and MAX_PAGE_BYTES, but at least one.

    Takes at most one message more than the page holds, to set ``Page.more``.
    """
    room = MAX_PAGE_BYTES
    taken: list[Message] = []
    for message in messages:
        room -= message.size
        if len(taken) >= limit or (taken and room < 0):
            return Page(taken, more=True)
        taken.append(message)
    return Page(taken, more=False)
