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
from sagastore_server.storage.files import File, FilePage, FileScan, NewFile
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
from sagastore_server.storage.sessions import (
    AppendResult,
    DeletionStep,
    SavedMessage,
    Session,
    SessionCriteria,
    SessionPage,
    SessionScan,
    Truncation,
)
from tests.simulation.models.file_rows import files_listed
from tests.simulation.models.session_rows import listed
from tests.support.memory_files import check_file, stored
from tests.support.memory_sessions import Own, check, last_messages, session_of
from tests.support.reference_search import meets, stretch

STORE = Store.SQLITE
"""Store name that the contract requires."""


class MemoryState:
    """State that outlives a ``MemoryStorage``."""

    def __init__(self) -> None:
        self.messages: dict[str, Message] = {}
        self.sessions: dict[str, Own] = {}
        self.files: dict[str, File] = {}
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
        self._remove(stored)

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
        sessions = sum(self._session(key).exists for key in self._state.sessions)
        counts = sessions, len(self._state.files)
        return StoreHealth(STORE, True, "", len(self._messages), 1, *counts)

    def _remove(self, stored: Message) -> None:
        self._state.revision += 1
        del self._messages[stored.id]
        self._touch(stored.session_id)

    # ------------------------------------------------------------------ sessions

    def _session(self, session_id: str) -> Session:
        own = self._state.sessions.get(session_id, Own())
        return session_of(session_id, own, self._in(session_id))

    def _in(self, session_id: str) -> list[Message]:
        found = [one for one in self._messages.values() if one.session_id == session_id]
        return sorted(found, key=lambda one: one.position)

    def _touch(self, session_id: str | None, **changes: object) -> None:
        """Note a change of a session under the last revision."""
        if session_id is not None:
            own = self._state.sessions.get(session_id, Own())
            now = time.time_ns() // 1000
            values = {"revision": self._state.revision, "updated_at": now, **changes}
            self._state.sessions[session_id] = own._replace(**values)  # type: ignore[arg-type]

    async def append(
        self,
        session_id: str,
        messages: Sequence[NewMessage],
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> AppendResult:
        """See the contract."""
        check(self._session(session_id), if_revision)
        saved: list[SavedMessage] = []
        for draft in messages:
            stored = self._messages.get(draft.id)
            one = self._put(draft, stored)
            saved.append(SavedMessage(one.id, one.revision, one.sequence, stored is None))
        return AppendResult(self._session(session_id), tuple(saved), (STORE,))

    async def get_session(self, session_id: str) -> Session:
        """See the contract."""
        found = self._session(session_id)
        check(found, None, needed=True)
        return found

    async def list_sessions(self, criteria: SessionCriteria, scan: SessionScan) -> SessionPage:
        """See the contract."""
        self._check_open()
        return listed({key: self._session(key) for key in self._state.sessions}, criteria, scan)

    async def update_session(
        self,
        session_id: str,
        title: str | None = None,
        metadata: str | None = None,
        if_revision: int | None = None,
    ) -> Session:
        """See the contract."""
        found = self._session(session_id)
        check(found, if_revision)
        wanted = {
            "title": found.title if title is None else title,
            "metadata": found.metadata if metadata is None else metadata,
            "explicit": True,
        }
        if any(getattr(found, name) != value for name, value in wanted.items()):
            if not found.exists:
                wanted["created_at"] = time.time_ns() // 1000
            self._state.revision += 1
            self._touch(session_id, **wanted)
        return self._session(session_id)

    async def truncate_session(
        self,
        session_id: str,
        *,
        drop_last: int | None = None,
        keep_through: str | None = None,
        if_revision: int | None = None,
        most_bytes: int = 0,
    ) -> Truncation:
        """See the contract."""
        found = self._session(session_id)
        check(found, None, needed=True)
        removed = last_messages(self._in(session_id), drop_last, keep_through, most_bytes)
        check(found, if_revision)
        for one in removed:
            self._remove(one)
        return Truncation(tuple(removed), self._session(session_id))

    async def begin_session_deletion(self, session_id: str, if_revision: int | None = None) -> None:
        """See the contract."""
        found = self._session(session_id)
        check(found, if_revision, needed=True)
        self._state.revision += 1
        deleting = self._state.revision if found.message_count else 0
        plain = {"title": "", "metadata": "{}", "explicit": False, "deleting": deleting}
        self._touch(session_id, **plain)

    async def delete_session_step(self, session_id: str) -> DeletionStep:
        """See the contract."""
        upto = self._session(session_id).deleting
        if not upto:
            return DeletionStep(0, done=True)
        found = [one for one in self._in(session_id) if one.sequence <= upto]
        for one in found:
            self._remove(one)
        if not found:
            self._state.revision += 1
            self._touch(session_id, deleting=0)
        return DeletionStep(len(found), done=not found)

    async def unfinished_session_deletions(self, limit: int) -> list[str]:
        """See the contract."""
        self._check_open()
        return sorted(key for key, own in self._state.sessions.items() if own.deleting)[:limit]

    # ------------------------------------------------------------------ files

    async def save_file(
        self,
        draft: NewFile,
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> SaveResult:
        """See the contract."""
        self._check_open()
        before = self._state.files.get(draft.id)
        check_file(draft.id, before, if_revision, needed=False)
        after = stored(draft, before, self._state.revision + 1)
        self._state.files[draft.id] = after
        self._state.revision = max(self._state.revision, after.revision)
        return SaveResult(draft.id, after.revision, before is None, (STORE,))

    async def get_file(self, file_id: str) -> File:
        """See the contract."""
        self._check_open()
        check_file(file_id, self._state.files.get(file_id), None, needed=True)
        return self._state.files[file_id]

    async def list_files(self, scan: FileScan) -> FilePage:
        """See the contract."""
        self._check_open()
        return files_listed(self._state.files, scan)

    async def delete_file(self, file_id: str, if_revision: int | None = None) -> None:
        """See the contract."""
        self._check_open()
        check_file(file_id, self._state.files.get(file_id), if_revision, needed=True)
        del self._state.files[file_id]
        self._state.revision += 1

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
        new = message.session_id
        if new is not None and not self._session(new).exists:
            self._touch(new, created_at=created_at)
        self._messages[draft.id] = message
        self._touch(new)
        if stored is not None and stored.session_id != new:
            self._touch(stored.session_id)
        return message

    @staticmethod
    def _check(message_id: str, stored: Message | None, expected: int) -> None:
        found = stored.revision if stored else None
        if found != expected:
            raise RevisionMismatchError(message_id, expected, found)
