"""How much one answer may hold."""

from __future__ import annotations

from collections.abc import Iterable

from sagastore_server.storage.model import Message

MAX_PAGE_BYTES = 3 * 1024 * 1024
"""Bytes of messages in one page.

A gRPC client that was not told otherwise accepts 4 MiB (grpc.max_receive_message_length).
One message is at most about 2.4 MiB by ``Message.size``, which never counts too little.
"""


def fitting(messages: Iterable[Message], limit: int) -> list[Message]:
    """Take messages until ``limit`` or MAX_PAGE_BYTES is reached; at least one."""
    page: list[Message] = []
    room = MAX_PAGE_BYTES
    for message in messages:
        room -= message.size
        if page and (room < 0 or len(page) >= limit):
            break
        page.append(message)
    return page
