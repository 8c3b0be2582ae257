"""What a file remembers of a migration: the rows of ``store_state`` that tell of it."""

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
    """That the messages have moved elsewhere for good."""

    at: str
    """When, in ISO form, UTC."""
    file: str
    """The name that the file had then; under another one it is the archive."""


def load_state(connection: sqlite3.Connection) -> MigrationState:
    """Return what is remembered; the default where nothing is.

    Raises:
        CorruptStoreError: What is there is not what a server wrote.
        sqlite3.Error: It cannot be read.

    """
    text = read_value(connection, _STATE)
    return MigrationState() if text is None else state_from_json(str(text))


def save_state(connection: sqlite3.Connection, state: MigrationState) -> None:
    """Remember ``state``, in the caller's transaction."""
    write_value(connection, _STATE, _as_json(state))


def load_moved(connection: sqlite3.Connection) -> ArchiveMark | None:
    """Return when and from where the messages have moved, if they have.

    Raises:
        CorruptStoreError: What is there is not what a server wrote.
        sqlite3.Error: It cannot be read.

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
    """Remember that the messages have moved, in the caller's transaction."""
    write_value(connection, _MOVED, json.dumps(moved._asdict()))


def load_pruned(connection: sqlite3.Connection) -> int:
    """Return the sequence up to which the journal may have gaps."""
    value = read_value(connection, _PRUNED)
    return value if isinstance(value, int) else 0


def save_pruned(connection: sqlite3.Connection, sequence: int) -> None:
    """Remember up to which sequence the journal may have gaps, in the caller's transaction."""
    write_value(connection, _PRUNED, sequence)


def read_value(connection: sqlite3.Connection, name: str) -> object:
    """Return a fact about the store; None where it is not known."""
    row = connection.execute(QUERIES["get_state"], (name,)).fetchone()
    return None if row is None else row[0]


def write_value(connection: sqlite3.Connection, name: str, value: str | int) -> None:
    """Note a fact about the store, in the caller's transaction."""
    connection.execute(QUERIES["set_state"], (name, value))


def state_from_json(text: str) -> MigrationState:
    """Return the state that ``save_state`` wrote.

    Raises:
        CorruptStoreError: It did not.

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
        "what the SQLite store remembers of a migration cannot be read; an operator must restore it"
    )
