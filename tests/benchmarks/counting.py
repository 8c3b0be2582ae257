"""Counts the statements that the drivers send to the databases."""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Any

from sagastore_server.postgresql import pool
from sagastore_server.postgresql.connecting import WatchedConnection
from sagastore_server.postgresql.primary import Role

if TYPE_CHECKING:
    import pytest


class Work:
    """Statements by their first word; thread-safe."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    def reset(self) -> None:
        """Discard the counts."""
        self.statements.clear()

    @property
    def kinds(self) -> Counter[str]:
        """Number of executions of each kind: ``INSERT``, ``COMMIT``, ``COPY``, …"""
        return Counter(statement.split(None, 1)[0].upper() for statement in self.statements)

    @property
    def total(self) -> int:
        """Number of statements; for PostgreSQL, round trips."""
        return len(self.statements)


def count_sqlite(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Count every statement of every SQLite connection opened from now on.

    Statements of triggers are not counted; an ``executemany`` counts once per row.
    """
    work = Work()
    connect = sqlite3.connect

    def heard(statement: str) -> None:
        # SQLite reports the statement again for each trigger of a row, with the same values.
        if not statement.startswith("--") and work.statements[-1:] != [statement]:
            work.statements.append(statement)

    def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_trace_callback(heard)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connected)
    return work


def count_postgres(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Count the requests of pools opened from now on; each one is a round trip.

    The additional round trip to prepare a statement, once per connection, is not counted.
    """
    work = Work()
    prepare = pool.Pool._prepare
    copy = WatchedConnection.copy_records_to_table

    async def prepared(self: pool.Pool, connection: Any) -> Role:
        role = await prepare(self, connection)
        connection.add_query_logger(lambda asked: work.statements.append(_bare(asked.query)))
        return role

    async def copied(self: Any, *arguments: Any, **options: Any) -> Any:
        work.statements.append("COPY")
        return await copy(self, *arguments, **options)

    monkeypatch.setattr(pool.Pool, "_prepare", prepared)
    monkeypatch.setattr(WatchedConnection, "copy_records_to_table", copied)
    return work


def _bare(sql: str) -> str:
    """Return a statement without leading comments."""
    lines = sql.strip().splitlines()
    while lines[0].startswith("--"):
        lines.pop(0)
    return "\n".join(lines)
