"""Stores as servers of a former analysis version left them, and the end of a reanalysis."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagastore_server.postgresql import reanalysis as postgresql_reanalysis
from sagastore_server.sqlite import files
from sagastore_server.sqlite import reanalysis as sqlite_reanalysis
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.base import StorageBackend
from tests.support.postgres import execute
from tests.support.waiting import until

if TYPE_CHECKING:
    import pytest

FORMER_TERM = "formerterm"
"""A term that only the index of a former version has, for every message."""

FORMER = {
    "Acme™ sells Gizmo™": "acmetm sell gizmotm",
    "see the statement¹ and proof²": "see the statement1 and proof2",
    "$E = mc^2$ — a note": "e mc2 a note",
    "word`word2` ‹x›": "wordword2 x",
    "⚠️Warning: disk full": "⚠ \ufe0fwarning disk full",
    "1️⃣ First step": "1\ufe0f\u20e3 first step",
}
"""Contents, and the terms that analysis version 2 gave them."""


async def analysed(*stores: StorageBackend) -> None:
    """Wait until all messages are analysed by the present version."""
    await until(lambda: all(store.reanalysis is None for store in stores))


class Gate:
    """Holds every reanalysis of this process, and lets single steps pass."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._free = asyncio.Semaphore(0)
        self.passed = 0
        """Steps that have ended."""
        for module in (sqlite_reanalysis, postgresql_reanalysis):
            patch.setattr(module, "ROWS", 1)
            step = module.Reanalyser._step
            patch.setattr(module.Reanalyser, "_step", self._gated(step))

    def _gated(self, step: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def gated(*arguments: Any) -> Any:
            await self._free.acquire()
            result = await step(*arguments)
            self.passed += 1
            return result

        return gated

    async def let_pass(self, steps: int) -> None:
        """Let that many steps pass, and wait for them; each analyses one message."""
        expected = self.passed + steps
        for _ in range(steps):
            self._free.release()
        await until(lambda: self.passed >= expected)

    def open(self) -> None:
        """Let all steps pass."""
        for _ in range(10_000):
            self._free.release()

    def close(self) -> None:
        """Hold further steps, which no store is waiting for."""
        self._free = asyncio.Semaphore(0)


async def reanalysis_ended(store: StorageBackend) -> None:
    """Wait until the former index of a SQLite store is deleted, too."""
    assert isinstance(store, SQLiteStorage)
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
        rows = connection.execute("SELECT number, content FROM messages").fetchall()
        connection.executemany(
            "INSERT INTO messages_fts (rowid, stems) VALUES (?, ?)",
            [(number, f"{FORMER.get(content, '')} {FORMER_TERM}") for number, content in rows],
        )
        connection.execute("COMMIT")


async def set_back_postgresql_analysis(dsn: str, version: str = "2/snowball/unicode") -> None:
    """Do the same with a database that no server uses."""
    known = [
        f"UPDATE messages SET terms = ' {terms} {FORMER_TERM} ',"
        f" search = array_to_tsvector(string_to_array('{terms} {FORMER_TERM}', ' '))"
        f" WHERE content = '{content}'"
        for content, terms in FORMER.items()
    ]
    await execute(
        dsn,
        # Without the guard of a migration.
        "BEGIN; SET LOCAL session_replication_role = replica;"
        f"UPDATE messages SET terms = ' {FORMER_TERM} ', search = '{FORMER_TERM}', analysed_3 = 0;"
        f"{';'.join(known)};"
        f"UPDATE store_state SET value = '{version}' WHERE name = 'analysis'; COMMIT",
    )
