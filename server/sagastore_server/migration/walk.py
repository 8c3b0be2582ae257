"""Walk: scans both stores of a migration by key, one range of keys at a time."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from sagastore_server.migration.records import Records, ReplicatedStore, Row
from sagastore_server.runtime.supervisor import awaited
from sagastore_server.storage.replication import MigrationSource, MigrationTarget

T = TypeVar("T")


class Reader(Protocol):
    """Repeats a call until it is answered."""

    async def read(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the answer of ``call``."""


class Pair(NamedTuple):
    """The row of a key in both stores."""

    key: str
    truth: Row | None
    copy: Row | None


class Walk:
    """Scans both stores by key."""

    def __init__(
        self,
        stores: Reader,
        source: MigrationSource,
        target: MigrationTarget,
        records: Records,
        page: int,
    ) -> None:
        """Prepare to scan ``records``, ``page`` rows of each store at once."""
        self._stores = stores
        self._truth = _Side(source, records, page)
        self._copy = _Side(target, records, page)
        self._sides = (self._truth, self._copy)

    async def begin(self) -> None:
        """Determine the last key to scan; rows with greater keys are newer, and in the journal."""
        lasts = [await self._stores.read(side.last) for side in self._sides]
        upto = max((last for last in lasts if last is not None), default=None)
        for side in self._sides:
            side.upto = upto or ""
            side.read_all = upto is None

    @property
    def ended(self) -> bool:
        """Whether the scan is complete."""
        return all(side.read_all and not side.rows for side in self._sides)

    async def window(self) -> list[Pair]:
        """Return the next rows, paired by key."""
        fills = [awaited(self._stores.read(side.fill)) for side in self._sides]
        try:
            await asyncio.gather(*fills)
        finally:
            for fill in fills:
                fill.cancel()
        bound = min(side.bound for side in self._sides)
        truths, copies = self._truth.take(bound), self._copy.take(bound)
        pairs = [Pair(key, row, copies.pop(key, None)) for key, row in truths.items()]
        return [*pairs, *(Pair(key, None, row) for key, row in copies.items())]


class _Side:
    """The rows read from one store."""

    def __init__(self, store: ReplicatedStore, records: Records, page: int) -> None:
        self._store = store
        self._records = records
        self._page = page
        self.upto = ""
        self.rows: Sequence[Row] = ()
        """Rows read and not taken yet."""
        self.read_all = False
        self._after: str | None = None

    async def last(self) -> str | None:
        """Return the greatest key of the store."""
        return await self._records.last(self._store)

    async def fill(self) -> None:
        """Read the next page if no row is left."""
        if self.rows or self.read_all:
            return
        rows, more = await self._records.scan(self._store, self._after, self.upto, self._page)
        self.rows = rows
        self.read_all = not (more and rows)
        if rows:
            self._after = self._records.key(rows[-1])

    @property
    def bound(self) -> str:
        """The key up to which the store has been read completely."""
        return self.upto if self.read_all else self._records.key(self.rows[-1])

    def take(self, bound: str) -> dict[str, Row]:
        """Remove and return the rows up to a key."""
        # Python compares strings by code points: the order of their UTF-8 bytes.
        end = bisect_right(self.rows, bound, key=self._records.key)
        taken = {self._records.key(row): row for row in self.rows[:end]}
        self.rows = self.rows[end:]
        return taken
