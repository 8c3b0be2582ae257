"""Reader of the legacy table ``files``: rows that both stores can represent, and all others.

Nothing writes to this table (see the guards in the schema), so reading it page by page gives a
consistent result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sagastore.legacy import Problem, RawValue, Text, raw_row_as_json
from sagastore_server.sqlite.files import quoted
from sagastore_server.storage.replication import FileRow

MAX_ID_BYTES = 2000
"""PostgreSQL cannot index more than about 2,700 bytes."""

_COLUMNS = tuple(name for name in FileRow._fields if name not in {"number", "extra"})
_REQUIRED = frozenset({"id", "filename", "filepath", "file_type", "uploaded_at"})
_ABSENT = -1


class SetAside(NamedTuple):
    """A row for the table ``quarantine``."""

    source_key: str
    reason: str
    field: str
    row: str


class LegacyFiles:
    """Reads rows of ``files`` with any set of columns."""

    def __init__(self, columns: Sequence[str]) -> None:
        """Create a reader of the table with these columns, in this order."""
        self._columns = tuple(columns)
        places = {name.lower(): place for place, name in enumerate(columns)}
        self.has_ids = "id" in places
        """Whether there is a column ``id``. Without it, every row goes to quarantine."""
        self._places = [places.get(name, _ABSENT) for name in _COLUMNS]
        self._further = [
            place for place, name in enumerate(columns) if name.lower() not in _COLUMNS
        ]
        free = (name for name in ("rowid", "_rowid_", "oid") if name not in places)
        self._rowid = next(free, "rowid")
        values = ", ".join(
            f"typeof({name}), CASE typeof({name}) WHEN 'text' THEN CAST({name} AS BLOB)"
            f" ELSE {name} END"
            for name in (f"f.{quoted(column)}" for column in columns)
        )
        self._select = (
            f"SELECT f.{self._rowid}, q.row, {values} FROM main.files AS f"  # noqa: S608 - quoted
            f" LEFT JOIN quarantine AS q ON q.source_key = 'files/rowid=' || f.{self._rowid}"
        )

    @property
    def by_number(self) -> str:
        """SQL for rows after a rowid, in order, with a limit."""
        rowid = f"f.{self._rowid}"
        return f"{self._select} WHERE {rowid} > ? ORDER BY {rowid} LIMIT ?"

    @property
    def by_id(self) -> str:
        """SQL for rows after an id (its bytes) and rowid, in order, with a limit."""
        if not self.has_ids:
            return f"{self._select} WHERE 0 AND (?, ?, ?) IS NULL"
        key = f"f.id COLLATE BINARY, f.{self._rowid}"
        return (
            f"{self._select} WHERE typeof(f.id) = 'text' AND ({key}) > (CAST(? AS TEXT), ?)"
            f" ORDER BY {key} LIMIT ?"
        )

    @property
    def later_of_an_id(self) -> str:
        """SQL for the rowids of rows whose id an earlier row has, without rows in quarantine."""
        rowid = f"f.{self._rowid}"
        return (
            "SELECT number, first FROM ("  # noqa: S608 - quoted
            f"SELECT {rowid} AS number, first_value({rowid}) OVER same AS first"
            f" FROM main.files AS f WHERE typeof(f.id) = 'text' AND NOT EXISTS"
            f" (SELECT 1 FROM quarantine WHERE source_key = 'files/rowid=' || {rowid})"
            f" WINDOW same AS (PARTITION BY f.id COLLATE BINARY ORDER BY {rowid})"
            ") WHERE number > first AND number > ? ORDER BY number LIMIT ?"
        )

    @property
    def one(self) -> str:
        """SQL for the row with a rowid."""
        return f"{self._select} WHERE f.{self._rowid} = ?"

    def read(self, row: Sequence[Any]) -> FileRow | SetAside | None:
        """Return the result of a row of ``by_number`` or ``by_id``.

        None: the row is in quarantine because another row has its id.
        """
        number, quarantined = row[:2]
        values = _raw(row)
        known = [None if place == _ABSENT else values[place] for place in self._places]
        problems = [
            Problem(name, reason)
            for name, value, place in zip(_COLUMNS, known, self._places, strict=True)
            if (reason := _problem(name, value, absent=place == _ABSENT)) is not None
        ]
        if number <= 0:
            problems.insert(0, Problem("rowid", "is not positive"))
        if problems:
            return self._set_aside(number, values, problems)
        if quarantined is not None and quarantined == raw_row_as_json(self._columns, values):
            return None
        plain = [value.decode() if isinstance(value, Text) else value for value in known]
        further = raw_row_as_json(
            [self._columns[place] for place in self._further],
            [values[place] for place in self._further],
        )
        return FileRow._make((number, *plain, further))

    def repeated(self, row: Sequence[Any], first: int) -> SetAside:
        """Return the quarantine row for a row of ``one`` whose id the row ``first`` has."""
        values = _raw(row)
        return self._set_aside(row[0], values, [Problem("id", f"is taken by rowid {first}")])

    def key(self, row: Sequence[Any]) -> tuple[bytes, int]:
        """Return the key after which ``by_id`` continues."""
        place = [name.lower() for name in self._columns].index("id")
        return row[3 + 2 * place], row[0]

    def _set_aside(
        self, number: int, values: Sequence[RawValue], problems: Sequence[Problem]
    ) -> SetAside:
        reason = "; ".join(f"{problem.field}: {problem.reason}" for problem in problems)
        return SetAside(
            f"files/rowid={number}",
            reason,
            problems[0].field,
            raw_row_as_json(self._columns, values),
        )


def _raw(row: Sequence[Any]) -> list[RawValue]:
    pairs = zip(row[2::2], row[3::2], strict=True)
    return [Text(value) if kind == "text" else value for kind, value in pairs]


def _problem(name: str, value: RawValue, *, absent: bool) -> str | None:
    """Return why a ``FileRow`` cannot represent the value, or None if it can."""
    if value is None:
        if name not in _REQUIRED:
            return None
        return "is missing from the table" if absent else "is NULL"
    if name == "file_size":
        return None if isinstance(value, int) else f"is {_kind(value)}, not an integer"
    if not isinstance(value, Text):
        return f"is {_kind(value)}, not text"
    if name == "id" and len(value) > MAX_ID_BYTES:
        return f"is longer than {MAX_ID_BYTES:,} bytes"
    return _text_problem(value)


def _text_problem(value: Text) -> str | None:
    if 0 in value:
        return "holds U+0000"
    try:
        value.decode()
    except UnicodeDecodeError as exc:
        return f"is text with bytes that are not UTF-8, the first at {exc.start:,}"
    return None


def _kind(value: RawValue) -> str:
    if isinstance(value, Text):
        return "text"
    return "a BLOB" if isinstance(value, bytes) else "a number"
