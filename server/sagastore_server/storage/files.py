"""The values of file records that cross the storage contract."""

from __future__ import annotations

from typing import NamedTuple


class FilePosition(NamedTuple):
    """A position in the order of a list of files: by time, then by the bytes of the id."""

    uploaded_at: int
    id: str


class NewFile(NamedTuple):
    """A file record that a request wants to store."""

    id: str
    filename: str
    filepath: str
    file_type: str
    extracted_text: str
    tags: tuple[str, ...]
    file_size: int
    uploaded_at: int | None
    """Microseconds since 1970-01-01 UTC; None: now for a new id, unchanged for an existing one."""
    metadata: str
    """Canonical JSON text of an object."""


class File(NamedTuple):
    """A file record as stored."""

    id: str
    filename: str
    filepath: str
    file_type: str
    extracted_text: str
    tags: tuple[str, ...]
    file_size: int
    """Bytes; 0: unknown."""
    uploaded_at: int
    """Microseconds since 1970-01-01 UTC."""
    metadata: str
    """Canonical JSON text of an object."""
    created_at: int | None
    """Microseconds since 1970-01-01 UTC; None: a legacy row had no value."""
    revision: int
    extra: str = "{}"
    """Values of unknown columns of a legacy table, as a JSON object
    (``sagastore.legacy.raw_row_as_json``). Not served; kept until the record is deleted."""

    @property
    def position(self) -> FilePosition:
        """The position of the record in the order of a list."""
        return FilePosition(self.uploaded_at, self.id)

    @property
    def size(self) -> int:
        """Upper bound of the bytes of the record in a response."""
        names = (self.filename, self.filepath, self.file_type)
        texts = (*names, self.extracted_text, self.metadata, self.extra)
        tags = sum(4 * len(tag) + 4 for tag in self.tags)
        return sum(map(_bytes_of, texts)) + tags + _REST


class FileScan(NamedTuple):
    """A range of the order of a list, newest first, to read."""

    limit: int
    """Records at most."""
    after: FilePosition | None = None
    """Start after this position: with older records."""
    tags: tuple[str, ...] = ()
    """All of them must be present."""


class FilePage(NamedTuple):
    """A page of file records."""

    files: list[File]
    more: bool
    """Whether more records follow."""


_REST = 1024
"""Bytes that the id (at most 512), the times, the size and the revision take at most."""


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else 4 * len(text)
