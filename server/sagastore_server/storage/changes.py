"""A group of writes, worked out against what is stored before anything is written.

Each write sees the ones before it in its group. What several of them do to one
message or session is written once; each still gets its own answer. A backend loads
what is stored, lets the writes be worked out here, and then writes ``after``,
``buried``, ``sessions`` and those of ``files`` in one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from sagastore_server.storage.errors import (
    AlreadyExistsError,
    NotFoundError,
    RevisionMismatchError,
    SessionExistsError,
    SessionNotFoundError,
    SessionRevisionMismatchError,
    StaleReadError,
)
from sagastore_server.storage.file_changes import FileChanges
from sagastore_server.storage.files import File
from sagastore_server.storage.model import (
    BulkResult,
    Message,
    NewMessage,
    OnConflict,
    SaveResult,
    Store,
)
from sagastore_server.storage.session_changes import SessionChange, SessionOutcome
from sagastore_server.storage.sessions import DeletionStep, SavedMessage, Session

_NO_FILES: Mapping[str, File] = MappingProxyType({})

_LAST_REVISION = 1 << 62
"""Above every revision that a store can reach."""


class Revisions:
    """Revisions for the writes of a group, in ascending order."""

    def __init__(self, blocks: Sequence[range]) -> None:
        """Take the revisions of ``blocks``, which ascend."""
        self._blocks = iter(blocks)
        self._left = range(0)
        self.last = 0
        """The last revision taken; 0: none."""

    def take(self) -> int:
        """Return the next revision."""
        self.reserve(1)
        self.last, self._left = self._left[0], self._left[1:]
        return self.last

    def reserve(self, count: int) -> None:
        """Let the next ``count`` revisions be adjacent. A block has at least so many."""
        if len(self._left) < count:
            self._left = next(self._blocks)


def endless(last: int) -> Revisions:
    """Return the revisions after ``last``, for the only writer of a store."""
    return Revisions([range(last + 1, _LAST_REVISION)])


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
        sessions: Mapping[str, Session],
        revisions: Revisions,
        now: int,
        durable_on: tuple[Store, ...],
        *,
        files: Mapping[str, File] = _NO_FILES,
    ) -> None:
        """Begin with what is stored.

        Args:
            before: The stored messages with the ids of the writes.
            sessions: The stored sessions of the writes and of ``before``.
            revisions: Revisions greater than any stored one: at least one for each message,
                each session and each file of each write.
            now: The current time in microseconds.
            durable_on: The stores that have the writes once they are committed.
            files: The stored file records with the ids of the writes.

        """
        self.before = before
        self._stored_sessions = sessions
        self._revisions = revisions
        self.now = now
        self._durable_on = durable_on
        self.after: dict[str, Message | None] = {}
        """What is to be stored under each id that changes; None: nothing."""
        self.buried: dict[str, int] = {}
        """The revision of the latest deletion of an id."""
        self._sessions: dict[str, SessionChange] = {}
        self.files = FileChanges(files, revisions.take, now, durable_on)
        """The changes of file records."""

    @property
    def sessions(self) -> list[SessionChange]:
        """The sessions that change."""
        return [change for change in self._sessions.values() if change.changed]

    # ------------------------------------------------------------------ messages

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
        self._remove(stored)

    # ------------------------------------------------------------------ sessions

    def append(
        self, session_id: str, drafts: Sequence[NewMessage], if_revision: int | None
    ) -> tuple[SessionOutcome, tuple[SavedMessage, ...], tuple[Store, ...]]:
        """As ``StorageBackend.append``; ``drafts`` have different ids."""
        change = self._session(session_id)
        _check_session(change, if_revision)
        self._revisions.reserve(len(drafts))
        saved = []
        for draft in drafts:
            stored = self._current(draft.id)
            message = self._put(draft, stored)
            created = stored is None
            saved.append(SavedMessage(draft.id, message.revision, message.sequence, created))
        return SessionOutcome(change), tuple(saved), self._durable_on

    def update_session(
        self, session_id: str, title: str | None, metadata: str | None, if_revision: int | None
    ) -> SessionOutcome:
        """As ``StorageBackend.update_session``."""
        change = self._session(session_id)
        _check_session(change, if_revision)
        wanted = (
            change.title if title is None else title,
            change.metadata if metadata is None else metadata,
            True,
        )
        if wanted != (change.title, change.metadata, change.explicit):
            if not change.exists:
                change.created_at = self.now
            change.title, change.metadata, change.explicit = wanted
            change.touch(self._revisions.take(), self.now)
        return SessionOutcome(change)

    def truncate_session(
        self, read: Session, message_ids: Sequence[str], if_revision: int | None
    ) -> SessionOutcome:
        """Delete messages of a session, of which the caller has read the end.

        Args:
            read: The session as it was before the messages were read.
            message_ids: The messages.
            if_revision: As in ``StorageBackend.truncate_session``.

        Raises:
            StaleReadError: The session has changed since it was read.

        """
        change = self._session(read.session_id)
        _require_session(change, if_revision)
        if change.revision != read.revision:
            raise StaleReadError(read.session_id)
        for message_id in message_ids:
            stored = self._current(message_id)
            assert stored is not None  # noqa: S101 - else the session's revision had changed
            self._remove(stored)
        return SessionOutcome(change)

    def begin_session_deletion(self, session_id: str, if_revision: int | None) -> None:
        """As ``StorageBackend.begin_session_deletion``."""
        change = self._session(session_id)
        _require_session(change, if_revision)
        revision = self._revisions.take()
        change.title, change.metadata, change.explicit = "", "{}", False
        change.deleting = revision if change.message_count else 0
        change.touch(revision, self.now)

    def delete_some(self, session_id: str, upto: int, message_ids: Sequence[str]) -> DeletionStep:
        """Delete messages of a session that is being deleted.

        Args:
            session_id: The session.
            upto: ``Session.deleting`` as the caller read it.
            message_ids: The next messages; none: there are no more, and the deletion ends.

        """
        change = self._session(session_id)
        if change.deleting != upto:
            return DeletionStep(0, done=change.deleting == 0)
        if not message_ids:
            change.deleting = 0
            change.touch(self._revisions.take(), self.now)
            return DeletionStep(0, done=True)
        deleted = 0
        for message_id in message_ids:
            stored = self._current(message_id)
            if stored and stored.session_id == session_id and stored.sequence <= upto:
                self._remove(stored)
                deleted += 1
        return DeletionStep(deleted, done=False)

    # ------------------------------------------------------------------ helpers

    def _current(self, message_id: str) -> Message | None:
        if message_id in self.after:
            return self.after[message_id]
        return self.before.get(message_id)

    def _session(self, session_id: str) -> SessionChange:
        change = self._sessions.get(session_id)
        if change is None:
            change = SessionChange(session_id, self._stored_sessions.get(session_id))
            self._sessions[session_id] = change
        return change

    def _put(self, draft: NewMessage, stored: Message | None, turn: Turn | None = None) -> Message:
        """Replace ``stored``; return it itself where nothing changes.

        Without ``turn`` the sequence of a new message is its revision.
        """
        timestamp = draft.timestamp
        if stored is None:
            revision = self._revisions.take()
            sequence, now = turn or Turn(revision, self.now)
            timestamp = now if timestamp is None else timestamp
            created_at = now if draft.created_at is None else draft.created_at
        else:
            timestamp = stored.timestamp if timestamp is None else timestamp
            if (*draft[:5], timestamp, *draft[6:8]) == stored[:8]:
                return stored
            created_at = stored.created_at  # type: ignore[assignment]  # None where a legacy row had none
            revision, sequence = self._revisions.take(), stored.sequence
        message = Message(*draft[:5], timestamp, *draft[6:8], created_at, revision, sequence)
        self.after[draft.id] = message
        self._note(stored, message, revision)
        return message

    def _remove(self, stored: Message) -> None:
        revision = self._revisions.take()
        self.after[stored.id] = None
        self.buried[stored.id] = revision
        self._note(stored, None, revision)

    def _note(self, before: Message | None, after: Message | None, revision: int) -> None:
        """Carry a change of a message over to its session, or to both of its sessions."""
        old = None if before is None else before.session_id
        new = None if after is None else after.session_id
        if new is not None and after is not None:
            change = self._session(new)
            if before is not None and old == new:
                change.replace(before, after, self.now)
            else:
                change.add(after, self.now)
            change.touch(revision, self.now)
        if old is not None and old != new and before is not None:
            # A separate revision: the journal entry of the message does not stand for it.
            change = self._session(old)
            change.remove(before)
            change.touch(self._revisions.take(), self.now)


def _check_revision(message_id: str, stored: Message | None, expected: int) -> None:
    found = stored.revision if stored else None
    if found != expected:
        raise RevisionMismatchError(message_id, expected, found)


def _check_session(change: SessionChange, if_revision: int | None) -> None:
    """Check the guard of a write that may create the session."""
    if if_revision == 0:
        if change.exists:
            raise SessionExistsError(change.session_id, change.revision)
    elif if_revision is not None:
        found = change.revision if change.exists else None
        if found != if_revision:
            raise SessionRevisionMismatchError(change.session_id, if_revision, found)


def _require_session(change: SessionChange, if_revision: int | None) -> None:
    """Check the guard of a write that needs the session."""
    if not change.exists:
        raise SessionNotFoundError(change.session_id)
    _check_session(change, if_revision)
