"""Reader of the legacy table ``messages``: columns, rows in order, and a verdict on each row.

Inspection, takeover and import use it, so they find the same rows and the same reasons.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from sagastore.legacy.database import VIRTUAL_COLUMN, concerns_one_row, one_line, quoted
from sagastore.legacy.judge import judge_row, reason_of
from sagastore.legacy.values import (
    COLUMNS,
    OPTIONAL,
    LegacyMessage,
    Problem,
    RawValue,
    Text,
    raw_row_as_json,
)

__all__ = [
    "BATCH",
    "BATCH_BYTES",
    "LegacyRow",
    "LegacyTable",
    "LegacyTableError",
    "RowJudge",
    "RowReader",
    "RowVerdict",
    "raw_text",
    "source_key",
]

BATCH = 1000
"""Maximum rows of a batch."""

BATCH_BYTES = 4 * 1024 * 1024
"""Bytes of text and blobs after which a batch is complete."""

_ROWID_NAMES = ("rowid", "_rowid_", "oid")
"""Names of the rowid; a column of the same name hides it (sqlite.org/rowidtable.html)."""


class LegacyTableError(ValueError):
    """The table cannot be read; the text says why and what to do, as a predicate of the file."""


class LegacyRow(NamedTuple):
    """A row with its raw values."""

    rowid: int
    values: tuple[RawValue, ...]
    """In the order of ``LegacyTable.columns``; None for a column that could not be read."""
    unreadable: tuple[Problem, ...] = ()
    """Problems of the columns that could not be read."""


class RowVerdict(NamedTuple):
    """Result of a row: served if it has no problems, else quarantined or rejected."""

    row: LegacyRow
    message: LegacyMessage
    """Valid only if there are no problems; its metadata is canonical."""
    problems: list[Problem]

    @property
    def source_key(self) -> str:
        """Source of the row."""
        return source_key(self.row.rowid)

    @property
    def reason(self) -> str:
        """Every problem, in one line."""
        return reason_of(self.problems)


def source_key(rowid: int) -> str:
    """Return the identifier of a row in quarantine, inspection and rejects."""
    return f"messages/rowid={rowid}"


@contextlib.contextmanager
def raw_text(connection: sqlite3.Connection) -> Iterator[None]:
    """Let every query on ``connection`` return TEXT as `Text` for the duration of the block."""
    usual = connection.text_factory
    connection.text_factory = Text
    try:
        yield
    finally:
        connection.text_factory = usual


class RowReader:
    """Columns and rows of a table; a row or a column that SQLite cannot return fails alone.

    Attributes:
        name: Name of the table.
        columns: All columns, generated ones included.
        extra: The columns that are not known.
        rowid: The SQL name of the rowid; None if the table has none, or if columns hide it.
    """

    def __init__(
        self, connection: sqlite3.Connection, name: str, known: Sequence[str] = COLUMNS
    ) -> None:
        """Read the columns of the table ``name``; ``known`` is the order of ``known``."""
        self.name = name
        # Not table_info, which omits generated columns.
        listed = connection.execute(f"PRAGMA main.table_xinfo({quoted(name)})").fetchall()
        self.columns: tuple[str, ...] = tuple(column[1] for column in listed)
        self._computed = frozenset(column[1] for column in listed if column[6] == VIRTUAL_COLUMN)
        self._places = {column.lower(): index for index, column in enumerate(self.columns)}
        self._names = frozenset(known)
        self.extra = tuple(column for column in self.columns if column.lower() not in self._names)
        # A missing column has index -1: the NULL that `known` appends to the values.
        self._known = itemgetter(*(self._places.get(column, -1) for column in known))
        self.rowid = self._rowid_name(connection, listed)

    def known(self, row: LegacyRow) -> tuple[RawValue, ...]:
        """Return the row's values in the order of the known columns."""
        values: tuple[RawValue, ...] = self._known((*row.values, None))
        return values

    def raw_json(self, row: LegacyRow) -> str:
        """Return all values of the row as JSON, without loss."""
        return raw_row_as_json(self.columns, row.values)

    def each(self, connection: sqlite3.Connection) -> Iterator[LegacyRow]:
        """Read all rows by rowid, with TEXT as the connection returns it; see `raw_text`."""
        sql = self._select(*map(quoted, self.columns), where=f"{self.rowid} > ?")
        # The smallest rowid has no integer before it.
        after: float = float("-inf")
        while True:
            try:
                for rowid, *values in connection.execute(sql, (after,)):
                    after = rowid
                    yield LegacyRow(rowid, tuple(values))
                return
            except sqlite3.Error as exc:
                if not concerns_one_row(exc):
                    raise
            following = self._select(where=f"{self.rowid} > ?") + " LIMIT 1"
            found = connection.execute(following, (after,)).fetchone()
            if found is None:
                return
            after = found[0]
            yield self._row(connection, found[0])

    def _row(self, connection: sqlite3.Connection, rowid: int) -> LegacyRow:
        """Read one row column by column, so that a column that fails fails alone."""
        values: list[Any] = []
        problems: list[Problem] = []
        for column in self.columns:
            sql = self._select(quoted(column), where=f"{self.rowid} = ?")
            try:
                values.append(connection.execute(sql, (rowid,)).fetchone()[1])
            except sqlite3.Error as exc:
                if not concerns_one_row(exc):
                    raise
                values.append(None)
                field = column.lower() if column.lower() in self._names else column
                problems.append(Problem(field, self._why(column, exc)))
        return LegacyRow(rowid, tuple(values), tuple(problems))

    def _why(self, column: str, error: sqlite3.Error) -> str:
        if column in self._computed:
            return f"is a generated column that SQLite cannot compute ({one_line(str(error))})"
        return f"cannot be read ({one_line(str(error))})"

    def _source(self) -> str:
        # NOT INDEXED: read the table itself, because an index may be inconsistent with it.
        return f"main.{quoted(self.name)} NOT INDEXED"

    def _select(self, *what: str, where: str = "1") -> str:
        return (
            f"SELECT {', '.join([str(self.rowid), *what])} FROM {self._source()}"  # noqa: S608 - quoted
            f" WHERE {where} ORDER BY {self.rowid}"
        )

    def _rowid_name(
        self, connection: sqlite3.Connection, listed: list[tuple[Any, ...]]
    ) -> str | None:
        free = [name for name in _ROWID_NAMES if name not in self._places]
        for name in free or self._rowid_column(connection, listed):
            try:
                connection.execute(f"SELECT {name} FROM {self._source()} LIMIT 0")  # noqa: S608 - quoted
            except sqlite3.OperationalError:
                return None  # WITHOUT ROWID
            return name
        return None

    def _rowid_column(
        self, connection: sqlite3.Connection, listed: list[tuple[Any, ...]]
    ) -> list[str]:
        """Return the INTEGER PRIMARY KEY, which is the rowid by another name, if there is one."""
        keys = [column for column in listed if column[5]]
        if len(keys) != 1 or str(keys[0][2]).upper() != "INTEGER":
            return []
        # Any other primary key, such as one that is descending, has an index.
        indexes = connection.execute(f"PRAGMA main.index_list({quoted(self.name)})")
        return [] if any(index[3] == "pk" for index in indexes) else [quoted(keys[0][1])]


class LegacyTable(RowReader):
    """A legacy ``messages`` table, which may have another name during a takeover.

    Attributes:
        missing: The optional columns that the table lacks; they are read as NULL.
    """

    def __init__(self, connection: sqlite3.Connection, name: str = "messages") -> None:
        """Read the columns of the table.

        Raises:
            LegacyTableError: Its rowid cannot be read.

        """
        super().__init__(connection, name)
        self.missing = tuple(column for column in OPTIONAL if column not in self._places)
        if self.rowid is not None:
            return
        if all(hidden in self._places for hidden in _ROWID_NAMES):
            raise LegacyTableError(
                "its table messages has columns named rowid, _rowid_ and oid, which hide the rowid,"
                " so its rows cannot be identified; rename one of them"
                " (ALTER TABLE messages RENAME COLUMN oid TO oid_)"
            )
        raise LegacyTableError(
            "its table messages has no rowid, so its rows cannot be identified; "
            "copy them into a table with a rowid (CREATE TABLE messages_copy AS SELECT * FROM"
            " messages; DROP TABLE messages; ALTER TABLE messages_copy RENAME TO messages)"
        )

    def count(self, connection: sqlite3.Connection, first: int | None = None) -> int:
        """Return the number of rows, from the rowid ``first`` on."""
        where = "1" if first is None else f"{self.rowid} >= {first:d}"
        sql = f"SELECT count(*) FROM {self._source()} WHERE {where}"  # noqa: S608 - quoted
        return int(connection.execute(sql).fetchone()[0])

    def rows(self, connection: sqlite3.Connection) -> Iterator[list[LegacyRow]]:
        """Read all rows by rowid, in batches.

        Until the iterator is closed, every query on ``connection`` returns TEXT as
        ``legacy.Text``.
        """
        batch: list[LegacyRow] = []
        size = 0
        with raw_text(connection):
            for row in self.each(connection):
                batch.append(row)
                size += sum(len(value) for value in row.values if isinstance(value, bytes))
                if len(batch) == BATCH or size >= BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
            if batch:
                yield batch

    def rowids(self, connection: sqlite3.Connection) -> Iterator[list[int]]:
        """Return the rowids of all rows in order, in batches as large as those of ``rows``."""
        # The cast makes length count bytes for every type. Computing a generated column can fail.
        stored = [column for column in self.columns if column not in self._computed]
        sizes = [f"coalesce(length(CAST({quoted(column)} AS BLOB)), 0)" for column in stored]
        batch: list[int] = []
        size = 0
        for rowid, length in connection.execute(self._select(" + ".join(sizes) or "0")):
            batch.append(rowid)
            size += length
            if len(batch) == BATCH or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def between(self, connection: sqlite3.Connection, first: int, last: int) -> list[LegacyRow]:
        """Return the rows with rowids from ``first`` to ``last``, in order."""
        return self._fetch(connection, f"{self.rowid} BETWEEN ? AND ?", (first, last))

    def page(self, connection: sqlite3.Connection, first: int, limit: int) -> list[LegacyRow]:
        """Return up to ``limit`` rows from the rowid ``first`` on, in order."""
        return self._fetch(connection, f"{self.rowid} >= ?", (first,), limit)

    def _fetch(
        self,
        connection: sqlite3.Connection,
        where: str,
        parameters: Sequence[int],
        limit: int = -1,
    ) -> list[LegacyRow]:
        limited = f" LIMIT {limit:d}"
        with raw_text(connection):
            try:
                sql = self._select(*map(quoted, self.columns), where=where) + limited
                rows = connection.execute(sql, parameters).fetchall()
                return [LegacyRow(rowid, tuple(values)) for rowid, *values in rows]
            except sqlite3.Error as exc:
                if not concerns_one_row(exc):
                    raise
            found = connection.execute(self._select(where=where) + limited, parameters).fetchall()
            return [self._row(connection, rowid) for (rowid,) in found]

    def ids_may_collide(self, connection: sqlite3.Connection) -> bool:
        """Return whether two rows may have ids that become the same text.

        They cannot if the column has a unique index and all ids are TEXT.
        """
        if not any(
            self._is_unique_by_id(connection, index[1])
            for index in connection.execute(f"PRAGMA main.index_list({quoted(self.name)})")
            if index[2] and not index[4]
        ):
            return True
        sql = (
            f"SELECT 1 FROM {self._source()}"  # noqa: S608 - quoted
            " WHERE typeof(id) NOT IN ('text', 'null') LIMIT 1"
        )
        try:
            return connection.execute(sql).fetchone() is not None
        except sqlite3.Error as exc:
            if not concerns_one_row(exc):
                raise
            return True  # A generated id that cannot be computed in some row.

    def _is_unique_by_id(self, connection: sqlite3.Connection, index: str) -> bool:
        described = connection.execute(f"PRAGMA main.index_xinfo({quoted(index)})")
        keys = [(row[2], row[4]) for row in described if row[5]]
        return [(str(name).lower(), coll) for name, coll in keys] == [("id", "BINARY")]


class RowJudge:
    """Judges rows one by one, in the order of their rowids, and detects duplicate ids."""

    def __init__(self, table: LegacyTable, connection: sqlite3.Connection) -> None:
        """Create a judge of the rows of ``table``, which ``connection`` reads."""
        self._table = table
        # A separate database, because the inspected one is read-only. An empty name means memory
        # that spills to a temporary file.
        self._taken = None
        if table.ids_may_collide(connection):
            # An import reads in another thread than the one that opens the file.
            self._taken = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            self._taken.execute("PRAGMA synchronous = OFF")
            self._taken.execute(
                "CREATE TABLE taken (id TEXT PRIMARY KEY, origin INTEGER) WITHOUT ROWID"
            )
            self._taken.execute("BEGIN")

    @property
    def needs_all_rows(self) -> bool:
        """True if the verdict on a row depends on the rows before it."""
        return self._taken is not None

    def close(self) -> None:
        """Discard the recorded ids."""
        if self._taken is not None:
            self._taken.close()

    def verdict(self, row: LegacyRow) -> RowVerdict:
        """Return the verdict on a row, and record its id if it has no problems."""
        message, problems = judge_row(self._table.known(row), row.unreadable)
        self.check_unique_id(message.id, row.rowid, problems)
        return RowVerdict(row, message, problems)

    def check_unique_id(self, message_id: str, rowid: int, problems: list[Problem]) -> None:
        """Add a problem if an earlier row has the id; else record the id."""
        if self._taken is not None:
            self._check_id(self._taken, message_id, rowid, problems)

    def _check_id(
        self, taken: sqlite3.Connection, message_id: str, rowid: int, problems: list[Problem]
    ) -> None:
        if any(problem.field in {"id", "row"} for problem in problems):
            return
        found = taken.execute("SELECT origin FROM taken WHERE id = ?", (message_id,)).fetchone()
        if found is not None:
            problems.append(Problem("id", f"{message_id!r} is taken by rowid {found[0]}"))
        elif not problems:
            taken.execute("INSERT INTO taken VALUES (?, ?)", (message_id, rowid))
