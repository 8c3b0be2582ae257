"""Reader of a legacy table ``files``: a verdict on each row, as on those of ``messages``.

Import, upgrade and inspection use it, so that an import does what the inspection reported.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from sagastore.legacy import FILE_COLUMNS, Problem, RawValue, Text, raw_row_as_json, reason_of
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
        self._name = name
        listed = connection.execute(f"PRAGMA main.table_xinfo({quoted(name)})")
        self._columns = tuple(str(column[1]) for column in listed)
        places = {column.lower(): index for index, column in enumerate(self._columns)}
        self._known = [places.get(column, len(self._columns)) for column in FILE_COLUMNS]
        self._further = [
            place for place, name in enumerate(self._columns) if name.lower() not in FILE_COLUMNS
        ]
        self._rowid = self._rowid_name()

    def verdicts(self) -> Iterator[FileVerdict]:
        """Return the verdict on each row, in the order of the rowids.

        Until the iterator is closed, every query on the connection returns TEXT as
        ``legacy.Text``. Memory use does not depend on the number of rows.
        """
        usual = self._connection.text_factory
        self._connection.text_factory = Text
        # A separate database, because the inspected one is read-only. An empty name means memory
        # that spills to a temporary file.
        with contextlib.closing(sqlite3.connect("", isolation_level=None)) as taken:
            taken.execute("PRAGMA synchronous = OFF")
            taken.execute("CREATE TABLE taken (id TEXT PRIMARY KEY, origin TEXT) WITHOUT ROWID")
            taken.execute("BEGIN")
            try:
                for number, (rowid, *values) in enumerate(self._connection.execute(self._sql()), 1):
                    key = f"files/row={number}" if rowid is None else f"files/rowid={rowid}"
                    yield self._verdict(taken, key, tuple(values))
            finally:
                self._connection.text_factory = usual

    def _verdict(
        self, taken: sqlite3.Connection, key: str, values: tuple[RawValue, ...]
    ) -> FileVerdict:
        padded = (*values, None)
        extra = raw_row_as_json(
            [self._columns[place] for place in self._further],
            [values[place] for place in self._further],
        )
        record, problems = read_file([padded[place] for place in self._known], extra)
        if not any(problem.field == "id" for problem in problems):
            _check_unique(taken, record.id, key, problems)
        return FileVerdict(key, record, problems, raw_row_as_json(self._columns, values))

    def _sql(self) -> str:
        columns = ", ".join([self._rowid or "NULL", *map(quoted, self._columns)])
        order = f" ORDER BY {self._rowid}" if self._rowid else ""
        # NOT INDEXED: read the table itself, because an index may be inconsistent with it.
        return f"SELECT {columns} FROM main.{quoted(self._name)} NOT INDEXED{order}"  # noqa: S608 - quoted

    def _rowid_name(self) -> str | None:
        """Return the name of the rowid; None: the table has none."""
        taken = {column.lower() for column in self._columns}
        for name in ("rowid", "_rowid_", "oid"):
            if name not in taken:
                sql = f"SELECT {name} FROM main.{quoted(self._name)} LIMIT 0"  # noqa: S608 - quoted
                try:
                    self._connection.execute(sql)
                except sqlite3.OperationalError:
                    return None  # WITHOUT ROWID
                return name
        return None


def _check_unique(
    taken: sqlite3.Connection, file_id: str, key: str, problems: list[Problem]
) -> None:
    """Add a problem if an earlier row has the id; else record the id."""
    found = taken.execute("SELECT origin FROM taken WHERE id = ?", (file_id,)).fetchone()
    if found is not None:
        problems.append(Problem("id", f"{file_id!r} is taken by {found[0]}"))
    elif not problems:
        taken.execute("INSERT INTO taken VALUES (?, ?)", (file_id, key))
