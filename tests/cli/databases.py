"""Small databases to import."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tests.cli.command import SAMPLE

SCHEMA = SAMPLE.parents[2] / "server/sagastore_server/sqlite/schema/0001_initial.sql"

_LEGACY = """
CREATE TABLE messages (
    id TEXT PRIMARY KEY, provider TEXT NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL,
    tags TEXT, timestamp DATETIME NOT NULL, metadata TEXT, session_id TEXT,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP
)
"""
_LEGACY_ROWS = [
    ("m1", "openai", "user", "one", '["a","b"]', "2025-01-02T03:04:05+02:00", '{"n": 1.50}', "s"),
    ("m2", "openai", "user", "two", None, "2025-01-02 03:04:05", None, None),
    ("m3", "groq", "tool", "three", "[]", "2025-01-02T03:04:05.000006", "{}", "s"),
    (None, "openai", "user", "no id", "[]", "2025-01-02T03:04:05", "{}", None),
    ("m5", "openai", "user", "when?", "[]", "yesterday", "{}", None),
    ("m6", "openai", "user", "twice", "[]", "2025-01-02T03:04:05", '{"a":1,"a":2}', None),
    ("", "openai", "user", "empty id", "[]", "2025-01-02T03:04:05", "{}", None),
]


def legacy_database(path: Path, journal_mode: str = "delete") -> Path:
    """Make a `memory.db` with three messages and four rows that are none."""
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode = {journal_mode}")
    connection.execute(_LEGACY)
    connection.executemany(
        "INSERT INTO messages (id, provider, role, content, tags, timestamp, metadata, session_id)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        _LEGACY_ROWS,
    )
    connection.commit()
    connection.close()
    return path


def store_database(path: Path, journal_mode: str = "delete") -> Path:
    """Make a file as a server leaves it, with three messages."""
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode = {journal_mode}")
    connection.executescript(SCHEMA.read_text(encoding="utf-8"))
    connection.executescript("PRAGMA application_id = 0x53414741; PRAGMA user_version = 1")
    for trigger in ("insert", "delete"):
        connection.execute(f"DROP TRIGGER messages_{trigger}_guard")
    connection.executemany(
        "INSERT INTO messages (id, provider, role, content, tags, timestamp, metadata, revision)"
        " VALUES (?, 'openai', 'user', 'hello', '[\"t\"]', 1735787045000006, ?, 1)",
        [(f"s{n}", '{"n": 1.50}') for n in (1, 2, 3)],
    )
    connection.commit()
    connection.close()
    return path
