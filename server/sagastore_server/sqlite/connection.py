"""Factory of connections with uniform settings."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagastore_server.sqlite.queries import STATEMENTS
from sagastore_server.storage.canonical_json import canonical_tags, contains, parse
from sagastore_server.storage.files import File
from sagastore_server.storage.model import Message
from sagastore_server.storage.sessions import Session, providers_from_json

if TYPE_CHECKING:
    import aiosqlite

BUSY_TIMEOUT_MS = 10_000
"""Milliseconds that a connection waits for a lock."""

WRITER_CACHE_KIB = 64 * 1024
READER_CACHE_KIB = 16 * 1024

LOG_BYTES = 64 * 1024 * 1024
"""Largest length of the log file after the log restarts (``checkpoint``)."""


def writer_connection(path: Path) -> sqlite3.Connection:
    """Open the only writing connection: WAL, and every commit is synced before it returns.

    Several threads may use it, one at a time. SQLite's automatic checkpoints are off; the
    checkpointer replaces them.
    """
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=STATEMENTS
    )
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA trusted_schema = ON")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
    connection.execute(f"PRAGMA cache_size = -{WRITER_CACHE_KIB}")
    return connection


async def prepare_reader(connection: aiosqlite.Connection) -> None:
    """Make a connection read-only and register the SQL functions."""
    await connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    await connection.execute("PRAGMA query_only = ON")
    await connection.execute(f"PRAGMA cache_size = -{READER_CACHE_KIB}")
    await connection.create_function("metadata_contains", 2, _metadata_contains, deterministic=True)


_read_json = json.JSONDecoder().raw_decode
"""Equals ``json.loads`` for a text without surrounding spaces, as stored here, in half the time."""


def message_from_row(row: Sequence[Any]) -> Message:
    """Return the message of a row in the column order of queries.sql."""
    tags = () if row[4] == "[]" else tuple(_read_json(row[4])[0])
    return Message._make((*row[:4], tags, *row[5:11]))


def session_from_row(row: Sequence[Any]) -> Session:
    """Return the session of a row in the column order of sessions.sql."""
    providers = providers_from_json(row[5])
    return Session._make((*row[:3], row[3] == 1, row[4], providers, *row[6:15]))


def session_columns(session: Session) -> tuple[object, ...]:
    """Return the columns of a session, in the order of sessions.sql."""
    providers = json.dumps(dict(session.providers), ensure_ascii=False)
    return (*session[:3], int(session.explicit), session.message_count, providers, *session[6:])


def file_from_row(row: Sequence[Any]) -> File:
    """Return the file record of a row in the column order of files.sql."""
    return File._make((*row[:5], tuple(json.loads(row[5])), *row[6:12]))


def file_columns(record: File) -> tuple[object, ...]:
    """Return the columns of a file record, in the order of files.sql."""
    return (*record[:5], canonical_tags(record.tags), *record[6:])


def _metadata_contains(metadata: str, part: str) -> bool:
    return contains(parse(metadata), parse(part))
