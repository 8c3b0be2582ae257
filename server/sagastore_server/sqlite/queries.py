"""The named statements of queries.sql and journal.sql."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from itertools import chain

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_VALUES = re.compile(r"VALUES (\([^)]*\))")
_BATCH_ROWS = 1000
"""Rows of a statement for a whole batch, with at most 11 values each; SQLite takes 32,766 values
at least (limits.html, SQLITE_MAX_VARIABLE_NUMBER)."""
_MOST_ROWS = 128
"""Rows of a statement otherwise: there is one for each number up to this."""
STATEMENTS = 3 * _MOST_ROWS
"""Statements that a connection should keep prepared: one for each number of rows of the two
that most groups need, and all others."""


def _load(name: str) -> dict[str, str]:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    parts = _NAME.split(text)
    return {name: sql.strip() for name, sql in zip(parts[1::2], parts[2::2], strict=True)}


QUERIES = _load("queries.sql") | _load("journal.sql")
"""Statement by name."""


def insert_all(connection: sqlite3.Connection, name: str, rows: Sequence[Sequence[object]]) -> None:
    """Insert ``rows`` by the statement ``name``, many with one statement.

    Python gives up the GIL two times for each row of ``executemany``, and then waits until
    it is its turn again: up to ``sys.getswitchinterval()`` each while the event loop is busy.
    A statement of many rows costs that once; and the full-text index takes half the time.
    """
    start = 0
    while left := len(rows) - start:
        count = _BATCH_ROWS if left >= _BATCH_ROWS else min(left, _MOST_ROWS)
        values = tuple(chain.from_iterable(rows[start : start + count]))
        # One more time is for last_insert_rowid, which ``execute`` asks for.
        connection.executemany(_of_rows(name, count), (values,))
        start += count


@lru_cache(maxsize=STATEMENTS)
def _of_rows(name: str, count: int) -> str:
    """Return the statement ``name`` for so many rows."""
    return _VALUES.sub(lambda row: "VALUES " + ", ".join([row[1]] * count), QUERIES[name])
