"""Schema of the file: lock-out of other writers, supported versions, upgrade steps."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sagastore_server.search.analysis import ANALYSIS_VERSION
from sagastore_server.sqlite import files
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.legacy.file_conversion import convert_files
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.errors import CannotOpenError
from sagastore_server.storage.files import File
from sagastore_server.storage.model import OnConflict
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Criteria
from sagastore_server.storage.replication import MigrationState
from tests.support.backends import opened
from tests.support.drafts import draft, found
from tests.support.reanalysis import analysed, reanalysis_ended


async def _filled(path: Path) -> None:
    async with opened(lambda: SQLiteStorage(path)) as store:
        drafts = [
            draft("a", "running foxes", tags=("t",), metadata='{"k": 1}'),
            draft("b", "a lazy dog"),
        ]
        await store.bulk_save(drafts, OnConflict.REPLACE)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO messages SELECT * FROM messages LIMIT 0, 1",
        "UPDATE messages SET content = 'changed'",
        "DELETE FROM messages",
        "REPLACE INTO messages SELECT * FROM messages",
        "INSERT INTO files VALUES ('f', 'f', 'f', 't', '', '', 0, 1, '', 1, 1, '')",
        "INSERT INTO journal VALUES (99, 'a', 1, 1, 0)",
        "UPDATE journal SET id = 'b'",
        "DELETE FROM journal WHERE sequence > 0",
    ],
    ids=lambda statement: " ".join(statement.split()[:3]),
)
@pytest.mark.parametrize("while_open", [True, False])
async def test_foreign_writers_are_locked_out(path: Path, statement: str, while_open: bool) -> None:
    await _filled(path)
    store = SQLiteSource(path)
    await store.open()
    await store.set_state(MigrationState(Phase.DUAL_WRITE), rejournal_after=0)
    if not while_open:
        await store.close()
    try:
        with (
            closing(sqlite3.connect(path)) as plain,
            pytest.raises(sqlite3.OperationalError, match="sagastore_server_owns_this_file"),
        ):
            plain.execute(statement)
    finally:
        await store.close()
    async with opened(lambda: SQLiteSource(path)) as again:
        assert await found(again, "") == ["a", "b"]
        assert isinstance(again, SQLiteSource)
        assert [entry.id for entry in await again.journal(0, 9)] == ["a", "b"]


async def test_newer_schema_is_refused_unchanged(path: Path) -> None:
    await _filled(path)
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("PRAGMA user_version = 99")
    before = _digest(path)
    store = SQLiteStorage(path)
    with pytest.raises(CannotOpenError, match="99") as caught:
        await store.open()
    assert "\n" not in str(caught.value)
    assert _digest(path) == before


@pytest.mark.parametrize(
    "content", [b"not a database", b"SQLite format 3\x00" + b"garbage" * 200], ids=["text", "torn"]
)
async def test_non_database_is_refused_unchanged(path: Path, content: bytes) -> None:
    await asyncio.to_thread(path.write_bytes, content)
    with pytest.raises(CannotOpenError):
        await SQLiteStorage(path).open()
    assert await asyncio.to_thread(path.read_bytes) == content


async def test_foreign_database_is_refused_unchanged(path: Path) -> None:
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("CREATE TABLE something (x)")
    before = _digest(path)
    with pytest.raises(CannotOpenError):
        await SQLiteStorage(path).open()
    assert _digest(path) == before


async def test_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CannotOpenError, match="folder"):
        await SQLiteStorage(tmp_path / "missing" / "messages.db").open()


async def test_index_of_other_analysis_is_rebuilt(path: Path) -> None:
    await _filled(path)
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("UPDATE store_state SET value = 'older' WHERE name = 'analysis'")
        # As an older analysis would have left it: other terms for the same rows.
        plain.execute("INSERT INTO messages_fts (messages_fts) VALUES ('delete-all')")
        plain.execute("INSERT INTO messages_fts (rowid, stems) VALUES (1, 'old')")
        plain.commit()
    async with opened(lambda: SQLiteStorage(path)) as store:
        await analysed(store)
        assert await found(store, "run fox") == ["a"]
        assert await found(store, "lazy") == ["b"]
        assert await found(store, "old") == []
        assert await found(store, Criteria(tags=("t",), metadata='{"k": 1}')) == ["a"]
        await store.delete("a")
        assert await found(store, "run") == []
    with closing(sqlite3.connect(path)) as plain:
        row = plain.execute("SELECT value FROM store_state WHERE name = 'analysis'").fetchone()
    assert row == (ANALYSIS_VERSION,)


def _shape(path: Path) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(path)) as plain:
        return plain.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2"
        ).fetchall()


async def test_fresh_schema_equals_replayed_steps(path: Path, tmp_path: Path) -> None:
    await _filled(path)
    stepwise = tmp_path / "steps.db"
    with closing(sqlite3.connect(stepwise, isolation_level=None)) as connection:
        for number in range(1, files.SCHEMA_VERSION + 1):
            files.apply_step(connection, number)
            assert connection.execute("PRAGMA user_version").fetchone() == (number,)
        convert_files(connection, 0)
    assert _shape(stepwise) == _shape(path)


FILE = File(
    "f", "f.md", "/f", "md", "t", (), 1, 1_743_465_600_000_000, "{}", None, 8
)  # fmt: skip


def _old_file(old: Path, version: int) -> None:
    """Create a file as a server with that schema leaves it, with rows in every table."""
    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        files.register_owner_function(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN")
        for number in range(1, version + 1):
            files.apply_step(connection, number)
        connection.executemany(
            "INSERT INTO store_state VALUES (?, ?)",
            [("revision", 7), ("analysis", "older"), ("store_id", "the-id")],
        )
        connection.executemany(
            "INSERT INTO messages VALUES (?, ?, 'openai', 'user', ?, '[]', 5, '{}', 's', 6, ?)",
            [(1, "a", "running foxes", 3), (2, "b", "a lazy dog", 7)],
        )
        connection.execute("INSERT INTO tombstones VALUES ('gone', 5, 1)")
        connection.execute(
            "INSERT INTO quarantine VALUES (1, 'messages/rowid=9', 'odd', 'tags', '{}')"
        )
        connection.execute("INSERT INTO legacy_extra VALUES ('a', 'mood', x'00ff')")
        time = "'2025-04-01'" if version < 6 else "1743465600000000"
        more = "" if version < 6 else ", 8, '{}'"
        connection.execute(
            "INSERT INTO files VALUES"
            f" ('f', 'f.md', '/f', 'md', 't', '[]', 1, {time}, '{{}}', NULL{more})"
        )
        if version >= 6:
            connection.execute("DROP TABLE files_before_sagastore")
            connection.execute("UPDATE store_state SET value = 8 WHERE name = 'revision'")
        connection.execute("COMMIT")


@pytest.mark.parametrize("version", range(1, files.SCHEMA_VERSION))
async def test_older_schema_is_upgraded(path: Path, version: int) -> None:
    """From each earlier version, with its data."""
    await _filled(path)
    old = path.with_name("old.db")
    _old_file(old, version)
    for _ in range(2):
        async with opened(lambda: SQLiteSource(old)) as store:
            assert isinstance(store, SQLiteSource)
            assert (await store.health()).schema_version == files.SCHEMA_VERSION
            assert store.store_id == "the-id"
            assert store.committed == 8
            await reanalysis_ended(store)
            assert await found(store, "run") == ["a"]
            assert [row.source_key for row in await store.quarantine(0, 9)] == ["messages/rowid=9"]
            assert await store.get_file("f") == FILE
            assert await store.extras(("", ""), 9) == [
                ("a", "mood", '{"value": {"base64": "AP8="}}')
            ]
            assert await store.state() == MigrationState()
            assert await store.journal_status(0) == (0, None, 0)
    assert _shape(old) == _shape(path)
    # What was there before the journal is journalled where a target lacks it.
    async with opened(lambda: SQLiteSource(old)) as store:
        assert isinstance(store, SQLiteSource)
        assert await store.set_state(MigrationState(Phase.DUAL_WRITE), rejournal_after=3) == 8
        entries = [entry[:2] for entry in await store.journal(0, 9)]
        assert entries == [(5, "gone"), (7, "b"), (8, "f")]


async def test_conflicting_object_name_is_reported(path: Path) -> None:
    """An object that an import by an older server kept may conflict with a newer schema."""
    _old_file(path, 1)
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("CREATE TABLE Journal (entry)")
    with pytest.raises(CannotOpenError, match=r"its table Journal has a name.*rename it first"):
        await SQLiteStorage(path).open()
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("PRAGMA user_version").fetchone() == (1,)
        plain.execute("ALTER TABLE Journal RENAME TO my_journal")
    async with opened(lambda: SQLiteStorage(path)) as store:
        await analysed(store)
        assert await found(store, "lazy") == ["b"]
