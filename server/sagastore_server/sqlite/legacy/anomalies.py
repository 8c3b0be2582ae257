"""Anomalies: counts of unusual values in the rows of a legacy file, by kind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from sagastore.legacy import COLUMNS, Problem, RawValue, Text
from sagastore.legacy.table import LegacyTable, RowVerdict

EXAMPLES = 3
"""Example rowids per kind."""

_NUMBERS = re.compile(r"\d[\d,.]*|'.*'|\".*\"", re.DOTALL)
_SIGN = re.compile(rb"[+-]")
_TIMES = frozenset({"timestamp", "created_at"})
_DATE = 10
"""Characters of YYYY-MM-DD."""


class Anomaly(NamedTuple):
    """A kind of unusual value. Most kinds are read without loss."""

    what: str
    total: int
    examples: list[int]
    """Rowids of the first rows."""


class ReasonGroup(NamedTuple):
    """Rows that go to quarantine for reasons of one kind."""

    field: str
    reason: str
    """The reason of the first row."""
    total: int
    examples: list[int]
    """Rowids of the first rows."""


class _Tally:
    """Counts by key, with the first examples."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, list[int]]] = {}

    def add(self, key: str, rowid: int) -> None:
        count, rows = self.found.get(key, (0, []))
        if count < EXAMPLES:
            rows.append(rowid)
        self.found[key] = (count + 1, rows)


class Anomalies:
    """Counts anomalies and quarantine reasons, row by row."""

    def __init__(self, table: LegacyTable) -> None:
        """Create empty counts for ``table``."""
        self._table = table
        self._anomalies = _Tally()
        self._groups = _Tally()
        self._firsts: dict[str, Problem] = {}

    def add(self, verdict: RowVerdict) -> None:
        """Count one row."""
        rowid = verdict.row.rowid
        for what in self._of_row(verdict):
            self._anomalies.add(what, rowid)
        for problem in verdict.problems:
            # Group reasons that differ only in positions, lengths and quotations.
            key = f"{problem.field}\n{_NUMBERS.sub('#', problem.reason)}"
            self._firsts.setdefault(key, problem)
            self._groups.add(key, rowid)

    def anomalies(self) -> list[Anomaly]:
        """Return the anomalies found, by name."""
        return [Anomaly(what, *found) for what, found in sorted(self._anomalies.found.items())]

    def reasons(self) -> list[ReasonGroup]:
        """Return the quarantine reasons, the most frequent first."""
        groups = [
            ReasonGroup(*self._firsts[key], *found) for key, found in self._groups.found.items()
        ]
        return sorted(groups, key=lambda group: (-group.total, group.field, group.reason))

    def _of_row(self, verdict: RowVerdict) -> Iterator[str]:
        known = self._table.known(verdict.row)
        unread = {problem.field for problem in verdict.problems}
        for column, value in zip(COLUMNS, known, strict=True):
            # For an unreadable time, the quarantine reason describes the format.
            if column not in unread or column not in _TIMES:
                yield from _of_value(column, value)
        if self._table.extra:
            extra = (v for c, v in zip(self._table.columns, verdict.row.values, strict=True)
                     if c in self._table.extra)  # fmt: skip
            if any(value is not None for value in extra):
                yield "values in columns beyond the known ones"


def _of_value(column: str, value: RawValue) -> Iterator[str]:
    if column == "session_id" and value is None:
        yield "session_id is NULL: the message belongs to no session"
    elif value is None:
        yield f"{column} is NULL"
    elif column in _TIMES:
        yield from _of_time(column, value)
    elif isinstance(value, int | float):
        yield f"{column} is a number"
    elif not isinstance(value, Text):
        yield f"{column} is a BLOB"
    elif column in {"tags", "metadata"} and not value.strip():
        yield f"{column} is empty"
    elif 0 in value:
        yield f"{column} holds U+0000"


def _of_time(column: str, value: RawValue) -> Iterator[str]:
    """Return unusual formats of a time. ``created_at`` usually has a space and no offset."""
    if not isinstance(value, bytes):
        yield f"{column} is a number"
    elif not isinstance(value, Text):
        yield f"{column} is a BLOB"
    else:
        usual = b" " if column == "created_at" else b"T"
        clock = value[_DATE + 1 :]
        if len(value) == _DATE:
            yield f"{column} is a date alone: midnight, UTC"
        elif value[_DATE : _DATE + 1] != usual:
            yield f"{column} has {'a T' if usual == b' ' else 'no T'} between date and time"
        if clock.endswith((b"Z", b"z")):
            yield f"{column} ends in Z"
        elif _SIGN.search(clock):
            yield f"{column} has an offset from UTC"
        elif column == "timestamp" and clock:
            yield "timestamp has no offset: read as UTC"
