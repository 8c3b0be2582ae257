"""Parallel reader of the rows of a legacy file: converts them in worker processes.

This is most of the work of an import. The workers read the verified copy, so a request contains
only the bounds of a batch, and a result only needs to be inserted.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from sagastore.legacy import Problem
from sagastore_server.runtime.worker_pool import WorkerPool
from sagastore_server.sqlite.files import connect
from sagastore_server.sqlite.index_terms import FtsColumns, indexed_columns
from sagastore_server.sqlite.legacy.table import LegacyTable
from sagastore_server.storage.canonical_json import canonical_tags
from sagastore_server.storage.model import NewMessage

_AHEAD = 3
"""Batches buffered beyond those that the workers are reading."""


class ReadyRow(NamedTuple):
    """A converted row."""

    rowid: int
    id: str
    problems: list[Problem]
    """Why it cannot be served; empty if it can."""
    columns: tuple[object, ...]
    """Its values for ``messages``, without number and revision; empty if there are problems."""
    terms: FtsColumns | None
    """Its values for the search index; None if there are problems."""


_Packed = tuple[Any, ...]
"""The fields of a ``ReadyRow``. Pickling the class takes several times as long as a tuple."""


class ReadyRows:
    """Reads all rows of a table, some batches in advance."""

    def __init__(self, connection: sqlite3.Connection, table: LegacyTable, copy: Path) -> None:
        """Create a reader of ``table``; ``copy`` is a file with the same rows."""
        self._connection = connection
        self._table = table
        self._copy = str(copy)

    def batches(self) -> Iterator[list[ReadyRow]]:
        """Yield the rows in batches, in the order of their rowids."""
        worker_pool = WorkerPool()
        ahead: deque[tuple[list[int], Future[list[list[_Packed]]]]] = deque()
        try:
            for rowids in self._table.rowids(self._connection):
                bounds = (self._copy, rowids[0], rowids[-1])
                if sum(not reading.done() for _, reading in ahead) > worker_pool.at_once:
                    # All workers are busy: read this batch here.
                    reading = Future[list[list[_Packed]]]()
                    reading.set_result([read_copy(*bounds)])
                else:
                    reading = worker_pool.submit(read_copy, [bounds], texts=len(rowids))
                ahead.append((rowids, reading))
                while ahead and (ahead[0][1].done() or len(ahead) > worker_pool.at_once + _AHEAD):
                    yield self._checked(*ahead.popleft())
            while ahead:
                yield self._checked(*ahead.popleft())
        finally:
            worker_pool.end()

    def _checked(self, rowids: list[int], reading: Future[list[list[_Packed]]]) -> list[ReadyRow]:
        """Return the rows of the copy if their rowids equal those of the original.

        The verification compared all values but no rowids, and a copy of an earlier attempt may
        have others. Then the rows are read from the original.
        """
        (found,) = reading.result()
        if [row[0] for row in found] != rowids:
            found = _read_rows(self._connection, self._table, rowids[0], rowids[-1])
        return list(map(ReadyRow._make, found))


def read_copy(path: str, first: int, last: int) -> list[_Packed]:
    """Read the rows from ``first`` to ``last`` of a legacy file that no program writes to."""
    with contextlib.closing(connect(Path(path), "mode=ro&immutable=1")) as connection:
        return _read_rows(connection, LegacyTable(connection), first, last)


def _read_rows(
    connection: sqlite3.Connection, table: LegacyTable, first: int, last: int
) -> list[_Packed]:
    found: list[_Packed] = []
    for row in table.between(connection, first, last):
        draft, created_at, problems = table.read(row)
        if problems:
            found.append((row.rowid, draft.id, problems, (), None))
        else:
            columns = _columns(draft, created_at)
            found.append((row.rowid, draft.id, problems, columns, indexed_columns(draft)))
    return found


def _columns(draft: NewMessage, created_at: int | None) -> tuple[object, ...]:
    return (
        *(draft.id, draft.provider, draft.role, draft.content, canonical_tags(draft.tags)),
        *(draft.timestamp, draft.metadata, draft.session_id, created_at),
    )
