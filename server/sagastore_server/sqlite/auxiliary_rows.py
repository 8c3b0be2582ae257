"""Reader of the auxiliary rows: quarantine, legacy files, and extra values of messages.

It reads page by page, so that no read transaction stays open and memory use is constant.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from sagastore.legacy import Text, raw_row_as_json
from sagastore_server.sqlite.legacy.files import LegacyFiles, SetAside
from sagastore_server.sqlite.queries import QUERIES
from sagastore_server.sqlite.readers import MOST_READ, ReaderPool, Row
from sagastore_server.sqlite.writer import SQLiteGroupWriter
from sagastore_server.storage.auxiliary_rows import AuxiliaryTallier, extra_values, file_values
from sagastore_server.storage.errors import Blocker, PreconditionError
from sagastore_server.storage.replication import AuxiliaryTally, ExtraValue, FileRow, Tally

PAGE_ROWS = 500
PAGE_BYTES = MOST_READ
"""Bytes of values read at once; a single row may be larger."""

_BEFORE_ALL = -(2**63)


class AuxiliaryRowReader:
    """Reads the auxiliary rows of one open store."""

    def __init__(self, readers: ReaderPool) -> None:
        """Read through ``readers``."""
        self._readers = readers
        self._files: LegacyFiles | None = None

    async def files(self, after: int, limit: int) -> list[FileRow]:
        """As ``MigrationSource.files``; fewer than ``limit`` if rows are large."""
        table = await self._table()
        while rows := await self._some(table.by_number, (after, limit)):
            found = [one for row in rows if isinstance(one := table.read(row), FileRow)]
            if found:
                return found
            after = rows[-1][0]
        return []

    async def extras(self, after: tuple[str, str], limit: int) -> list[ExtraValue]:
        """As ``MigrationSource.extras``; fewer than ``limit`` if values are large."""
        rows = await self._some(QUERIES["extras"], (*after, limit))
        return [ExtraValue(key, name, _value_as_json(*value)) for key, name, *value in rows]

    async def carried(self) -> AuxiliaryTally:
        """As ``MigrationSource.carried``."""
        return AuxiliaryTally(
            await _summed(self._quarantine_pages()),
            await _summed(self._file_pages()),
            await _summed(self._extra_pages()),
        )

    async def set_aside_files(self, writer: SQLiteGroupWriter) -> int:
        """As ``MigrationSource.set_aside_files``; ``writer`` writes the rows."""
        table = await self._table()
        count, after = 0, _BEFORE_ALL
        while rows := await self._some(table.by_number, (after, PAGE_ROWS)):
            rejected = [one for row in rows if isinstance(one := table.read(row), SetAside)]
            count += await _insert(writer, rejected)
            after = rows[-1][0]
        if table.has_ids and not await self._value("files_unique_by_id"):
            count += await self._set_aside_repeated(writer, table)
        return count

    async def _set_aside_repeated(self, writer: SQLiteGroupWriter, table: LegacyFiles) -> int:
        count, after = 0, _BEFORE_ALL
        while found := await self._some(table.later_of_an_id, (after, PAGE_ROWS)):
            for number, first in found:
                (row,) = await self._readers.rows(table.one, (number,))
                count += await _insert(writer, [table.repeated(row, first)])
                after = number
        return count

    async def _table(self) -> LegacyFiles:
        if self._files is None:
            if await self._value("files_without_rowid"):
                raise PreconditionError(
                    (
                        Blocker(
                            "FILES_WITHOUT_ROWID",
                            "the table files has no rowid, so its rows cannot be identified; "
                            "stop the server and copy them into a table with a rowid",
                        ),
                    )
                )
            columns = await self._readers.rows(QUERIES["files_columns"])
            self._files = LegacyFiles([name for (name,) in columns])
        return self._files

    async def _quarantine_pages(self) -> AsyncIterator[list[tuple[str | int | None, ...]]]:
        after = _BEFORE_ALL
        while rows := await self._some(QUERIES["quarantine"], (after, PAGE_ROWS)):
            yield [tuple(row) for row in rows]
            after = rows[-1][0]

    async def _file_pages(self) -> AsyncIterator[list[tuple[str | int | None, ...]]]:
        table = await self._table()
        key: tuple[bytes, int] = (b"", _BEFORE_ALL)
        while rows := await self._some(table.by_id, (*key, PAGE_ROWS)):
            found = (table.read(row) for row in rows)
            yield [file_values(one) for one in found if isinstance(one, FileRow)]
            key = table.key(rows[-1])

    async def _extra_pages(self) -> AsyncIterator[list[tuple[str | int | None, ...]]]:
        after = ("", "")
        while rows := await self.extras(after, PAGE_ROWS):
            yield [extra_values(row) for row in rows]
            after = rows[-1].message_id, rows[-1].name

    async def _some(self, sql: str, parameters: Sequence[object]) -> list[Row]:
        return await self._readers.some(sql, parameters, PAGE_BYTES)

    async def _value(self, query: str) -> int:
        rows = await self._readers.rows(QUERIES[query])
        value: int = rows[0][0]
        return value


async def _summed(pages: AsyncIterator[list[tuple[str | int | None, ...]]]) -> Tally:
    tallier = AuxiliaryTallier()
    async for rows in pages:
        await asyncio.to_thread(tallier.add_all, rows)
    return tallier.tally()


async def _insert(writer: SQLiteGroupWriter, rows: Sequence[SetAside]) -> int:
    if not rows:
        return 0
    insert: Callable[[sqlite3.Connection], int] = partial(_insert_now, rows)
    return await writer.run_in_transaction(insert)


def _insert_now(rows: Sequence[SetAside], connection: sqlite3.Connection) -> int:
    return connection.executemany(QUERIES["set_aside"], rows).rowcount


def _value_as_json(kind: str, value: bytes | float | None) -> str:
    raw = Text(value) if kind == "text" and isinstance(value, bytes) else value
    return raw_row_as_json(("value",), (raw,))
