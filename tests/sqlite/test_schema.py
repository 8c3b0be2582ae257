"""The file: who may write it, which versions are opened, and what it is built from."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sagastore_server.search.analysis import FINGERPRINT
from sagastore_server.sqlite import files
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.errors import CannotOpenError
from sagastore_server.storage.model import OnConflict
from sagastore_server.storage.query import Criteria
from tests.support.backends import opened
from tests.support.drafts import draft, found


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
        "INSERT INTO files VALUES ('f', 'f', 'f', 't', '', '', 0, 1, '', 1)",
    ],
    ids=lambda statement: " ".join(statement.split()[:3]),
)
@pytest.mark.parametrize("while_open", [True, False])
async def test_other_writers_are_shut_out(path: Path, statement: str, while_open: bool) -> None:
    await _filled(path)
    store = SQLiteStorage(path)
    if while_open:
        await store.open()
    try:
        with (
            closing(sqlite3.connect(path)) as plain,
            pytest.raises(sqlite3.OperationalError, match="sagastore_server_owns_this_file"),
        ):
            plain.execute(statement)
    finally:
        await store.close()
    async with opened(lambda: SQLiteStorage(path)) as again:
        assert await found(again, "") == ["a", "b"]


async def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
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
async def test_what_is_no_database_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    await asyncio.to_thread(path.write_bytes, content)
    with pytest.raises(CannotOpenError):
        await SQLiteStorage(path).open()
    assert await asyncio.to_thread(path.read_bytes) == content


async def test_a_foreign_database_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("CREATE TABLE something (x)")
    before = _digest(path)
    with pytest.raises(CannotOpenError):
        await SQLiteStorage(path).open()
    assert _digest(path) == before


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotOpenError, match="folder"):
        await SQLiteStorage(tmp_path / "missing" / "messages.db").open()


async def test_an_index_of_another_analysis_is_built_anew(path: Path) -> None:
    await _filled(path)
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("UPDATE store_state SET value = 'older' WHERE name = 'analysis'")
        # As an older analysis would have left it: other terms for the same rows.
        plain.execute("INSERT INTO messages_fts (messages_fts) VALUES ('delete-all')")
        plain.execute("INSERT INTO messages_fts (rowid, stems) VALUES (1, 'old')")
        plain.commit()
    heard: list[tuple[str, int, int]] = []
    store = SQLiteStorage(path, lambda *progress: heard.append(progress))
    async with opened(lambda: store):
        assert await found(store, "run fox") == ["a"]
        assert await found(store, "lazy") == ["b"]
        assert await found(store, "old") == []
        assert await found(store, Criteria(tags=("t",), metadata='{"k": 1}')) == ["a"]
        await store.delete("a")
        assert await found(store, "run") == []
    assert heard
    with closing(sqlite3.connect(path)) as plain:
        row = plain.execute("SELECT value FROM store_state WHERE name = 'analysis'").fetchone()
    assert row == (FINGERPRINT,)


def _shape(path: Path) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(path)) as plain:
        return plain.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2"
        ).fetchall()


async def test_a_new_file_equals_the_steps_one_by_one(path: Path, tmp_path: Path) -> None:
    await _filled(path)
    stepwise = tmp_path / "steps.db"
    with closing(sqlite3.connect(stepwise, isolation_level=None)) as connection:
        for number in range(1, files.SCHEMA_VERSION + 1):
            files.apply_step(connection, number)
            assert connection.execute("PRAGMA user_version").fetchone() == (number,)
    assert _shape(stepwise) == _shape(path)


async def test_an_older_schema_is_brought_up_to_date(path: Path) -> None:
    """From each version there was, with what was in it."""
    await _filled(path)
    for version in range(1, files.SCHEMA_VERSION):
        old = path.with_name(f"old-{version}.db")
        with closing(sqlite3.connect(old, isolation_level=None)) as connection:
            for number in range(1, version + 1):
                files.apply_step(connection, number)
        async with opened(lambda old=old: SQLiteStorage(old)) as store:  # type: ignore[misc]
            assert (await store.health()).schema_version == files.SCHEMA_VERSION
        assert _shape(old) == _shape(path)
