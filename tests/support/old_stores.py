"""Stores as servers left them that had no sequences: SQLite schema 3, PostgreSQL schema 2."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from sagastore_server.postgresql.schema import STEPS
from sagastore_server.sqlite import files
from tests.support.drafts import NOW
from tests.support.postgres import execute

SQLITE, POSTGRESQL = 3, 2
"""The schema versions."""


_OLD_POSTGRESQL_FILES = """
CREATE TABLE files (
    id TEXT COLLATE "C" PRIMARY KEY, filename TEXT NOT NULL, filepath TEXT NOT NULL,
    file_type TEXT NOT NULL, extracted_text TEXT, tags TEXT, file_size BIGINT,
    uploaded_at TEXT NOT NULL, metadata TEXT, created_at TEXT, extra TEXT NOT NULL DEFAULT '{}'
);
"""


class OldRow(NamedTuple):
    """A message of session ``s-1``; all have equal timestamps."""

    number: int
    """Row number in SQLite."""
    id: str
    revision: int


def make_sqlite(path: Path, rows: Iterable[OldRow], revision: int) -> None:
    """Create a file whose counter of revisions is at ``revision``."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        files.register_owner_function(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        for number in range(1, SQLITE + 1):
            files.apply_step(connection, number)
        connection.executemany(
            "INSERT INTO store_state VALUES (?, ?)",
            [("revision", revision), ("analysis", "older"), ("store_id", "the-id")],
        )
        connection.executemany(
            "INSERT INTO messages VALUES "
            "(?, ?, 'openai', 'user', 'an old fox', '[]', ?, '{}', 's-1', 7, ?)",
            [(row.number, row.id, NOW, row.revision) for row in rows],
        )


async def make_postgresql(dsn: str, rows: Iterable[OldRow], revision: int) -> None:
    """Create a store whose last revision is ``revision``."""
    for number in range(1, POSTGRESQL + 1):
        await execute(dsn, STEPS[number - 1].sql)
        await execute(dsn, f"INSERT INTO sagastore_schema VALUES ({number}, {number})")
    await execute(dsn, f"SELECT setval('message_revisions', {revision})")
    await execute(dsn, "INSERT INTO store_state VALUES ('analysis', 'older')")
    for row in rows:
        await execute(
            dsn,
            f"INSERT INTO messages VALUES ('{row.id}', 'openai', 'user', 'an old fox', '[]', "
            f"to_timestamp({NOW // 1_000_000}), '{{}}', 's-1', now(), {row.revision}, '', '')",
        )


def set_back_sqlite(path: Path) -> None:
    """Give a file of the present schema the old one, as the former server would have left it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        files.register_owner_function(connection)
        connection.executescript(
            f"""
            BEGIN;
            DELETE FROM journal WHERE kind <> 0;
            ALTER TABLE journal DROP COLUMN kind;
            DROP TABLE sessions;
            DROP TABLE reanalysed;
            DROP TABLE file_tombstones;
            DROP TABLE files;
            {_old_files()}
            DROP INDEX idx_messages_session;
            CREATE INDEX idx_messages_session ON messages (session_id, timestamp, id)
                WHERE session_id IS NOT NULL;
            DROP INDEX idx_messages_timestamp;
            CREATE INDEX idx_messages_timestamp ON messages (timestamp, id);
            DELETE FROM store_state WHERE name = 'messages';
            PRAGMA user_version = {SQLITE};
            COMMIT;
            """
        )


def _old_files() -> str:
    """Return the statements that create the table ``files`` of the old schema of SQLite."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        files.register_owner_function(connection)
        for number in range(1, SQLITE + 1):
            files.apply_step(connection, number)
        made = "SELECT sql || ';' FROM sqlite_master WHERE tbl_name = 'files' AND sql IS NOT NULL"
        return "\n".join(sql for (sql,) in connection.execute(made))


async def set_back_postgresql(dsn: str) -> None:
    """Give a store, or a migration target, of the present schema the old one."""
    await execute(
        dsn,
        f"""
        BEGIN;
        DROP TABLE sessions, file_tombstones, files;
        {_OLD_POSTGRESQL_FILES}
        ALTER TABLE migration DROP COLUMN backfill_attempt;
        CREATE TEMPORARY TABLE had AS SELECT indexname FROM pg_indexes
            WHERE schemaname = current_schema() AND indexname = 'idx_messages_sequence';
        ALTER TABLE messages DROP COLUMN sequence, DROP COLUMN analysed_3;
        DO $$ BEGIN IF EXISTS (SELECT FROM had) THEN
            CREATE INDEX idx_messages_session ON messages (session_id, timestamp, id)
                WHERE session_id IS NOT NULL;
            CREATE INDEX idx_messages_timestamp ON messages (timestamp, id);
        END IF; END $$;
        ALTER SEQUENCE message_revisions INCREMENT BY 1;
        DELETE FROM sagastore_schema WHERE version > {POSTGRESQL};
        COMMIT
        """,
    )
