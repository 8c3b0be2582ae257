"""Stores as servers of a former analysis version left them, and the end of a reanalysis."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from sagastore_server.sqlite import files
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.base import StorageBackend
from tests.support.postgres import execute
from tests.support.waiting import until

FORMER_TERM = "formerterm"
"""The only term that a former version gave every message."""


async def analysed(*stores: StorageBackend) -> None:
    """Wait until all messages are analysed by the present version."""
    await until(lambda: all(store.reanalysis is None for store in stores))


async def reanalysis_ended(store: SQLiteStorage) -> None:
    """Wait until the former index is deleted, too."""
    task = store._reanalyser._task
    await until(lambda: task is None or task.done)


def set_back_sqlite_analysis(path: Path, version: object = "2/snowball/unicode") -> None:
    """Give a closed file the index of a former version: FORMER_TERM for every message."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        files.register_owner_function(connection)
        connection.execute("BEGIN")
        connection.execute("UPDATE store_state SET value = ? WHERE name = 'analysis'", (version,))
        connection.execute("DELETE FROM store_state WHERE name LIKE 'reanalysis_%'")
        connection.execute("INSERT INTO messages_fts (messages_fts) VALUES ('delete-all')")
        connection.execute(
            "INSERT INTO messages_fts (rowid, stems) SELECT number, ? FROM messages", (FORMER_TERM,)
        )
        connection.execute("COMMIT")


async def set_back_postgresql_analysis(dsn: str, version: str = "2/snowball/unicode") -> None:
    """Do the same with a database that no server uses."""
    await execute(
        dsn,
        "BEGIN; SET LOCAL session_replication_role = replica;"
        f"UPDATE messages SET terms = ' {FORMER_TERM} ', search = '{FORMER_TERM}', analysed_3 = 0;"
        f"UPDATE store_state SET value = '{version}' WHERE name = 'analysis'; COMMIT",
    )
