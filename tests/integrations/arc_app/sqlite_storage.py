"""Storage of the application in a `memory.db`, with the legacy schema."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import aiosqlite

from tests.integrations.arc_app.exceptions import StorageError
from tests.integrations.arc_app.storage import StorageBackend
from tests.support.legacy_db import FILES, INDEXES, MESSAGES, TEXT_INDEXES

_SEARCH = """
SELECT messages.*, -bm25(messages_fts) AS score
FROM messages_fts JOIN messages ON messages.rowid = messages_fts.rowid
WHERE messages_fts MATCH 'content : (' || :query || ')'
"""
_NEWEST = "SELECT messages.*, 0.0 AS score FROM messages WHERE :query = ''"
_TAGGED = """
AND (SELECT count(DISTINCT value) FROM json_each(messages.tags)
     WHERE value IN (SELECT value FROM json_each(:tags))) = json_array_length(:tags)
"""


class SQLiteStorage(StorageBackend):
    """One connection for each call, so that it works on any event loop."""

    def __init__(self, path: Path, models: ModuleType) -> None:
        self.path = path
        self.models = models

    @asynccontextmanager
    async def _connected(self, operation: str) -> AsyncIterator[aiosqlite.Connection]:
        try:
            async with aiosqlite.connect(self.path) as connection:
                connection.row_factory = sqlite3.Row
                yield connection
                await connection.commit()
        except sqlite3.Error as exc:
            raise StorageError(str(exc), operation=operation) from exc

    async def initialize(self) -> None:
        async with self._connected("initialize") as connection:
            cursor = await connection.execute(
                "SELECT count(*) FROM sqlite_schema WHERE name = 'messages'"
            )
            row = await cursor.fetchone()
            if row is not None and row[0]:
                return
            for statement in (MESSAGES, FILES, *TEXT_INDEXES, *INDEXES):
                await connection.execute(statement)

    async def save_message(self, message: Any) -> str:
        async with self._connected("save_message") as connection:
            cursor = await connection.execute(
                "INSERT INTO messages (id, provider, role, content, tags, timestamp, metadata,"
                " session_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(message.id, message.provider.value, message.role.value, message.content),
                    *(json.dumps(message.tags), message.timestamp.isoformat()),
                    *(json.dumps(message.metadata), message.session_id),
                ),
            )
            await connection.execute(
                "INSERT INTO messages_fts (rowid, id, content, tags) VALUES (?, ?, ?, ?)",
                (cursor.lastrowid, message.id, message.content, " ".join(message.tags)),
            )
        return str(message.id)

    async def get_message_by_id(self, message_id: str) -> Any:
        async with self._connected("get_message_by_id") as connection:
            cursor = await connection.execute("SELECT * FROM messages WHERE id = ?", (message_id,))
            row = await cursor.fetchone()
        return None if row is None else self._message(row)

    async def get_by_session(self, session_id: str) -> list[Any]:
        async with self._connected("get_by_session") as connection:
            rows = await connection.execute_fetchall(
                "SELECT * FROM messages WHERE session_id = ? ORDER BY timestamp, rowid",
                (session_id,),
            )
        return [self._message(row) for row in rows]

    async def search_messages(
        self, query: str, tags: list[str] | None = None, limit: int = 50
    ) -> list[Any]:
        sql = (_SEARCH if query else _NEWEST) + _TAGGED
        order = ("score DESC, " if query else "") + "timestamp DESC, messages.rowid DESC"
        values = {"query": query, "tags": json.dumps(sorted(set(tags or [])))}
        async with self._connected("search_messages") as connection:
            rows = await connection.execute_fetchall(
                f"{sql} ORDER BY {order} LIMIT {min(limit, 500)}", values
            )
        return [self._result(row) for row in rows]

    async def save_file(self, file: Any) -> str:
        async with self._connected("save_file") as connection:
            await connection.execute(
                "INSERT INTO files (id, filename, filepath, file_type, extracted_text, tags,"
                " file_size, uploaded_at, metadata) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(file.id, file.filename, file.filepath, file.file_type.value),
                    *(file.extracted_text, json.dumps(file.tags), file.file_size),
                    *(file.uploaded_at.isoformat(), json.dumps(file.metadata)),
                ),
            )
        return str(file.id)

    async def get_file_by_id(self, file_id: str) -> Any:
        async with self._connected("get_file_by_id") as connection:
            cursor = await connection.execute("SELECT * FROM files WHERE id = ?", (file_id,))
            row = await cursor.fetchone()
        if row is None:
            return None
        return self.models.File(
            id=row["id"],
            filename=row["filename"],
            filepath=row["filepath"],
            file_type=self.models.FileType(row["file_type"]),
            extracted_text=row["extracted_text"] or "",
            tags=json.loads(row["tags"] or "[]"),
            file_size=row["file_size"] or 0,
            uploaded_at=_utc(row["uploaded_at"]).replace(tzinfo=None),
            metadata=json.loads(row["metadata"] or "{}"),
        )

    async def health_check(self) -> bool:
        try:
            async with self._connected("health_check") as connection:
                await connection.execute("SELECT 1")
        except StorageError:
            return False
        return True

    def _message(self, row: sqlite3.Row) -> Any:
        return self.models.Message(
            id=row["id"],
            provider=self.models.Provider(row["provider"]),
            role=self.models.MessageRole(row["role"]),
            content=row["content"],
            tags=json.loads(row["tags"] or "[]"),
            timestamp=_utc(row["timestamp"]),
            metadata=json.loads(row["metadata"] or "{}"),
            session_id=row["session_id"],
        )

    def _result(self, row: sqlite3.Row) -> Any:
        message = self._message(row)
        if self.models.__name__.endswith("pydantic_models"):
            return self.models.SearchResult(entity=message, score=row["score"])
        return self.models.SearchResult(
            entity_id=message.id,
            entity_type="message",
            content=message.content,
            tags=message.tags,
            relevance_score=row["score"],
            timestamp=message.timestamp,
        )


def _utc(text: str) -> datetime:
    """Return a time of the file in UTC; without an offset it is UTC."""
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
