"""Legacy ``memory.db`` files, written as the legacy application writes them."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MESSAGES = """CREATE TABLE messages (
                    id TEXT PRIMARY KEY,
                    provider TEXT NOT NULL,
                    role TEXT NOT NULL,
                    content TEXT NOT NULL,
                    tags TEXT,
                    timestamp DATETIME NOT NULL,
                    metadata TEXT,
                    session_id TEXT,
                    created_at DATETIME DEFAULT CURRENT_TIMESTAMP
                )"""
FILES = """CREATE TABLE files (
                    id TEXT PRIMARY KEY,
                    filename TEXT NOT NULL,
                    filepath TEXT NOT NULL,
                    file_type TEXT NOT NULL,
                    extracted_text TEXT,
                    tags TEXT,
                    file_size INTEGER,
                    uploaded_at DATETIME NOT NULL,
                    metadata TEXT,
                    created_at DATETIME DEFAULT CURRENT_TIMESTAMP
                )"""
TEXT_INDEXES = (
    """CREATE VIRTUAL TABLE messages_fts
                USING fts5(
                    id UNINDEXED,
                    content,
                    tags,
                    content='messages',
                    content_rowid='rowid'
                )""",
    """CREATE VIRTUAL TABLE files_fts
                USING fts5(
                    id UNINDEXED,
                    filename,
                    extracted_text,
                    tags,
                    content='files',
                    content_rowid='rowid'
                )""",
)
INDEXES = (
    "CREATE INDEX idx_messages_provider ON messages(provider)",
    "CREATE INDEX idx_messages_timestamp ON messages(timestamp DESC)",
    "CREATE INDEX idx_messages_session ON messages(session_id)",
    "CREATE INDEX idx_files_type ON files(file_type)",
    "CREATE INDEX idx_files_uploaded ON files(uploaded_at DESC)",
)

PLAIN: dict[str, Any] = {
    "id": "m1",
    "provider": "openai",
    "role": "user",
    "content": "hello there",
    "tags": '["a"]',
    "timestamp": "2025-04-02T10:00:00",
    "metadata": '{"n": 1}',
    "session_id": "s",
    "created_at": "2025-04-02 10:00:01",
}


class RawText(bytes):
    """Bytes to store as TEXT, valid UTF-8 or not."""


def legacy_db(
    path: Path,
    rows: Iterable[Mapping[str, Any]] = (),
    *,
    messages: str = MESSAGES,
    with_indexes: bool = True,
    more: str = "",
) -> Path:
    """Create a legacy file; ``more`` is a script executed at the end."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(messages)
        if with_indexes:
            for statement in (FILES, *TEXT_INDEXES, *INDEXES):
                connection.execute(statement)
        for row in rows:
            insert(connection, row, with_index=with_indexes)
        if with_indexes:
            _files_and_drift(connection)
        connection.commit()
        connection.executescript(more)
    return path


def insert(
    connection: sqlite3.Connection, row: Mapping[str, Any], *, with_index: bool = True
) -> None:
    """Save a message; its full-text row gets a separate rowid, as in the application."""
    values = ["CAST(? AS TEXT)" if isinstance(value, RawText) else "?" for value in row.values()]
    connection.execute(
        f"INSERT INTO messages ({', '.join(row)}) VALUES ({', '.join(values)})",
        list(row.values()),
    )
    if with_index:
        connection.execute(
            "INSERT INTO messages_fts (id, content, tags) VALUES (?, ?, ?)",
            [str(row.get(name)) for name in ("id", "content", "tags")],
        )


def numbered(count: int, length: int = 0) -> list[dict[str, Any]]:
    """Return plain rows ``m0``, ``m1``, … with contents of about ``length`` characters."""
    return [
        {**PLAIN, "id": f"m{n}", "content": f"message {n} " + "words " * (length // 6)}
        for n in range(count)
    ]


def _files_and_drift(connection: sqlite3.Connection) -> None:
    for n in range(3):
        connection.execute(
            "INSERT INTO files VALUES (?, ?, ?, 'markdown', ?, '[]', ?, ?, '{}', NULL)",
            (f"f{n}", f"{n}.md", f"in/{n}.md", f"text of {n}", n, "2025-03-01T09:00:00"),
        )
    # Deletions changed only the table, so the index is out of sync with it.
    connection.execute("INSERT INTO messages_fts (id, content, tags) VALUES ('gone', 'gone', '')")
    connection.execute("UPDATE messages_fts_docsize SET id = id + 1000000 WHERE id % 5 = 4")


def contents_of(folder: Path) -> dict[str, str]:
    """Return a digest of every file by name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
