"""The rows of a legacy file, read and made ready to be stored: most of the work of a takeover.

Other processes do it. They read the verified copy by themselves, so that nothing but the
bounds of a batch goes there, and what comes back needs only to be inserted.
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
from sagastore_server.sqlite.legacy.table import LegacyTable, read
from sagastore_server.storage.canonical_json import canonical_tags
from sagastore_server.storage.model import NewMessage

_AHEAD = 3
"""Batches beside those that other processes read, at most."""


class ReadyRow(NamedTuple):
    """A row, read."""

    rowid: int
    id: str
    problems: list[Problem]
    """Why it cannot be served, if it cannot."""
    columns: tuple[object, ...]
    """What ``messages`` holds of it, as far as the row tells; empty where there are problems."""
    terms: FtsColumns | None
    """What the search index holds of it; None where there are problems."""


_Packed = tuple[Any, ...]
"""The fields of a ``ReadyRow``: a class of our own takes several times as long to be sent."""


class ReadyRows:
    """Reads all rows of a table, some batches ahead."""

    def __init__(self, connection: sqlite3.Connection, table: LegacyTable, copy: Path) -> None:
        """Read ``table`` through ``connection``; ``copy`` is a file with the same rows."""
        self._connection = connection
        self._table = table
        self._copy = str(copy)

    def batches(self) -> Iterator[list[ReadyRow]]:
        """Yield the rows in the order of their rowids."""
        worker_pool = WorkerPool()
        ahead: deque[tuple[list[int], Future[list[list[_Packed]]]]] = deque()
        try:
            for rowids in self._table.rowids(self._connection):
                bounds = (self._copy, rowids[0], rowids[-1])
                if sum(not reading.done() for _, reading in ahead) > worker_pool.at_once:
                    # They have enough to do: this one is read here.
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
        """Return what was read of the copy, if its rows have the rowids of the original.

        The copy was found equal in all values; but of the rowids nothing is known there, if
        it is from an earlier attempt.
        """
        (found,) = reading.result()
        if [row[0] for row in found] != rowids:
            found = _read_rows(self._connection, self._table, rowids[0], rowids[-1])
        return list(map(ReadyRow._make, found))


def read_copy(path: str, first: int, last: int) -> list[_Packed]:
    """Read the rows from ``first`` to ``last`` of the legacy file at ``path``.

    Nobody may write to it.
    """
    with contextlib.closing(connect(Path(path), "mode=ro&immutable=1")) as connection:
        return _read_rows(connection, LegacyTable(connection), first, last)


def _read_rows(
    connection: sqlite3.Connection, table: LegacyTable, first: int, last: int
) -> list[_Packed]:
    found: list[_Packed] = []
    for row in table.between(connection, first, last):
        draft, created_at, problems = read(table.known(row))
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
