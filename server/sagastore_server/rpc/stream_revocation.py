"""Stream revocation: ends open streams whose caller has lost access.

A token can be revoked, or expire, while a stream is open.
"""

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

    def check(self) -> None:
        if self.error is not None:
            return
        try:
            self._check()
        except StorageError as exc:
            self.error = exc
            self._limit.reschedule(0.0)


class StreamRevocation:
    """Registry of the open streams. Belongs to one event loop."""

    def __init__(self) -> None:
        """Create an empty registry."""
        self._open: set[_Stream] = set()

    @asynccontextmanager
    async def watch(self, check: Callable[[], None]) -> AsyncIterator[None]:
        """Cancel the body of the context once ``check`` raises.

        Raises:
            StorageError: The error that ``check`` raised.

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
            # The body ended at the same moment, or handled the cancellation as its end.
            raise stream.error

    def check_all(self) -> None:
        """Check the caller of every open stream."""
        for stream in list(self._open):
            stream.check()
