"""Upgrade of a file of schema version 3: its row numbers become the sequences."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sagastore_server.sqlite import files
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.model import OnConflict
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Scan
from sagastore_server.storage.replication import MigrationState
from tests.support.backends import opened
from tests.support.drafts import draft, found, lone
from tests.support.old_stores import OldRow, make_sqlite
from tests.support.reanalysis import analysed

ROWS = [OldRow(2, "z", 2), OldRow(5, "a", 11), OldRow(9, "m", 9), OldRow(40, "b", 12)]
"""With gaps, and with a number above the counter of revisions."""
LAST_REVISION = 12


async def _listed(store: StorageBackend) -> list[tuple[str, int]]:
    page = await store.list_session("s-1", Scan(False, 100))
    back = await store.list_session("s-1", Scan(True, 100))
    assert back.messages == page.messages[::-1]
    return [(message.id, message.sequence) for message in page.messages]


async def test_order_of_rows_is_kept_and_new_messages_follow(path: Path) -> None:
    make_sqlite(path, ROWS, LAST_REVISION)
    old = [(row.id, row.number) for row in ROWS]
    async with opened(lambda: SQLiteStorage(path)) as store:
        assert (await store.health()).schema_version == files.SCHEMA_VERSION
        assert await _listed(store) == old
        assert await store.last_sequence() == 40
        assert [one.id for one in (await store.scan_sequences(2, 9, 9)).messages] == ["a", "m"]
        await analysed(store)
        assert await found(store, "fox") == ["z", "a", "m", "b"]
        assert (await store.save(draft("a", "a new fox"))).revision == 41
        await store.bulk_save([draft("y", "fox"), draft("c", "fox")], OnConflict.REPLACE)
        assert await _listed(store) == [*old, ("y", 42), ("c", 43)]
        await store.delete("z")
        await store.save(draft("z", "fox"))
        expected = [*old[1:], ("y", 42), ("c", 43), ("z", 46)]
        assert await _listed(store) == expected
        assert await found(store, "fox") == [key for key, _ in expected]
    async with opened(lambda: SQLiteStorage(path)) as store:
        assert await _listed(store) == expected


async def test_deleted_last_number_is_not_used_again(path: Path) -> None:
    make_sqlite(path, ROWS, LAST_REVISION)
    async with opened(lambda: SQLiteStorage(path)) as store:
        await store.delete("b")
    async with opened(lambda: SQLiteStorage(path)) as store:
        await store.save(draft("new"))
        assert (await store.get("new")).sequence > 40


async def test_number_of_messages_is_counted(path: Path) -> None:
    make_sqlite(path, ROWS, LAST_REVISION)
    async with opened(lambda: SQLiteStorage(path)) as store:
        await store.delete("z")
        await store.bulk_save([draft("a"), draft("n-1"), draft("n-2")], OnConflict.REPLACE)
        assert store._open_writer().rows == 5  # type: ignore[attr-defined]
    with closing(sqlite3.connect(path)) as connection:
        count = "SELECT value FROM store_state WHERE name = 'messages'"
        assert connection.execute(count).fetchone() == (5,)


@pytest.mark.parametrize("revision", [LAST_REVISION, 100])
async def test_counter_of_revisions_never_decreases(path: Path, revision: int) -> None:
    make_sqlite(path, ROWS, revision)
    async with opened(lambda: SQLiteSource(path)) as store:
        assert isinstance(store, SQLiteSource)
        last = max(revision, 40)
        assert store.committed == last
        await store.set_state(MigrationState(Phase.DUAL_WRITE), rejournal_after=last)
        await store.save(lone("new"))
        # The session of the old messages is journalled again, as a target may lack it.
        entries = [entry[:2] for entry in await store.journal(0, 9)]
        assert entries == [(last + 1, "s-1"), (last + 2, "new")]


async def test_empty_file_is_upgraded(path: Path) -> None:
    make_sqlite(path, [], 0)
    async with opened(lambda: SQLiteStorage(path)) as store:
        assert await store.last_sequence() == 0
        await store.save(draft("new"))
        assert await _listed(store) == [("new", 1)]
