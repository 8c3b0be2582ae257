"""Migration state of a SagaStore file: its rows in the table ``store_state``."""

from __future__ import annotations

import json
import sqlite3
from typing import NamedTuple

from sagastore_server.sqlite.queries import QUERIES
from sagastore_server.storage.errors import CorruptStoreError
from sagastore_server.storage.migration import Verification
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import MigrationState

_STATE = "migration"
_MOVED = "moved"
_PRUNED = "journal_pruned"

_PHASES = {phase.slug: phase for phase in Phase}


class ArchiveMark(NamedTuple):
    """Mark in a file whose messages have moved to PostgreSQL."""

    at: str
    """Time of the move, ISO 8601, UTC."""
    file: str
    """Name of the file at that time. A file with the mark and another name is the archive."""


def load_state(connection: sqlite3.Connection) -> MigrationState:
    """Return the stored migration state, or the default if there is none.

    Raises:
        CorruptStoreError: The stored value is invalid.
        sqlite3.Error: The database is unreadable.

    """
    text = read_value(connection, _STATE)
    return MigrationState() if text is None else state_from_json(str(text))


def save_state(connection: sqlite3.Connection, state: MigrationState) -> None:
    """Store ``state`` in the caller's transaction."""
    write_value(connection, _STATE, _as_json(state))


def load_moved(connection: sqlite3.Connection) -> ArchiveMark | None:
    """Return the mark of a file whose messages have moved, or None.

    Raises:
        CorruptStoreError: The stored value is invalid.
        sqlite3.Error: The database is unreadable.

    """
    text = read_value(connection, _MOVED)
    if text is None:
        return None
    try:
        found = json.loads(str(text))
        return ArchiveMark(str(found["at"]), str(found["file"]))
    except (ValueError, KeyError, TypeError) as exc:
        raise _unreadable() from exc


def save_moved(connection: sqlite3.Connection, moved: ArchiveMark) -> None:
    """Store the mark in the caller's transaction."""
    write_value(connection, _MOVED, json.dumps(moved._asdict()))


def load_pruned(connection: sqlite3.Connection) -> int:
    """Return the sequence up to which the journal may have gaps."""
    value = read_value(connection, _PRUNED)
    return value if isinstance(value, int) else 0


def save_pruned(connection: sqlite3.Connection, sequence: int) -> None:
    """Store the sequence up to which the journal may have gaps, in the caller's transaction."""
    write_value(connection, _PRUNED, sequence)


def read_value(connection: sqlite3.Connection, name: str) -> object:
    """Return a value of ``store_state``, or None."""
    row = connection.execute(QUERIES["get_state"], (name,)).fetchone()
    return None if row is None else row[0]


def write_value(connection: sqlite3.Connection, name: str, value: str | int) -> None:
    """Store a value of ``store_state`` in the caller's transaction."""
    connection.execute(QUERIES["set_state"], (name, value))


def state_from_json(text: str) -> MigrationState:
    """Return the state that ``save_state`` wrote.

    Raises:
        CorruptStoreError: The text is invalid.

    """
    try:
        found = json.loads(text)
        found["phase"] = _PHASES[found["phase"]]
        if found["last_verification"] is not None:
            found["last_verification"] = Verification(**found["last_verification"])
        return MigrationState(**found)
    except (ValueError, KeyError, TypeError) as exc:
        raise _unreadable() from exc


def _as_json(state: MigrationState) -> str:
    last = state.last_verification
    return json.dumps(
        state._asdict()
        | {
            "phase": state.phase.slug,
            "last_verification": None if last is None else last._asdict(),
        }
    )


def _unreadable() -> CorruptStoreError:
    return CorruptStoreError(
        "the migration state of the SQLite store is unreadable; restore the store from a backup"
    )
