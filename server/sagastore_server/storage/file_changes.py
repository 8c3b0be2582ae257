"""FileChanges: what a group of writes makes of file records. A part of ``changes.Changes``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sagastore_server.storage.errors import (
    FileRecordExistsError,
    FileRecordNotFoundError,
    FileRevisionMismatchError,
)
from sagastore_server.storage.files import File, NewFile
from sagastore_server.storage.model import SaveResult, Store


class FileChanges:
    """The writes of file records in one transaction."""

    def __init__(
        self,
        before: Mapping[str, File],
        take_revision: Callable[[], int],
        now: int,
        durable_on: tuple[Store, ...],
    ) -> None:
        """Begin with what is stored; the arguments are those of ``Changes``."""
        self.before = before
        self._take_revision = take_revision
        self._now = now
        self._durable_on = durable_on
        self.after: dict[str, File | None] = {}
        """What is to be stored under each id that changes; None: nothing."""
        self.buried: dict[str, int] = {}
        """The revision of the latest deletion of an id."""

    def save(self, draft: NewFile, if_revision: int | None) -> SaveResult:
        """As ``FileBackend.save_file``."""
        stored = self._current(draft.id)
        if if_revision == 0:
            if stored is not None:
                raise FileRecordExistsError(draft.id, stored.revision)
        elif if_revision is not None:
            _check_revision(draft.id, stored, if_revision)
        record = self._put(draft, stored)
        return SaveResult(draft.id, record.revision, stored is None, self._durable_on)

    def delete(self, file_id: str, if_revision: int | None) -> None:
        """As ``FileBackend.delete_file``."""
        stored = self._current(file_id)
        if stored is None:
            raise FileRecordNotFoundError(file_id)
        if if_revision is not None:
            _check_revision(file_id, stored, if_revision)
        self.after[file_id] = None
        self.buried[file_id] = self._take_revision()

    def _current(self, file_id: str) -> File | None:
        if file_id in self.after:
            return self.after[file_id]
        return self.before.get(file_id)

    def _put(self, draft: NewFile, stored: File | None) -> File:
        """Replace ``stored``; return it itself where nothing changes."""
        if stored is None:
            at = self._now if draft.uploaded_at is None else draft.uploaded_at
            record = File(*draft[:7], at, draft.metadata, self._now, 0)
        else:
            at = stored.uploaded_at if draft.uploaded_at is None else draft.uploaded_at
            kept = (stored.created_at, stored.revision, stored.extra)
            record = File(*draft[:7], at, draft.metadata, *kept)
            if record == stored:
                return stored
        record = record._replace(revision=self._take_revision())
        self.after[draft.id] = record
        return record


def _check_revision(file_id: str, stored: File | None, expected: int) -> None:
    found = stored.revision if stored else None
    if found != expected:
        raise FileRevisionMismatchError(file_id, expected, found)
