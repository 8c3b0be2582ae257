"""A group of writes, worked out against what is stored before anything is written.

Each write sees the ones before it in its group. What several of them do to one
message is written once; each still gets its own answer. A backend loads what is
stored, lets the writes be worked out here, and then writes ``after`` and ``buried``
in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

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


class Turn(NamedTuple):
    """Place of a batch among others that are written at the same time."""

    sequence: int
    """The sequence of its first message; the next ones have the next sequences."""
    now: int
    """The time when it was taken, in microseconds."""

    def at(self, place: int) -> Turn:
        """Return the turn of the message at ``place`` in the batch."""
        return Turn(self.sequence + place, self.now)


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

    def bulk_save(
        self, drafts: Sequence[NewMessage], on_conflict: OnConflict, turn: Turn | None = None
    ) -> BulkResult:
        """As ``StorageBackend.bulk_save``; ``turn`` places the new messages if it is given."""
        last = {draft.id: draft for draft in drafts}
        saved = unchanged = 0
        skipped = len(drafts) - len(last)
        for place, draft in enumerate(last.values()):
            stored = self._current(draft.id)
            if stored is not None and on_conflict is OnConflict.SKIP:
                skipped += 1
            elif self._put(draft, stored, turn and turn.at(place)) is stored:
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

    def _put(self, draft: NewMessage, stored: Message | None, turn: Turn | None = None) -> Message:
        """Replace ``stored``; return it itself where nothing changes.

        Without ``turn`` the sequence of a new message is its revision.
        """
        timestamp = draft.timestamp
        if stored is None:
            revision = next(self._revisions)
            sequence, now = turn or Turn(revision, self.now)
            timestamp = now if timestamp is None else timestamp
            created_at = now if draft.created_at is None else draft.created_at
        else:
            timestamp = stored.timestamp if timestamp is None else timestamp
            if (*draft[:5], timestamp, *draft[6:8]) == stored[:8]:
                return stored
            created_at = stored.created_at  # type: ignore[assignment]  # None where a legacy row had none
            revision, sequence = next(self._revisions), stored.sequence
        message = Message(*draft[:5], timestamp, *draft[6:8], created_at, revision, sequence)
        self.after[draft.id] = message
        return message


def _check_revision(message_id: str, stored: Message | None, expected: int) -> None:
    found = stored.revision if stored else None
    if found != expected:
        raise RevisionMismatchError(message_id, expected, found)
