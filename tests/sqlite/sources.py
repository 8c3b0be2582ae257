"""Helpers for tests of a migration source: an open source, and the contents of its file."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import MigrationState

DUAL_WRITE = MigrationState(Phase.DUAL_WRITE, epoch=2)
SQLITE_ONLY = MigrationState(Phase.SQLITE_ONLY, epoch=3)


@contextlib.asynccontextmanager
async def opened_source(path: Path) -> AsyncIterator[SQLiteSource]:
    """Open a source for the duration of the context."""
    source = SQLiteSource(path)
    try:
        await source.open()
        yield source
    finally:
        await source.close()


class Content(NamedTuple):
    """Contents of the file as another connection reads them."""

    messages: dict[str, int]
    """Revision by id."""
    tombstones: dict[str, int]
    """Revision by id."""
    journal: dict[int, tuple[str, bool]]
    """Id and whether it is forced, by sequence."""
    revision: int
    files: dict[str, int]
    """Revision by id."""
    file_tombstones: dict[str, int]
    """Revision by id."""

    @property
    def revisions(self) -> dict[str, int]:
        """Latest revision of each changed id."""
        return self.tombstones | self.messages


def content(path: Path) -> Content:
    """Read the file on a new connection."""
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("BEGIN")
        return Content(
            dict(plain.execute("SELECT id, revision FROM messages")),
            dict(plain.execute("SELECT id, revision FROM tombstones")),
            {
                sequence: (key, bool(forced))
                for sequence, key, forced in plain.execute(
                    "SELECT sequence, id, forced FROM journal"
                )
            },
            plain.execute("SELECT value FROM store_state WHERE name = 'revision'").fetchone()[0],
            dict(plain.execute("SELECT id, revision FROM files")),
            dict(plain.execute("SELECT id, revision FROM file_tombstones")),
        )


async def in_one_group(
    source: SQLiteSource, writes: Sequence[Coroutine[Any, Any, Any]]
) -> list[Any]:
    """Run writes concurrently so that one transaction commits all of them."""
    assert source._writer is not None
    may_go = threading.Event()
    holding = asyncio.create_task(source._writer.run_between_groups(lambda _: may_go.wait()))
    tasks = [asyncio.create_task(write) for write in writes]
    # Each task runs until it waits for its answer; the held call came first.
    await asyncio.sleep(0)
    may_go.set()
    await holding
    return await asyncio.gather(*tasks, return_exceptions=True)


async def begin_dual_write(path: Path) -> None:
    """Enable the journal for all later changes of the store."""
    async with opened_source(path) as source:
        await source.set_state(DUAL_WRITE)
