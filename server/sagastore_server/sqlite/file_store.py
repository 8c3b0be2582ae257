"""SQLiteFiles: the file records of a store on one SQLite file."""

from __future__ import annotations

import abc
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from sagastore_server.sqlite.connection import file_from_row
from sagastore_server.sqlite.queries import QUERIES
from sagastore_server.sqlite.readers import ReaderPool
from sagastore_server.sqlite.writer import SQLiteGroupWriter
from sagastore_server.storage.canonical_json import canonical_tags
from sagastore_server.storage.changes import Changes
from sagastore_server.storage.errors import FileRecordNotFoundError
from sagastore_server.storage.file_base import FileRows
from sagastore_server.storage.file_writes import FileWrites
from sagastore_server.storage.files import File, FilePage, FilePosition, FileScan
from sagastore_server.storage.validation import MAX_TIMESTAMP

_NEWEST = FilePosition(MAX_TIMESTAMP + 1, "")

T = TypeVar("T")


class SQLiteFiles(FileWrites, FileRows):
    """Implements ``FileBackend`` and ``FileRows``."""

    _readers: ReaderPool

    @abc.abstractmethod
    def _open_writer(self) -> SQLiteGroupWriter:
        """Return the writer of the open store."""

    async def _change_files(self, file_ids: Sequence[str], apply: Callable[[Changes], T]) -> T:
        return await self._open_writer().submit((), (), apply, files=file_ids)

    async def get_file(self, file_id: str) -> File:
        """See the contract."""
        found = (await self.files_by_id([file_id])).get(file_id)
        if found is None:
            raise FileRecordNotFoundError(file_id)
        return found

    async def list_files(self, scan: FileScan) -> FilePage:
        """See the contract: a page costs the records up to its end."""
        parameters = (*(scan.after or _NEWEST), canonical_tags(scan.tags))
        return await self._readers.file_page(QUERIES["list_files"], parameters, scan.limit)

    async def files_by_id(self, file_ids: Sequence[str]) -> dict[str, File]:
        """See ``FileRows``."""
        wanted = json.dumps(list(file_ids), ensure_ascii=False)
        rows = await self._readers.rows(QUERIES["files_by_id"], (wanted,))
        return {row[0]: file_from_row(row) for row in rows}

    async def scan_files(self, after: str, upto: str, limit: int) -> FilePage:
        """See ``FileRows``."""
        return await self._readers.file_page(QUERIES["scan_files"], (after, upto), limit)

    async def last_file(self) -> str | None:
        """See ``FileRows``."""
        last: str | None = (await self._readers.rows(QUERIES["last_file"]))[0][0]
        return last

    async def count_files(self) -> int:
        """See ``FileRows``."""
        count: int = (await self._readers.rows(QUERIES["count_files"]))[0][0]
        return count
