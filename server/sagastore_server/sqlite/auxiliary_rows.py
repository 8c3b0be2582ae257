"""Reader of the auxiliary rows: quarantine, and extra values of messages.

It reads page by page, so that no read transaction stays open and memory use is constant.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from sagastore.legacy import Text, raw_row_as_json
from sagastore_server.sqlite.queries import QUERIES
from sagastore_server.sqlite.readers import MOST_READ, ReaderPool, Row
from sagastore_server.storage.auxiliary_rows import AuxiliaryTallier, extra_values
from sagastore_server.storage.replication import AuxiliaryTally, ExtraValue, Tally

PAGE_ROWS = 500
PAGE_BYTES = MOST_READ
"""Bytes of values read at once; a single row may be larger."""

_BEFORE_ALL = -(2**63)


class AuxiliaryRowReader:
    """Reads the auxiliary rows of one open store."""

    def __init__(self, readers: ReaderPool) -> None:
        """Read through ``readers``."""
        self._readers = readers

    async def extras(self, after: tuple[str, str], limit: int) -> list[ExtraValue]:
        """As ``MigrationSource.extras``; fewer than ``limit`` if values are large."""
        rows = await self._some(QUERIES["extras"], (*after, limit))
        return [ExtraValue(key, name, _value_as_json(*value)) for key, name, *value in rows]

    async def carried(self) -> AuxiliaryTally:
        """As ``MigrationSource.carried``."""
        return AuxiliaryTally(
            await _summed(self._quarantine_pages()),
            await _summed(self._extra_pages()),
        )

    async def _quarantine_pages(self) -> AsyncIterator[list[tuple[str | int | None, ...]]]:
        after = _BEFORE_ALL
        while rows := await self._some(QUERIES["quarantine"], (after, PAGE_ROWS)):
            yield [tuple(row) for row in rows]
            after = rows[-1][0]

    async def _extra_pages(self) -> AsyncIterator[list[tuple[str | int | None, ...]]]:
        after = ("", "")
        while rows := await self.extras(after, PAGE_ROWS):
            yield [extra_values(row) for row in rows]
            after = rows[-1].message_id, rows[-1].name

    async def _some(self, sql: str, parameters: Sequence[object]) -> list[Row]:
        return await self._readers.some(sql, parameters, PAGE_BYTES)


async def _summed(pages: AsyncIterator[list[tuple[str | int | None, ...]]]) -> Tally:
    tallier = AuxiliaryTallier()
    async for rows in pages:
        await asyncio.to_thread(tallier.add_all, rows)
    return tallier.tally()


def _value_as_json(kind: str, value: bytes | float | None) -> str:
    raw = Text(value) if kind == "text" and isinstance(value, bytes) else value
    return raw_row_as_json(("value",), (raw,))
