"""Plan of a legacy import: which schema objects of the file it drops, keeps and renames."""

from __future__ import annotations

import sqlite3
from typing import Any, NamedTuple

from sagastore_server.sqlite.files import SCHEMA_VERSION, names_made_by, quoted, scalar
from sagastore_server.sqlite.legacy.table import LegacyTable
from sagastore_server.storage.errors import CannotOpenError

_LEGACY_INDEXES = frozenset(
    {
        "idx_messages_provider",
        "idx_messages_timestamp",
        "idx_messages_session",
        "idx_files_type",
        "idx_files_uploaded",
    }
)
_CONVERTED = frozenset({"messages", "files"})
"""The legacy tables."""

_TEXT_INDEXES = ("messages_fts", "files_fts")
_SHADOWS = ("_data", "_idx", "_content", "_docsize", "_config")


class SchemaObject(NamedTuple):
    """A table, index, trigger or view."""

    type: str
    name: str
    sql: str
    """The CREATE statement."""


class Plan(NamedTuple):
    """Schema objects of a legacy file that an import drops or keeps."""

    text_indexes: tuple[str, ...]
    """Legacy full-text tables: dropped, because nothing kept them up to date."""
    dropped: tuple[SchemaObject, ...]
    """Indexes and triggers on ``messages`` and ``files``: dropped with the tables."""
    kept: tuple[SchemaObject, ...]
    """Unknown objects: kept."""
    has_files: bool
    extra_columns: tuple[str, ...]
    missing_columns: tuple[str, ...]
    user_version: int

    @property
    def unusual(self) -> tuple[SchemaObject, ...]:
        """Dropped objects that the legacy application did not create."""
        return tuple(found for found in self.dropped if found.name not in _LEGACY_INDEXES)

    def as_json(self) -> dict[str, Any]:
        """Return the record for ``store_state``."""
        return {
            "extra_columns": list(self.extra_columns),
            "missing_columns": list(self.missing_columns),
            "dropped": [found._asdict() for found in self.unusual],
            "left_alone": [found.name for found in self.kept],
            "user_version": self.user_version,
        }

    def apply(self, connection: sqlite3.Connection, name: str) -> None:
        """Drop the objects and rename ``messages`` to ``name``, in the caller's transaction."""
        for text_index in self.text_indexes:
            _drop_text_index(connection, text_index)
        for found in self.dropped:
            connection.execute(f"DROP {found.type} main.{quoted(found.name)}")
        connection.execute(f"ALTER TABLE main.messages RENAME TO {quoted(name)}")


def make_plan(connection: sqlite3.Connection) -> Plan:
    """Make the plan for a legacy file.

    Raises:
        CannotOpenError: A schema object has a name that SagaStore needs, or ``messages`` has no
            rowid.

    """
    found = [
        (SchemaObject(kind, name, sql), table)
        for kind, name, sql, table in connection.execute(
            "SELECT type, name, sql, tbl_name FROM main.sqlite_master WHERE sql IS NOT NULL"
        )
    ]
    text_indexes = tuple(item.name for item, _ in found if _is_text_index(item))
    shadows = {name + suffix for name in text_indexes for suffix in _SHADOWS}
    dropped, kept = [], []
    for item, table in found:
        if item.type in {"index", "trigger"} and table.lower() in _CONVERTED:
            dropped.append(item)
        elif item.name not in shadows and item.name not in text_indexes and not _is_ours(item):
            kept.append(item)
    _require_free_names(kept)
    columns = LegacyTable(connection)
    return Plan(
        text_indexes,
        tuple(dropped),
        tuple(item for item in kept if not item.name.startswith("sqlite_")),
        any(item.name.lower() == "files" for item, _ in found),
        columns.extra,
        columns.missing,
        scalar(connection, "PRAGMA user_version"),
    )


def _is_text_index(item: SchemaObject) -> bool:
    words = item.sql.lower().split()
    return item.name in _TEXT_INDEXES and words[:2] == ["create", "virtual"]


def _is_ours(item: SchemaObject) -> bool:
    """Return whether it is one of the legacy tables."""
    return item.type == "table" and item.name.lower() in _CONVERTED


def _require_free_names(kept: list[SchemaObject]) -> None:
    needed = names_made_by(1, SCHEMA_VERSION)
    for item in kept:
        if item.name.lower() in needed:
            raise CannotOpenError(
                f"its {item.type} {item.name} has a name that SagaStore needs; rename it first"
            )


def _drop_text_index(connection: sqlite3.Connection, name: str) -> None:
    try:
        connection.execute(f"DROP TABLE main.{quoted(name)}")
    except sqlite3.DatabaseError:
        # FTS5 cannot open the index because its internal tables are damaged. Remove its schema
        # entry; the remaining internal tables are ordinary ones.
        _remove_schema_entry(connection, name)
    for suffix in _SHADOWS:
        connection.execute(f"DROP TABLE IF EXISTS main.{quoted(name + suffix)}")


def _remove_schema_entry(connection: sqlite3.Connection, name: str) -> None:
    connection.execute("PRAGMA writable_schema = ON")
    try:
        connection.execute("DELETE FROM main.sqlite_master WHERE name = ?", (name,))
    finally:
        # RESET also reloads the schema.
        connection.execute("PRAGMA writable_schema = RESET")
