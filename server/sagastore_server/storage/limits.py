"""How much one answer may hold."""

from __future__ import annotations

from sagastore_server.storage.model import Message, Page

MAX_PAGE_BYTES = 3 * 1024 * 1024
"""Bytes of messages in one page.

A gRPC client that was not told otherwise accepts 4 MiB (grpc.max_receive_message_length).
One message is at most about 1.9 MiB by ``Message.size``, which never counts too little.
"""


class PageBuilder:
    """Takes messages until there are ``limit``, or they exceed MAX_PAGE_BYTES; at least one."""

    def __init__(self, limit: int) -> None:
        """Begin an empty page of at most ``limit`` messages."""
        self._limit = limit
        self._room = MAX_PAGE_BYTES
        self._messages: list[Message] = []
        self._full = False

    def add(self, message: Message) -> bool:
        """Take the next message, or answer False: the page is full, and it goes on."""
        self._room -= message.size
        if len(self._messages) >= self._limit or (self._messages and self._room < 0):
            self._full = True
            return False
        self._messages.append(message)
        return True

    def page(self) -> Page:
        """Return what was taken."""
        return Page(self._messages, self._full)
