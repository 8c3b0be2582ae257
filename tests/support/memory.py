"""In-memory implementation of the storage contract: the reference for other backends.

The conformance suite covers it as well, so that it cannot diverge from the contract.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sagastore_server.storage.base import PreparedTerms, StorageBackend
from sagastore_server.storage.errors import (
    AlreadyExistsError,
    NotFoundError,
    RevisionMismatchError,
    UnavailableError,
)
from sagastore_server.storage.limits import page_of
from sagastore_server.storage.model import (
    BulkResult,
    Message,
    NewMessage,
    OnConflict,
    Page,
    QuarantinedRow,
    SaveResult,
    Store,
    StoreHealth,
)
from sagastore_server.storage.query import Criteria, Scan
from tests.support.reference_search import meets, stretch

STORE = Store.SQLITE
"""Store name that the contract requires."""


class MemoryState:
    """State that outlives a ``MemoryStorage``."""

    def __init__(self) -> None:
        self.messages: dict[str, Message] = {}
        self.revision = 0


class MemoryStorage(StorageBackend):
    """Storage backend that keeps messages in ``state``."""

    def __init__(self, state: MemoryState) -> None:
        """Use ``state`` from ``open`` to ``close``."""
        self._state = state
        self._open = False

    async def open(self) -> None:
        """See the contract."""
        self._open = True

    async def close(self) -> None:
        """See the contract."""
        self._open = False

    @property
    def _messages(self) -> dict[str, Message]:
        self._check_open()
        return self._state.messages

    def _check_open(self) -> None:
        if not self._open:
            raise UnavailableError("the store is not open")

    async def save(
        self,
        draft: NewMessage,
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> SaveResult:
        """See the contract."""
        stored = self._messages.get(draft.id)
        if if_revision == 0 and stored is not None:
            raise AlreadyExistsError(draft.id, stored.revision)
        if if_revision:
            self._check(draft.id, stored, if_revision)
        message = self._put(draft, stored)
        return SaveResult(draft.id, message.revision, stored is None, (STORE,))

    async def bulk_save(
        self,
        drafts: Sequence[NewMessage],
        on_conflict: OnConflict,
        terms: PreparedTerms | None = None,
    ) -> BulkResult:
        """See the contract."""
        saved = unchanged = 0
        last = {draft.id: draft for draft in drafts}
        skipped = len(drafts) - len(last)
        for draft in last.values():
            stored = self._messages.get(draft.id)
            if stored is not None and on_conflict is OnConflict.SKIP:
                skipped += 1
            elif self._put(draft, stored) is stored:
                unchanged += 1
            else:
                saved += 1
        return BulkResult(saved, unchanged, skipped)

    async def delete(self, message_id: str, if_revision: int | None = None) -> None:
        """See the contract."""
        stored = self._messages.get(message_id)
        if stored is None:
            raise NotFoundError(message_id)
        if if_revision is not None:
            self._check(message_id, stored, if_revision)
        self._state.revision += 1
        del self._messages[message_id]

    async def get(self, message_id: str) -> Message:
        """See the contract."""
        try:
            return self._messages[message_id]
        except KeyError:
            raise NotFoundError(message_id) from None

    async def batch_get(self, message_ids: Sequence[str]) -> dict[str, Message]:
        """See the contract."""
        return {key: self._messages[key] for key in message_ids if key in self._messages}

    async def list_session(self, session_id: str, scan: Scan) -> Page:
        """See the contract."""
        return await self.search(Criteria(session_id=session_id), scan)

    async def search(self, criteria: Criteria, scan: Scan) -> Page:
        """See the contract."""
        found = [message for message in self._messages.values() if meets(message, criteria)]
        return page_of(stretch(found, scan), scan.limit)

    async def scan_ids(self, after: str, upto: str, limit: int) -> Page:
        """See the contract."""
        low, high = after.encode(), upto.encode()
        found = {key.encode(): message for key, message in self._messages.items()}
        return page_of((found[key] for key in sorted(found) if low < key <= high), limit)

    async def last_id(self) -> str | None:
        """See the contract."""
        return max(self._messages, key=str.encode, default=None)

    async def scan_sequences(self, after: int, upto: int, limit: int) -> Page:
        """See the contract."""
        found = [one for one in self._messages.values() if after < one.sequence <= upto]
        return page_of(sorted(found, key=lambda one: one.sequence), limit)

    async def last_sequence(self) -> int:
        """See the contract."""
        return max((one.sequence for one in self._messages.values()), default=0)

    async def quarantine(self, after: int, limit: int) -> list[QuarantinedRow]:
        """See the contract."""
        self._check_open()
        return []

    async def quarantine_count(self) -> int:
        """See the contract."""
        return len(await self.quarantine(0, 1))

    async def health(self) -> StoreHealth:
        """See the contract."""
        if not self._open:
            return StoreHealth(STORE, False, "the store is not open", -1, 0)
        return StoreHealth(STORE, True, "", len(self._messages), 1)

    def _put(self, draft: NewMessage, stored: Message | None) -> Message:
        now = time.time_ns() // 1000
        timestamp = draft.timestamp
        created_at = now if draft.created_at is None else draft.created_at
        revision = sequence = self._state.revision + 1
        if stored is not None:
            timestamp = stored.timestamp if timestamp is None else timestamp
            created_at, sequence = stored.created_at, stored.sequence  # type: ignore[assignment]
            if (*draft[:5], timestamp, *draft[6:8]) == stored[:8]:
                return stored
        elif timestamp is None:
            timestamp = now
        self._state.revision = revision
        message = Message(*draft[:5], timestamp, *draft[6:8], created_at, revision, sequence)
        self._messages[draft.id] = message
        return message

    @staticmethod
    def _check(message_id: str, stored: Message | None, expected: int) -> None:
        found = stored.revision if stored else None
        if found != expected:
            raise RevisionMismatchError(message_id, expected, found)
