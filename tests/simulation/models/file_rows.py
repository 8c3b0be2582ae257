"""Rows of file records in the models: stored by a transaction, and read."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from sagastore_server.storage.errors import FileRecordNotFoundError
from sagastore_server.storage.file_base import FileRows
from sagastore_server.storage.file_changes import FileChanges
from sagastore_server.storage.file_writes import FileWrites
from sagastore_server.storage.files import File, FilePage, FileScan
from sagastore_server.storage.limits import file_page_of

T = TypeVar("T")


def store_files(files: dict[str, File], buried: dict[str, int], changes: FileChanges) -> None:
    """Store the file records and tombstones of a transaction."""
    for key, record in changes.after.items():
        if record is None:
            files.pop(key, None)
        else:
            files[key] = record
    buried.update(changes.buried)


def files_listed(files: Mapping[str, File], scan: FileScan) -> FilePage:
    """Return a page of the records, newest first."""
    found = [one for one in files.values() if set(scan.tags) <= set(one.tags)]
    found.sort(key=lambda one: (one.uploaded_at, one.id.encode()), reverse=True)
    if scan.after is not None:
        after = (scan.after.uploaded_at, scan.after.id.encode())
        found = [one for one in found if (one.uploaded_at, one.id.encode()) < after]
    return file_page_of(found, scan.limit)


def files_between(files: Mapping[str, File], after: str, upto: str, limit: int) -> FilePage:
    """Return a page of the records with ``after < id <= upto``, ordered by id."""
    # Python compares strings by code point, which is the order of their UTF-8 bytes.
    return file_page_of((files[key] for key in sorted(files) if after < key <= upto), limit)


class ModelFiles(FileWrites, FileRows):
    """Reads of file records at one instant within the call."""

    @abc.abstractmethod
    async def _look_at_files(self, look: Callable[[Mapping[str, File]], T]) -> T:
        """Call ``look`` at one instant; its result must keep no reference to the rows."""

    async def get_file(self, file_id: str) -> File:
        """See the contract."""
        found = await self._look_at_files(lambda rows: rows.get(file_id))
        if found is None:
            raise FileRecordNotFoundError(file_id)
        return found

    async def list_files(self, scan: FileScan) -> FilePage:
        """See the contract."""
        return await self._look_at_files(lambda rows: files_listed(rows, scan))

    async def files_by_id(self, file_ids: Sequence[str]) -> dict[str, File]:
        """See ``FileRows``."""
        return await self._look_at_files(
            lambda rows: {key: rows[key] for key in file_ids if key in rows}
        )

    async def scan_files(self, after: str, upto: str, limit: int) -> FilePage:
        """See ``FileRows``."""
        return await self._look_at_files(lambda rows: files_between(rows, after, upto, limit))

    async def last_file(self) -> str | None:
        """See ``FileRows``."""
        return await self._look_at_files(lambda rows: max(rows, default=None))

    async def count_files(self) -> int:
        """See ``FileRows``."""
        return await self._look_at_files(len)
