"""Reads of ``StorageBackend`` as functions of a snapshot."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import NotFoundError
from sagastore_server.storage.limits import page_of
from sagastore_server.storage.model import Message, Page
from sagastore_server.storage.query import Criteria, Scan
from tests.support.reference_search import meets, stretch

T = TypeVar("T")
Rows = Mapping[str, Message]
"""Messages by id."""


class SnapshotReads(StorageBackend):
    """Backend whose reads see the messages of one instant within the call."""

    @abc.abstractmethod
    async def _look(self, look: Callable[[Rows], T]) -> T:
        """Call ``look`` at one instant; its result must keep no reference to the rows."""

    async def get(self, message_id: str) -> Message:
        """See the contract."""
        found = await self._look(lambda rows: rows.get(message_id))
        if found is None:
            raise NotFoundError(message_id)
        return found

    async def batch_get(self, message_ids: Sequence[str]) -> dict[str, Message]:
        """See the contract."""
        return await self._look(lambda rows: {key: rows[key] for key in message_ids if key in rows})

    async def list_session(self, session_id: str, scan: Scan) -> Page:
        """See the contract."""
        return await self.search(Criteria(session_id=session_id), scan)

    async def search(self, criteria: Criteria, scan: Scan) -> Page:
        """See the contract."""

        def look(rows: Rows) -> Page:
            found = [message for message in rows.values() if meets(message, criteria)]
            return page_of(stretch(found, scan), scan.limit)

        return await self._look(look)

    async def scan_ids(self, after: str, upto: str, limit: int) -> Page:
        """See the contract."""

        # Python compares strings by code point, which is the order of their UTF-8 bytes.
        def look(rows: Rows) -> Page:
            found = sorted(key for key in rows if after < key <= upto)
            return page_of((rows[key] for key in found), limit)

        return await self._look(look)

    async def last_id(self) -> str | None:
        """See the contract."""
        return await self._look(lambda rows: max(rows, default=None))

    async def scan_sequences(self, after: int, upto: int, limit: int) -> Page:
        """See the contract."""

        def look(rows: Rows) -> Page:
            found = sorted(
                (one for one in rows.values() if after < one.sequence <= upto),
                key=lambda one: one.sequence,
            )
            return page_of(found, limit)

        return await self._look(look)

    async def last_sequence(self) -> int:
        """See the contract."""
        return await self._look(
            lambda rows: max((one.sequence for one in rows.values()), default=0)
        )

    async def count(self) -> int:
        """See ``MigrationSource`` and ``MigrationTarget``."""
        return await self._look(len)
