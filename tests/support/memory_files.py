"""Files of the in-memory reference."""

from __future__ import annotations

import time

from sagastore_server.storage.errors import (
    FileRecordExistsError,
    FileRecordNotFoundError,
    FileRevisionMismatchError,
)
from sagastore_server.storage.files import File, NewFile


def stored(draft: NewFile, before: File | None, revision: int) -> File:
    """Return what a save stores in place of ``before``: ``before`` itself if nothing changes."""
    now = time.time_ns() // 1000
    if before is None:
        at = now if draft.uploaded_at is None else draft.uploaded_at
        return File(*draft[:7], at, draft.metadata, now, revision)
    at = before.uploaded_at if draft.uploaded_at is None else draft.uploaded_at
    after = before._replace(**{**draft._asdict(), "uploaded_at": at})
    return before if after == before else after._replace(revision=revision)


def check_file(file_id: str, found: File | None, if_revision: int | None, *, needed: bool) -> None:
    """Check a guard; ``needed``: the record must exist."""
    if needed and found is None:
        raise FileRecordNotFoundError(file_id)
    if if_revision == 0:
        if found is not None:
            raise FileRecordExistsError(file_id, found.revision)
    elif if_revision is not None:
        revision = None if found is None else found.revision
        if revision != if_revision:
            raise FileRevisionMismatchError(file_id, if_revision, revision)
