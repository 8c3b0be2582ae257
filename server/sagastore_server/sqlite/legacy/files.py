"""Reader of a legacy table ``files``: a verdict on each row, as on those of ``messages``.

Import, upgrade and inspection use it, so that an import does what the inspection reported.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from sagastore.legacy import FILE_COLUMNS, Problem, raw_row_as_json, reason_of
from sagastore.legacy.table import LegacyRow, RowReader, raw_text
from sagastore_server.legacy.rows import read_file
from sagastore_server.sqlite.files import quoted
from sagastore_server.storage.files import File


class FileVerdict(NamedTuple):
    """Result of a row: served if it has no problems, else quarantined."""

    source_key: str
    """Source of the row: ``files/rowid=7``; without rowids, ``files/row=7``."""
    record: File
    """Valid only if there are no problems; its revision is 0."""
    problems: list[Problem]
    raw: str
    """The raw values as JSON."""

    @property
    def reason(self) -> str:
        """Every problem, in one line."""
        return reason_of(self.problems)


class LegacyFiles:
    """A legacy table ``files``, which may have another name during the import."""

    def __init__(self, connection: sqlite3.Connection, name: str = "files") -> None:
        """Read the columns of the table."""
        self._connection = connection
        self._reader = RowReader(connection, name, FILE_COLUMNS)
        self._further = [
            place for place, name in enumerate(self._reader.columns) if name in self._reader.extra
        ]

    def verdicts(self) -> Iterator[FileVerdict]:
        """Return the verdict on each row, in the order of the rowids.

        Until the iterator is closed, every query on the connection returns TEXT as
        ``legacy.Text``. Memory use does not depend on the number of rows.
        """
        # A separate database, because the inspected one is read-only. An empty name means memory
        # that spills to a temporary file.
        with (
            raw_text(self._connection),
            contextlib.closing(sqlite3.connect("", isolation_level=None)) as taken,
        ):
            taken.execute("PRAGMA synchronous = OFF")
            taken.execute("CREATE TABLE taken (id TEXT PRIMARY KEY, origin TEXT) WITHOUT ROWID")
            taken.execute("BEGIN")
            for key, row in self._rows():
                yield self._verdict(taken, key, row)

    def _rows(self) -> Iterator[tuple[str, LegacyRow]]:
        if self._reader.rowid is not None:
            for row in self._reader.each(self._connection):
                yield f"files/rowid={row.rowid}", row
            return
        columns = ", ".join(map(quoted, self._reader.columns))
        # NOT INDEXED: read the table itself, because an index may be inconsistent with it.
        sql = f"SELECT {columns} FROM main.{quoted(self._reader.name)} NOT INDEXED"  # noqa: S608 - quoted
        for number, values in enumerate(self._connection.execute(sql), 1):
            yield f"files/row={number}", LegacyRow(number, values)

    def _verdict(self, taken: sqlite3.Connection, key: str, row: LegacyRow) -> FileVerdict:
        extra = raw_row_as_json(
            [self._reader.columns[place] for place in self._further],
            [row.values[place] for place in self._further],
        )
        record, problems = read_file(self._reader.known(row), extra, row.unreadable)
        if not any(problem.field in {"id", "row"} for problem in problems):
            _check_unique(taken, record.id, key, problems)
        return FileVerdict(key, record, problems, self._reader.raw_json(row))


def _check_unique(
    taken: sqlite3.Connection, file_id: str, key: str, problems: list[Problem]
) -> None:
    """Add a problem if an earlier row has the id; else record the id."""
    found = taken.execute("SELECT origin FROM taken WHERE id = ?", (file_id,)).fetchone()
    if found is not None:
        problems.append(Problem("id", f"{file_id!r} is taken by {found[0]}"))
    elif not problems:
        taken.execute("INSERT INTO taken VALUES (?, ?)", (file_id, key))
