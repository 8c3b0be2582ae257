"""The named statements of queries.sql, journal.sql, sessions.sql and files.sql."""

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
"""Rows of one INSERT in a large batch, with at most 15 values each. SQLite accepts at least 32,766
values (limits.html, SQLITE_MAX_VARIABLE_NUMBER)."""
_MOST_ROWS = 128
"""Rows of one INSERT otherwise: there is a statement for each number up to this."""
STATEMENTS = 3 * _MOST_ROWS
"""Prepared statements that a connection caches: those of the two inserts of most groups, for each
number of rows, and all others."""


def _load(name: str) -> dict[str, str]:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    parts = _NAME.split(text)
    return {name: sql.strip() for name, sql in zip(parts[1::2], parts[2::2], strict=True)}


_FILES = ("queries.sql", "journal.sql", "sessions.sql", "files.sql")
QUERIES = {name: sql for file in _FILES for name, sql in _load(file).items()}
"""Statement by name."""


def insert_all(connection: sqlite3.Connection, name: str, rows: Sequence[Sequence[object]]) -> None:
    """Insert ``rows`` with the statement ``name``, many rows per execution.

    ``executemany`` releases the GIL twice per row and then waits for it, up to
    ``sys.getswitchinterval()`` each while the event loop is busy. A statement with many rows
    pays that once, and the full-text index takes half the time.
    """
    start = 0
    while left := len(rows) - start:
        count = _BATCH_ROWS if left >= _BATCH_ROWS else min(left, _MOST_ROWS)
        values = tuple(chain.from_iterable(rows[start : start + count]))
        # Not ``execute``, which releases the GIL once more to read last_insert_rowid.
        connection.executemany(_of_rows(name, count), (values,))
        start += count


@lru_cache(maxsize=STATEMENTS)
def _of_rows(name: str, count: int) -> str:
    """Return the statement ``name`` with ``count`` rows of values."""
    return _VALUES.sub(lambda row: "VALUES " + ", ".join([row[1]] * count), QUERIES[name])
