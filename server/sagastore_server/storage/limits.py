"""How much one answer may hold."""

from __future__ import annotations

from collections.abc import Iterable

from sagastore_server.storage.model import Message, Page

MAX_PAGE_BYTES = 3 * 1024 * 1024
"""Bytes of messages in one page.

A gRPC client that was not told otherwise accepts 4 MiB (grpc.max_receive_message_length).
One message is at most about 2.4 MiB by ``Message.size``, which never counts too little.
"""


def fitting(messages: Iterable[Message], limit: int) -> Page:
    """Take messages until there are ``limit`` or they exceed MAX_PAGE_BYTES; at least one.

    Reads no further into ``messages`` than one message behind the page.
    """
    page: list[Message] = []
    room = MAX_PAGE_BYTES
    for message in messages:
        room -= message.size
        if len(page) >= limit or (page and room < 0):
            return Page(page, more=True)
        page.append(message)
    return Page(page, more=False)
