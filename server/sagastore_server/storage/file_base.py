"""FileBackend: the part of the storage contract that is about file records.

The guarantees of ``StorageBackend`` hold here too. Revisions come from the counter that messages
and sessions use.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

from sagastore_server.storage.files import File, FilePage, FileScan, NewFile
from sagastore_server.storage.model import SaveResult


class FileBackend(abc.ABC):
    """Reads and changes file records."""

    @abc.abstractmethod
    async def save_file(
        self,
        draft: NewFile,
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> SaveResult:
        """Store a file record; idempotent by id, as ``StorageBackend.save`` is.

        ``created_at`` and ``extra`` of a stored record stay.

        Args:
            draft: The record.
            if_revision: 0 requires the id to be new; another value must be the stored revision.
            everywhere_within: As in ``StorageBackend.save``.

        Raises:
            UnavailableError: Also as in ``StorageBackend.save``.
            FileRecordExistsError: ``if_revision`` is 0 and the id exists.
            FileRevisionMismatchError: ``if_revision`` is not the stored revision.

        """

    @abc.abstractmethod
    async def get_file(self, file_id: str) -> File:
        """Return a file record.

        Raises:
            FileRecordNotFoundError: No record has the id.

        """

    @abc.abstractmethod
    async def list_files(self, scan: FileScan) -> FilePage:
        """Return a page of file records, newest first (``File.position``).

        The page has at most ``scan.limit`` records, and at most as many as fit into one response
        (see ``limits``), but at least one if any match.
        """

    @abc.abstractmethod
    async def delete_file(self, file_id: str, if_revision: int | None = None) -> None:
        """Delete a file record. The id may be saved again; its revision keeps growing.

        Raises:
            FileRecordNotFoundError: No record has the id.
            FileRevisionMismatchError: ``if_revision`` is not the stored revision.

        """


class FileRows(abc.ABC):
    """Access to the rows of file records by id."""

    @abc.abstractmethod
    async def files_by_id(self, file_ids: Sequence[str]) -> dict[str, File]:
        """Return up to 1000 rows by id; ids without a row are omitted."""

    @abc.abstractmethod
    async def scan_files(self, after: str, upto: str, limit: int) -> FilePage:
        """Return a page of rows with ``after < id <= upto``, ordered by id.

        The size of the page is limited as for ``list_files``.
        """

    @abc.abstractmethod
    async def last_file(self) -> str | None:
        """Return the greatest id; None if there is no row."""

    @abc.abstractmethod
    async def count_files(self) -> int:
        """Return the exact number of rows."""
