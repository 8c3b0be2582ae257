"""Reader of the legacy table ``messages``: columns, rows in order, and a verdict on each row.

Import and inspection both use it, so that an import does what the inspection reported.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple

from sagastore.legacy import (
    COLUMNS,
    OPTIONAL,
    Problem,
    RawValue,
    Text,
    raw_row_as_json,
    read_row,
)
from sagastore_server.legacy.rows import add_violations, reason_of
from sagastore_server.sqlite.files import quoted
from sagastore_server.storage.errors import CannotOpenError
from sagastore_server.storage.model import NewMessage
from sagastore_server.storage.validation import Violations

BATCH = 1000
"""Maximum rows of a batch."""

BATCH_BYTES = 4 * 1024 * 1024
"""Bytes of text and blobs after which a batch is complete."""


class LegacyRow(NamedTuple):
    """A row with its raw values."""

    rowid: int
    values: tuple[RawValue, ...]
    """In the order of ``LegacyTable.columns``."""


class Reading(NamedTuple):
    """A converted row, without regard to other rows."""

    draft: NewMessage
    """Valid only if there are no problems."""
    created_at: int | None
    problems: list[Problem]


class RowVerdict(NamedTuple):
    """Result of a row: served if it has no problems, else quarantined."""

    row: LegacyRow
    draft: NewMessage
    """Valid only if there are no problems."""
    created_at: int | None
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
    """Return the identifier of a row in quarantine."""
    return f"messages/rowid={rowid}"


class LegacyTable:
    """A legacy ``messages`` table, which may have another name during the import."""

    def __init__(self, connection: sqlite3.Connection, name: str = "messages") -> None:
        """Read the columns of the table.

        Raises:
            CannotOpenError: It has no rowid.

        """
        self.name = name
        self.columns: tuple[str, ...] = tuple(
            column[1] for column in connection.execute(f"PRAGMA main.table_xinfo({quoted(name)})")
        )
        places = {column.lower(): index for index, column in enumerate(self.columns)}
        self.extra = tuple(column for column in self.columns if column.lower() not in COLUMNS)
        self.missing = tuple(column for column in OPTIONAL if column not in places)
        # A missing column has index -1: the NULL that `known` appends to the values.
        self._known = itemgetter(*(places.get(column, -1) for column in COLUMNS))
        self.rowid = self._rowid_name(connection)

    def rows(self, connection: sqlite3.Connection) -> Iterator[list[LegacyRow]]:
        """Read all rows by rowid, in batches.

        Until the iterator is closed, every query on ``connection`` returns TEXT as
        ``legacy.Text``.
        """
        usual = connection.text_factory
        connection.text_factory = Text
        try:
            batch: list[LegacyRow] = []
            size = 0
            for rowid, *values in connection.execute(self._select(*map(quoted, self.columns))):
                batch.append(LegacyRow(rowid, tuple(values)))
                size += sum(len(value) for value in values if isinstance(value, bytes))
                if len(batch) == BATCH or size >= BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
            if batch:
                yield batch
        finally:
            connection.text_factory = usual

    def rowids(self, connection: sqlite3.Connection) -> Iterator[list[int]]:
        """Return the rowids of all rows in order, in batches as large as those of ``rows``."""
        # The cast makes length count bytes for every type.
        sizes = [f"coalesce(length(CAST({quoted(column)} AS BLOB)), 0)" for column in self.columns]
        batch: list[int] = []
        size = 0
        for rowid, length in connection.execute(self._select(" + ".join(sizes))):
            batch.append(rowid)
            size += length
            if len(batch) == BATCH or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def between(self, connection: sqlite3.Connection, first: int, last: int) -> list[LegacyRow]:
        """Return the rows with rowids from ``first`` to ``last``, in order."""
        sql = self._select(*map(quoted, self.columns), where=f"{self.rowid} BETWEEN ? AND ?")
        usual = connection.text_factory
        connection.text_factory = Text
        try:
            rows = connection.execute(sql, (first, last))
            return [LegacyRow(rowid, tuple(values)) for rowid, *values in rows]
        finally:
            connection.text_factory = usual

    def _select(self, *what: str, where: str = "1") -> str:
        # NOT INDEXED: read the table itself, because an index may be inconsistent with it.
        return (
            f"SELECT {', '.join([self.rowid, *what])} FROM main.{quoted(self.name)}"  # noqa: S608 - quoted
            f" NOT INDEXED WHERE {where} ORDER BY {self.rowid}"
        )

    def known(self, row: LegacyRow) -> tuple[RawValue, ...]:
        """Return the row's values in the order of ``legacy.COLUMNS``."""
        values: tuple[RawValue, ...] = self._known((*row.values, None))
        return values

    def raw_json(self, row: LegacyRow) -> str:
        """Return all values of the row as JSON, without loss."""
        return raw_row_as_json(self.columns, row.values)

    def _rowid_name(self, connection: sqlite3.Connection) -> str:
        taken = {column.lower() for column in self.columns}
        for name in ("rowid", "_rowid_", "oid"):
            if name in taken:
                continue
            try:
                connection.execute(f"SELECT {name} FROM main.{quoted(self.name)} LIMIT 0")  # noqa: S608 - quoted
            except sqlite3.OperationalError:
                break  # WITHOUT ROWID
            return name
        raise CannotOpenError(
            "its table messages has no rowid, so its rows cannot be identified; "
            "copy them into a table with a rowid"
        )

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
        other = connection.execute(
            f"SELECT 1 FROM main.{quoted(self.name)} NOT INDEXED"  # noqa: S608 - quoted
            " WHERE typeof(id) NOT IN ('text', 'null') LIMIT 1"
        )
        return other.fetchone() is not None

    def _is_unique_by_id(self, connection: sqlite3.Connection, index: str) -> bool:
        described = connection.execute(f"PRAGMA main.index_xinfo({quoted(index)})")
        keys = [(row[2], row[4]) for row in described if row[5]]
        return [(str(name).lower(), coll) for name, coll in keys] == [("id", "BINARY")]


class RowJudge:
    """Converts rows one by one and detects duplicate ids."""

    def __init__(self, table: LegacyTable, connection: sqlite3.Connection) -> None:
        """Create a judge of the rows of ``table``, which ``connection`` reads."""
        self._table = table
        # A separate database, because the inspected one is read-only. An empty name means memory
        # that spills to a temporary file.
        self._taken = None
        if table.ids_may_collide(connection):
            self._taken = sqlite3.connect("", isolation_level=None)
        if self._taken is not None:
            self._taken.execute("PRAGMA synchronous = OFF")
            self._taken.execute(
                "CREATE TABLE taken (id TEXT PRIMARY KEY, origin INTEGER) WITHOUT ROWID"
            )
            self._taken.execute("BEGIN")

    def close(self) -> None:
        """Discard the recorded ids."""
        if self._taken is not None:
            self._taken.close()

    def verdict(self, row: LegacyRow) -> RowVerdict:
        """Return the verdict on a row, and record its id if it has no problems."""
        draft, created_at, problems = read(self._table.known(row))
        self.check_unique_id(draft.id, row.rowid, problems)
        return RowVerdict(row, draft, created_at, problems)

    def check_unique_id(self, message_id: str, rowid: int, problems: list[Problem]) -> None:
        """Add a problem if an earlier row has the id; else record the id."""
        if self._taken is not None:
            self._check_id(self._taken, message_id, rowid, problems)

    def _check_id(
        self, taken: sqlite3.Connection, message_id: str, rowid: int, problems: list[Problem]
    ) -> None:
        if any(problem.field == "id" for problem in problems):
            return
        found = taken.execute("SELECT origin FROM taken WHERE id = ?", (message_id,)).fetchone()
        if found is not None:
            problems.append(Problem("id", f"{message_id!r} is taken by rowid {found[0]}"))
        elif not problems:
            taken.execute("INSERT INTO taken VALUES (?, ?)", (message_id, rowid))


def read(values: tuple[RawValue, ...]) -> Reading:
    """Read a row from its values in the order of ``legacy.COLUMNS``."""
    message, problems = read_row(values)
    violations = Violations()
    draft = violations.draft(
        "",
        message_id=message.id,
        provider=message.provider,
        role=message.role,
        content=message.content,
        tags=message.tags,
        timestamp=message.timestamp_us,
        metadata=message.metadata,
        session_id=message.session_id,
    )
    if violations.found:
        add_violations(problems, violations)
    return Reading(draft, message.created_at_us, problems)
