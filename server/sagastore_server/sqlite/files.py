"""The schema of SagaStore files, and the classification of files given to the server.

`sagastore.legacy.database`, which imports share, defines what a file is and how it is opened
without changing it. While a connection of this process has a file open, open the file through
SQLite only: see there.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

from sagastore.legacy import database
from sagastore.legacy.database import (
    APPLICATION_ID,
    MAGIC,
    FileState,
    Kind,
    connect,
    damage,
    open_read_only,
    quoted,
    scalar,
    state_of,
)
from sagastore_server.storage.errors import CannotOpenError

__all__ = [
    "APPLICATION_ID",
    "MAGIC",
    "SCHEMA_VERSION",
    "FileState",
    "Kind",
    "apply_step",
    "classify",
    "connect",
    "damage",
    "names_made_by",
    "open_read_only",
    "quoted",
    "register_owner_function",
    "scalar",
    "schema_steps",
    "state_of",
]


@cache
def schema_steps() -> dict[int, str]:
    """Return the SQL of the schema steps by number, in order: ``schema/NNNN_*.sql``."""
    folder = resources.files(__package__) / "schema"
    steps = {
        int(file.name[:4]): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    }
    return dict(sorted(steps.items()))


SCHEMA_VERSION = max(schema_steps())
"""Schema version of this server; ``user_version`` of its files."""


def apply_step(connection: sqlite3.Connection, number: int) -> None:
    """Run one schema step in the caller's transaction.

    It also sets the application id and the version, which SQLite rolls back with the
    transaction. The connection needs ``register_owner_function``.
    """
    for statement in _statements(schema_steps()[number]):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {number}")


@cache
def names_made_by(first: int, last: int) -> frozenset[str]:
    """Return the lower-case names of the schema objects of steps ``first`` to ``last``."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        register_owner_function(connection)
        before: set[str] = set()
        for number in range(1, last + 1):
            if number == first:
                before = _names(connection)
            apply_step(connection, number)
        return frozenset(_names(connection) - before)


def _names(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT lower(name) FROM sqlite_master")}


def register_owner_function(connection: sqlite3.Connection) -> None:
    """Let ``connection`` pass the guard triggers, which refuse all other writers."""
    connection.create_function("sagastore_server_owns_this_file", 0, lambda: 1, deterministic=True)


def _statements(script: str) -> Iterator[str]:
    """Split a script: ``executescript`` would commit the caller's transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        # complete_statement does not split at the statements inside a trigger.
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        raise AssertionError("a schema step ends inside of a statement")


def classify(path: Path, *, check: bool = False, recover: bool = False) -> FileState:
    """Classify the file at ``path``, see `sagastore.legacy.database.classify`.

    Raises:
        CannotOpenError: The file is unreadable: no permission, a folder, or locked.

    """
    try:
        return database.classify(path, check=check, recover=recover)
    except database.UnreadableFileError as exc:
        raise CannotOpenError(str(exc)) from exc
