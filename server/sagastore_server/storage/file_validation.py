"""Every rule of the API about file records; ``validation`` has those about messages.

A request and a row of a legacy file are checked here, so a record that one store accepts the other
accepts too.
"""

from __future__ import annotations

from typing import NamedTuple

from sagastore.message_rules import MessageRules
from sagastore_server.storage.files import NewFile
from sagastore_server.storage.validation import (
    MAX_EXTRACTED_TEXT,
    MAX_FILE_SIZE,
    MAX_FILE_TYPE,
    MAX_FILENAME,
    MAX_FILEPATH,
    MAX_ID,
    unstorable,
)


class SentFile(NamedTuple):
    """A file record as it came in, unchecked."""

    id: str
    filename: str
    filepath: str
    file_type: str
    extracted_text: str
    tags: tuple[str, ...]
    file_size: int
    uploaded_at: int | None
    """In microseconds, already checked; None: not given."""
    metadata: str


def checked_file(check: MessageRules, prefix: str, sent: SentFile) -> NewFile:
    """Check the fields of a file record; the result counts only if none is broken.

    ``prefix`` goes before the field names, as in ``file.``.
    """
    check.text(prefix + "id", sent.id, MAX_ID, required=True)
    check.text(prefix + "filename", sent.filename, MAX_FILENAME, required=True)
    check.text(prefix + "filepath", sent.filepath, MAX_FILEPATH, required=True)
    check.text(prefix + "file_type", sent.file_type, MAX_FILE_TYPE, required=True)
    _check_text(check, prefix + "extracted_text", sent.extracted_text)
    check.tags(prefix + "tags", sent.tags)
    if not 0 <= sent.file_size <= MAX_FILE_SIZE:
        check.add(prefix + "file_size", f"is {sent.file_size}, must not be negative")
    metadata = check.metadata(prefix + "metadata_json", sent.metadata)
    return NewFile(*sent[:8], metadata)


def _check_text(check: MessageRules, field: str, text: str) -> None:
    problem = unstorable(text)
    if problem:
        check.add(field, problem)
        return
    size = len(text) if text.isascii() else len(text.encode())
    if size > MAX_EXTRACTED_TEXT:
        check.add(field, f"has {size:,} bytes, at most {MAX_EXTRACTED_TEXT:,} are allowed")
