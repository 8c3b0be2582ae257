"""Hand-written server for comparison: one statement and one commit per call.

    python -m tools.benchmarks.handmade_server --sqlite FILE --postgres DSN

It stands for what a team writes in a day. Use one or both options; with both, a call writes SQLite,
then PostgreSQL. The full-text index is the databases' own: FTS5 with its porter tokenizer
maintained by triggers, and a generated ``tsvector``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from datetime import UTC
from typing import Any

import aiosqlite
import asyncpg
import grpc
import uvloop
from grpc import aio

from sagastore.v1 import storage_pb2
from tools.benchmarks.announce import announced

_SQLITE = """
CREATE TABLE messages (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, provider TEXT NOT NULL,
    role TEXT NOT NULL, content TEXT NOT NULL, tags TEXT NOT NULL, timestamp INTEGER NOT NULL,
    metadata TEXT NOT NULL, session_id TEXT
);
CREATE INDEX by_session ON messages (session_id, timestamp, id);
CREATE INDEX by_time ON messages (timestamp, id);
CREATE VIRTUAL TABLE texts USING fts5 (
    content, tags, content = 'messages', content_rowid = 'number', tokenize = 'porter unicode61'
);
CREATE TRIGGER inserted AFTER INSERT ON messages BEGIN
    INSERT INTO texts (rowid, content, tags) VALUES (new.number, new.content, new.tags);
END;
CREATE TRIGGER updated AFTER UPDATE ON messages BEGIN
    INSERT INTO texts (texts, rowid, content, tags)
        VALUES ('delete', old.number, old.content, old.tags);
    INSERT INTO texts (rowid, content, tags) VALUES (new.number, new.content, new.tags);
END;
"""
_POSTGRES = """
CREATE TABLE messages (
    id TEXT PRIMARY KEY, provider TEXT NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL,
    tags JSONB NOT NULL, timestamp TIMESTAMPTZ NOT NULL, metadata JSONB NOT NULL,
    session_id TEXT,
    search TSVECTOR GENERATED ALWAYS AS (to_tsvector('english', content)) STORED
);
CREATE INDEX by_session ON messages (session_id, timestamp, id);
CREATE INDEX by_time ON messages (timestamp, id);
CREATE INDEX by_tags ON messages USING GIN (tags jsonb_path_ops);
CREATE INDEX by_metadata ON messages USING GIN (metadata jsonb_path_ops);
CREATE INDEX by_text ON messages USING GIN (search);
"""
_SET = "UPDATE SET " + ", ".join(
    f"{name} = excluded.{name}"
    for name in ("provider", "role", "content", "tags", "timestamp", "metadata", "session_id")
)
_COLUMNS = "id, provider, role, content, tags, timestamp, metadata, session_id"
_INTO_SQLITE = (
    f"INSERT INTO messages ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "  # noqa: S608
    f"ON CONFLICT (id) DO {_SET}"
)
_INTO_POSTGRES = (
    f"INSERT INTO messages ({_COLUMNS}) VALUES "  # noqa: S608
    f"($1, $2, $3, $4, $5::jsonb, $6, $7::jsonb, $8) ON CONFLICT (id) DO {_SET}"
)


class _Servicer:
    def __init__(self, sqlite: aiosqlite.Connection | None, postgres: Any) -> None:
        self._sqlite = sqlite
        self._postgres = postgres
        # The connection has one transaction, which spans two awaits.
        self._turn = asyncio.Lock()

    async def Save(  # noqa: N802 - the name of the RPC
        self, request: storage_pb2.SaveRequest, context: object
    ) -> storage_pb2.SaveResponse:
        del context
        message = request.message
        texts = (message.id, message.provider, message.role, message.content)
        tags, metadata = json.dumps(list(message.tags)), message.metadata_json or "{}"
        if self._sqlite is not None:
            moment = message.timestamp.ToMicroseconds()
            row = (*texts, tags, moment, metadata, message.session_id)
            async with self._turn:
                await self._sqlite.execute(_INTO_SQLITE, row)
                await self._sqlite.commit()
        if self._postgres is not None:
            said = message.timestamp.ToDatetime(tzinfo=UTC)
            await self._postgres.execute(
                _INTO_POSTGRES, *texts, tags, said, metadata, message.session_id
            )
        return storage_pb2.SaveResponse(id=message.id, revision=1, created=True)


async def _sqlite(path: str | None) -> aiosqlite.Connection | None:
    if path is None:
        return None
    connection = await aiosqlite.connect(path)
    await connection.execute("PRAGMA journal_mode = WAL")
    await connection.execute("PRAGMA synchronous = FULL")
    await connection.executescript(_SQLITE)
    return connection


async def _postgres(dsn: str | None) -> Any:
    if dsn is None:
        return None
    pool = await asyncpg.create_pool(dsn, min_size=20, max_size=20)
    await pool.execute(_POSTGRES)
    return pool


async def main() -> None:
    """Serve until the process ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sqlite")
    parser.add_argument("--postgres")
    given = parser.parse_args()
    server = aio.server()
    servicer = _Servicer(await _sqlite(given.sqlite), await _postgres(given.postgres))
    save = grpc.unary_unary_rpc_method_handler(
        servicer.Save,
        request_deserializer=storage_pb2.SaveRequest.FromString,
        response_serializer=storage_pb2.SaveResponse.SerializeToString,
    )
    service = grpc.method_handlers_generic_handler("sagastore.v1.StorageService", {"Save": save})
    server.add_generic_rpc_handlers((service,))
    await announced(server)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
