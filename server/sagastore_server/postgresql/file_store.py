"""PostgreSQLFiles: the file records of a PostgreSQL database."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import TypeVar

from sagastore_server.postgresql.errors import translating
from sagastore_server.postgresql.files import file_from_row
from sagastore_server.postgresql.pool import Pool
from sagastore_server.postgresql.queries import QUERIES
from sagastore_server.postgresql.reads import PostgreSQLReads
from sagastore_server.postgresql.writer import PostgreSQLGroupWriter
from sagastore_server.storage.canonical_json import canonical_tags
from sagastore_server.storage.changes import Changes
from sagastore_server.storage.errors import FileRecordNotFoundError
from sagastore_server.storage.file_base import FileRows
from sagastore_server.storage.file_writes import FileWrites
from sagastore_server.storage.files import File, FilePage, FilePosition, FileScan
from sagastore_server.storage.limits import MAX_PAGE_BYTES, file_page_of
from sagastore_server.storage.validation import MAX_TIMESTAMP, MIN_TIMESTAMP

_NEWEST = FilePosition(MAX_TIMESTAMP + 1, "")

T = TypeVar("T")


class PostgreSQLFiles(FileWrites, FileRows):
    """Implements ``FileBackend`` and ``FileRows``."""

    _pool: Pool
    _reads: PostgreSQLReads

    @abc.abstractmethod
    def _open_writer(self) -> PostgreSQLGroupWriter:
        """Return the writer of the open store."""

    async def _change_files(self, file_ids: Sequence[str], apply: Callable[[Changes], T]) -> T:
        writer = self._open_writer()
        with translating():
            return await writer.submit((), (), apply, {}, file_ids)

    async def get_file(self, file_id: str) -> File:
        """See the contract."""
        rows = await self._reads.rows(QUERIES["files_by_id"], [file_id])
        if not rows:
            raise FileRecordNotFoundError(file_id)
        return file_from_row(rows[0])

    async def list_files(self, scan: FileScan) -> FilePage:
        """See the contract: a page costs the records up to its end."""
        uploaded_at, file_id = scan.after or _NEWEST
        at = min(max(uploaded_at, MIN_TIMESTAMP - 1), MAX_TIMESTAMP + 1)
        bounds = (scan.limit + 1, MAX_PAGE_BYTES)
        rows = await self._reads.rows(
            QUERIES["list_files"], at, file_id, canonical_tags(scan.tags), *bounds
        )
        return file_page_of(map(file_from_row, rows), scan.limit)

    async def files_by_id(self, file_ids: Sequence[str]) -> dict[str, File]:
        """See ``FileRows``."""
        rows = await self._pool.rows(QUERIES["files_by_id"], list(file_ids))
        return {row[0]: file_from_row(row) for row in rows}

    async def scan_files(self, after: str, upto: str, limit: int) -> FilePage:
        """See ``FileRows``."""
        arguments = (after, upto, limit + 1, MAX_PAGE_BYTES)
        rows = await self._pool.rows(QUERIES["scan_files"], *arguments)
        return file_page_of(map(file_from_row, rows), limit)

    async def last_file(self) -> str | None:
        """See ``FileRows``."""
        last: str | None = await self._pool.value(QUERIES["last_file"])
        return last

    async def count_files(self) -> int:
        """See ``FileRows``."""
        count: int = await self._pool.value(QUERIES["count_files"])
        return count
