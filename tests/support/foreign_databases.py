"""SQLite files of every kind that a user may give to `inspect`, `serve` and `import`."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.legacy_db import MESSAGES, PLAIN, RawText, legacy_db, numbered

ROW = (
    "INSERT INTO messages (id, provider, role, content, tags, timestamp, metadata, session_id)"
    " VALUES ('m{0}', 'p', 'user', 'text {0}', '[\"t\"]', '2025-04-02T10:00:0{0}',"
    " '{{\"session\": \"S{0}\"}}', 's')"
)
PLAIN_TABLE = (
    "CREATE TABLE messages (id TEXT PRIMARY KEY, provider TEXT, role TEXT, content TEXT, tags TEXT,"
    " timestamp TEXT, metadata TEXT, session_id TEXT)"
)
FILLER = b"these are no pages of a database "

Maker = Callable[[Path], Any]


def script(*statements: str, before: str = "") -> Maker:
    """Return a maker of a file by SQL."""

    def make(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.executescript(";\n".join((before, *statements)))
            connection.commit()

    return make


def rows_of(*rows: dict[str, Any], schema: str = "") -> Maker:
    """Return a maker of a legacy file with such rows; every value can be stored by default."""
    loose = MESSAGES.replace(" PRIMARY KEY", "").replace(" NOT NULL", "")

    def make(path: Path) -> None:
        legacy_db(path, [PLAIN | row for row in rows], messages=schema or loose)

    return make


def with_column(name: str, definition: str) -> Maker:
    """Return a maker of a file with three rows and a further column before the others."""
    table = PLAIN_TABLE.replace("PRIMARY KEY", "UNIQUE")
    table = table.replace("(id", f"({name} {definition}, id")
    return script(table, *map(ROW.format, range(3)))


def generated(column: str, kind: str, *more: str) -> Maker:
    """Return a maker of a file whose ``column`` is computed from the metadata."""
    body = f"{column} TEXT GENERATED ALWAYS AS (json_extract(metadata, '$.session')) {kind}"
    table = PLAIN_TABLE.replace(f", {column} TEXT", f", {body}")
    row = ROW.format(1).replace(f", {column}", "").replace(", 's')", ")")
    return script(table, row, *more)


def added_generated(column: str) -> Maker:
    """Return a maker of a file whose column ``column`` cannot be computed in one of its rows."""
    without = PLAIN_TABLE.replace(", session_id TEXT", "")
    rows = [ROW.format(n).replace(", session_id", "").replace(", 's')", ")") for n in range(4)]
    return script(
        without,
        *rows,
        "UPDATE messages SET metadata = '{broken' WHERE id = 'm2'",
        f"ALTER TABLE messages ADD COLUMN {column} TEXT"
        " AS (json_extract(metadata, '$.session')) VIRTUAL",
    )


def damaged(write: Callable[[Any, int], None]) -> Maker:
    """Return a maker of a legacy file whose pages ``write`` damages."""

    def make(path: Path) -> None:
        legacy_db(path, numbered(50, 500))
        with path.open("rb+") as file:
            write(file, path.stat().st_size)

    return make


def _overwrite(first: int) -> Callable[[Any, int], None]:
    def write(file: Any, size: int) -> None:
        for page in range(first, size // 4096):
            file.seek(page * 4096)
            file.write(FILLER * 100)

    return write


ODD_ROWS: tuple[dict[str, Any], ...] = (
    {"id": "plain"},
    {"id": None},
    {"id": ""},
    {"id": 7, "content": "integer id"},
    {"id": "7", "content": "the same id as text"},
    {"id": b"7", "content": "the same id as a blob"},
    {"id": "x" * 129},
    {"id": "nul\x00"},
    {"id": 2**63 - 1, "provider": -(2**63)},
    {"id": 1.5},
    {"id": "null content", "content": None},
    {"id": "no text", "content": ""},
    {"id": "bytes", "content": RawText(b"caf\xe9")},
    {"id": "blob", "content": b"\x00\xff"},
    {"id": "utf-8 blob", "content": "é".encode()},
    {"id": "long", "content": "x" * 1_000_001},
    {"id": "tags", "tags": "a,b"},
    {"id": "tags 2", "tags": '["a", 1]'},
    {"id": "tags 3", "tags": '["", "a"]'},
    {"id": "tags 4", "tags": "[" * 5000},
    {"id": "tags 5", "tags": '["\\ud800"]'},
    {"id": "metadata", "metadata": "{broken"},
    {"id": "metadata 2", "metadata": '{"a": NaN}'},
    {"id": "metadata 3", "metadata": '{"a": 1e99999999999999999999, "b": 1}'},
    {"id": "metadata 4", "metadata": '{"a": 1E+400, "b": -0, "c": 1.50, "d": -0.0}'},
    {"id": "metadata 5", "metadata": '{"a": 1, "a": 2}'},
    {"id": "metadata 6", "metadata": '{"a": ' + "9" * 200_000 + "}"},
    {"id": "metadata 7", "metadata": '{"a":' * 150 + "1" + "}" * 150},
    {"id": "metadata 8", "metadata": '{"a":' * 250 + "1" + "}" * 250},
    {"id": "metadata 9", "metadata": "[1]"},
    {"id": "metadata 10", "metadata": '{"a": "\\u0000"}'},
    {"id": "metadata 11", "metadata": '{"a": "\\ud800"}'},
    {"id": "metadata 12", "metadata": 17},
    {"id": "time", "timestamp": "yesterday"},
    {"id": "time 2", "timestamp": "0001-01-01T00:00:00+01:00"},
    {"id": "time 3", "timestamp": 1743588000.25},
    {"id": "time 4", "timestamp": 9e300},
    {"id": "time 5", "timestamp": None},
    {"id": "time 6", "timestamp": b"2025"},
    {"id": "time 7", "created_at": "2025-02-30"},
    {"id": "session", "session_id": None},
    {"id": "session 2", "session_id": b"\xff"},
    {"id": "session 3", "session_id": "s" * 257},
    {"id": "two", "provider": "", "tags": "?", "timestamp": "never"},
)

FILES: dict[str, Maker] = {
    # Rows
    "plain": lambda path: legacy_db(path, numbered(3)),
    "odd rows": rows_of(*ODD_ROWS),
    "no valid row": rows_of({"id": None}, {"timestamp": "?"}),
    "no row": script(PLAIN_TABLE),
    "equal times": rows_of(*({"id": f"{n % 7}-{n}"} for n in range(20))),
    "rowids": script(
        PLAIN_TABLE,
        *map(ROW.format, range(5)),
        "UPDATE messages SET rowid = -9223372036854775808 WHERE id = 'm3'",
        "UPDATE messages SET rowid = 9223372036854775807 WHERE id = 'm0'",
        "UPDATE messages SET rowid = -5 WHERE id = 'm4'",
    ),
    # Columns
    "rowid": with_column("rowid", "INTEGER"),
    "_ROWID_": with_column("_ROWID_", "TEXT"),
    "oid and rowid": with_column("oid TEXT, rowid", "INTEGER DEFAULT 7"),
    "all names of the rowid": with_column("oid, rowid, _rowid_", "TEXT"),
    "a rowid by another name": with_column("oid, rowid, _rowid_", "INTEGER PRIMARY KEY"),
    "a descending key": with_column("oid, rowid, _rowid_", "INTEGER PRIMARY KEY DESC"),
    "other case": script(
        "CREATE TABLE Messages (ID, Provider, ROLE, Content, `timestamp`, [Tags], 'Session_ID')",
        "INSERT INTO messages VALUES (1, 'p', 'r', 'c', '2025-04-02', '[]', 's')",
    ),
    "odd quoting": script(
        'CREATE TABLE "messages" ("id", "pro""vider", provider, role, content, timestamp,'
        ' "select", "a b", "")',
        "INSERT INTO messages VALUES ('a', 1, 'p', 'r', 'c', '2025-04-02', 1, 2, x'00')",
    ),
    "virtual column": generated("session_id", "VIRTUAL"),
    "stored column": generated("session_id", "STORED"),
    "virtual id": script(
        PLAIN_TABLE.replace(
            "id TEXT PRIMARY KEY", "nr INTEGER, id TEXT AS ('n' || (nr % 2)) VIRTUAL"
        ),
        *(ROW.format(n).replace("(id", "(nr").replace(f"('m{n}'", f"({n}") for n in range(3)),
    ),
    "column that fails": added_generated("session_id"),
    "further column that fails": added_generated("further"),
    "required column that fails": script(
        "CREATE TABLE messages (id, provider, role, content, timestamp)",
        *(f"INSERT INTO messages VALUES ({n}, 'p', 'r', 'c', '2025-04-02')" for n in range(3)),
        "UPDATE messages SET content = '{bad' WHERE id = 1",
        "ALTER TABLE messages ADD COLUMN tags AS (json_extract(content, '$.x'))",
    ),
    # Kinds of tables
    "strict": script(PLAIN_TABLE + " STRICT", ROW.format(1)),
    "without rowid": script(PLAIN_TABLE + " WITHOUT ROWID", ROW.format(1)),
    "view": script(
        PLAIN_TABLE.replace("messages", "m2"),
        ROW.format(1).replace("messages", "m2"),
        "CREATE VIEW messages AS SELECT * FROM m2",
    ),
    "view in other case": script("CREATE VIEW MESSAGES AS SELECT 1"),
    "virtual table": script(
        "CREATE VIRTUAL TABLE messages USING fts5(id, provider, role, content, timestamp)"
    ),
    "triggers": script(
        PLAIN_TABLE,
        ROW.format(1),
        "CREATE TABLE seen (id)",
        "CREATE TRIGGER one AFTER INSERT ON messages BEGIN SELECT no_such_function(); END",
        "CREATE TRIGGER two AFTER DELETE ON messages BEGIN DELETE FROM seen; END",
    ),
    # Kinds of files
    "no tables": script("PRAGMA user_version = 0", "VACUUM"),
    "other tables": script("CREATE TABLE notes (x)"),
    "other columns": script("CREATE TABLE messages (id, content)"),
    "other application": script(PLAIN_TABLE, ROW.format(1), "PRAGMA application_id = 7"),
    "utf-16": script(PLAIN_TABLE, ROW.format(1), before="PRAGMA encoding = 'UTF-16le'"),
    "wal": script(PLAIN_TABLE, ROW.format(1), before="PRAGMA journal_mode = wal"),
    "noise": lambda path: path.write_bytes(b"SQLite format 3\0" + FILLER * 99),
    "truncated": damaged(lambda file, size: file.truncate(size // 2)),
    "torn page": damaged(_overwrite(1)),
    "overwritten pages": damaged(_overwrite(4)),
    "name that is not utf-8": lambda path: _rename_column(path, b"\xff\xfe"),
}
"""Makers of files by name."""


def _rename_column(path: Path, name: bytes) -> None:
    legacy_db(path, numbered(3), with_indexes=False)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"session_id TEXT", b"session_" + name + b" TEXT"))
    os.utime(path)
