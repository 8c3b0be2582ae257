"""A group of writes, worked out against what is stored before anything is written.

Each write sees the ones before it in its group. What several of them do to one
message is written once; each still gets its own answer. A backend loads what is
stored, lets the writes be worked out here, and then writes ``after`` and ``buried``
in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sagastore_server.storage.errors import (
    AlreadyExistsError,
    NotFoundError,
    RevisionMismatchError,
)
from sagastore_server.storage.model import (
    BulkResult,
    Message,
    NewMessage,
    OnConflict,
    SaveResult,
    Store,
)


class Changes:
    """The writes of one transaction."""

    def __init__(
        self,
        before: Mapping[str, Message],
        revisions: Iterable[int],
        now: int,
        durable_on: tuple[Store, ...],
    ) -> None:
        """Begin with what is stored, ``before``; ``now`` is in microseconds.

        ``revisions`` are ascending, greater than any in ``before``, and one for each id
        of each write.
        """
        self.before = before
        self._revisions = iter(revisions)
        self.now = now
        self._durable_on = durable_on
        self.after: dict[str, Message | None] = {}
        """What is to be stored under each id that changes; None: nothing."""
        self.buried: dict[str, int] = {}
        """The revision of the latest deletion of an id."""

    def save(self, draft: NewMessage, if_revision: int | None) -> SaveResult:
        """As ``StorageBackend.save``."""
        stored = self._current(draft.id)
        if if_revision == 0:
            if stored is not None:
                raise AlreadyExistsError(draft.id, stored.revision)
        elif if_revision is not None:
            _check_revision(draft.id, stored, if_revision)
        message = self._put(draft, stored)
        return SaveResult(draft.id, message.revision, stored is None, self._durable_on)

    def bulk_save(self, drafts: Sequence[NewMessage], on_conflict: OnConflict) -> BulkResult:
        """As ``StorageBackend.bulk_save``."""
        last = {draft.id: draft for draft in drafts}
        saved = unchanged = 0
        skipped = len(drafts) - len(last)
        for draft in last.values():
            stored = self._current(draft.id)
            if stored is not None and on_conflict is OnConflict.SKIP:
                skipped += 1
            elif self._put(draft, stored) is stored:
                unchanged += 1
            else:
                saved += 1
        return BulkResult(saved, unchanged, skipped)

    def delete(self, message_id: str, if_revision: int | None) -> None:
        """As ``StorageBackend.delete``."""
        stored = self._current(message_id)
        if stored is None:
            raise NotFoundError(message_id)
        if if_revision is not None:
            _check_revision(message_id, stored, if_revision)
        self.after[message_id] = None
        self.buried[message_id] = next(self._revisions)

    def _current(self, message_id: str) -> Message | None:
        if message_id in self.after:
            return self.after[message_id]
        return self.before.get(message_id)

    def _put(self, draft: NewMessage, stored: Message | None) -> Message:
        """Replace ``stored``; return it itself where nothing changes."""
        timestamp, created_at = draft.timestamp, self.now
        if stored is not None:
            timestamp = stored.timestamp if timestamp is None else timestamp
            if (*draft[:5], timestamp, *draft[6:]) == stored[:8]:
                return stored
            created_at = stored.created_at  # type: ignore[assignment]  # None where a legacy row had none
        elif timestamp is None:
            timestamp = self.now
        revision = next(self._revisions)
        message = Message(*draft[:5], timestamp, *draft[6:], created_at, revision)
        self.after[draft.id] = message
        return message


def _check_revision(message_id: str, stored: Message | None, expected: int) -> None:
    found = stored.revision if stored else None
    if found != expected:
        raise RevisionMismatchError(message_id, expected, found)
