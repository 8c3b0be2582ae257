"""Conversion of the former table ``files`` into file records, in the caller's transaction.

Schema step 6 renames the table. Its rows become records, or go to quarantine with their raw values,
and the table is dropped.
"""

from __future__ import annotations

import sqlite3
import time
from typing import NamedTuple

from sagastore_server.sqlite.connection import file_columns
from sagastore_server.sqlite.files import quoted
from sagastore_server.sqlite.legacy.files import FileVerdict, LegacyFiles
from sagastore_server.sqlite.migration_state import load_state, write_value
from sagastore_server.sqlite.queries import QUERIES

FORMER = "files_before_sagastore"
"""Name of the former table after schema step 6."""

_GUARDS = frozenset({"files_insert_guard", "files_update_guard", "files_delete_guard"})


class ConvertedFiles(NamedTuple):
    """Result of a conversion."""

    served: int
    quarantined: int
    revision: int
    """The last revision assigned."""


def drop_objects_of_files(connection: sqlite3.Connection) -> None:
    """Drop the indexes and triggers of ``files``, except those that schema step 6 drops."""
    found = connection.execute(
        "SELECT type, name FROM main.sqlite_master"
        " WHERE type IN ('index', 'trigger') AND lower(tbl_name) = 'files' AND sql IS NOT NULL"
    ).fetchall()
    for kind, name in found:
        if name not in _GUARDS:
            connection.execute(f"DROP {kind} main.{quoted(name)}")


def convert_files(connection: sqlite3.Connection, revision: int) -> ConvertedFiles:
    """Convert the rows of ``FORMER`` in the order of their rowids, and drop it.

    The records get the revisions after ``revision``.
    """
    served = quarantined = 0
    for verdict in LegacyFiles(connection, FORMER).verdicts():
        if verdict.problems:
            quarantined += 1
            _quarantine(connection, verdict)
        else:
            served += 1
            record = verdict.record._replace(revision=revision + served)
            connection.execute(QUERIES["upsert_files"], file_columns(record))
    connection.execute(f"DROP TABLE main.{FORMER}")
    return ConvertedFiles(served, quarantined, revision + served)


def upgrade_files(connection: sqlite3.Connection) -> None:
    """Convert the former table of a SagaStore file, after schema step 6.

    Rows that an earlier version has quarantined are still in the table, and are judged again.
    During a migration the new records are journalled.
    """
    connection.execute("DELETE FROM quarantine WHERE source_key GLOB 'files/row*'")
    (last,) = connection.execute(QUERIES["get_state"], ("revision",)).fetchone()
    done = convert_files(connection, last)
    write_value(connection, "revision", done.revision)
    if load_state(connection).phase.journals:
        connection.execute(QUERIES["rejournal_files"], (last, time.time_ns() // 1000))


def _quarantine(connection: sqlite3.Connection, verdict: FileVerdict) -> None:
    connection.execute(
        "INSERT INTO main.quarantine (source_key, reason, field, row) VALUES (?, ?, ?, ?)",
        (verdict.source_key, verdict.reason, verdict.problems[0].field, verdict.raw),
    )
