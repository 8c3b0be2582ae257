"""Streams end when their caller may no longer have them: a token was revoked, or has expired."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sagastore_server.storage.errors import StorageError


class _Stream:
    def __init__(self, check: Callable[[], None], limit: asyncio.Timeout) -> None:
        self._check = check
        self._limit = limit
        self.error: StorageError | None = None

    def check_again(self) -> None:
        if self.error is not None:
            return
        try:
            self._check()
        except StorageError as exc:
            self.error = exc
            self._limit.reschedule(0.0)


class StreamRevocation:
    """Knows the open streams. Belongs to one event loop."""

    def __init__(self) -> None:
        """Begin with none."""
        self._open: set[_Stream] = set()

    @asynccontextmanager
    async def over(self, check: Callable[[], None]) -> AsyncIterator[None]:
        """End what is done in the context, wherever it is, once ``check`` raises.

        Raises:
            StorageError: What ``check`` raised.

        """
        limit = asyncio.timeout(None)
        stream = _Stream(check, limit)
        try:
            async with limit:
                self._open.add(stream)
                try:
                    yield
                finally:
                    self._open.discard(stream)
        except TimeoutError:
            if stream.error is not None and limit.expired():
                raise stream.error from None
            raise
        if stream.error is not None:
            # It came to its end in the same moment, or took being cut off for its end.
            raise stream.error

    def check_all(self) -> None:
        """Have every stream checked."""
        for stream in list(self._open):
            stream.check_again()
