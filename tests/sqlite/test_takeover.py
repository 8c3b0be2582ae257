"""Import of a legacy file: each row is served unchanged or quarantined."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore.legacy import Text, raw_row_as_json
from sagastore_server.runtime.worker_pool import MANY, WorkerPool
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.files import Kind, classify
from sagastore_server.sqlite.legacy.copy import fingerprint
from sagastore_server.sqlite.legacy.importer import TakeoverReport, take_over
from sagastore_server.sqlite.legacy.report import look_into
from sagastore_server.sqlite.legacy.rows import read_copy
from sagastore_server.sqlite.legacy.table import LegacyTable
from sagastore_server.storage.errors import CannotOpenError
from tests.support.backends import opened
from tests.support.drafts import found
from tests.support.legacy_db import (
    MESSAGES,
    PLAIN,
    RawText,
    contents_of,
    insert,
    legacy_db,
    numbered,
)
from tests.support.legacy_sample import legacy_sample
from tests.support.strategies import storable_text

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        yield connection


def quarantine(path: Path) -> dict[str, tuple[str, str, Any]]:
    with reading(path) as connection:
        rows = connection.execute("SELECT source_key, field, reason, row FROM quarantine")
        return {key: (field, reason, json.loads(row)) for key, field, reason, row in rows}


def test_batch_size_shrinks_for_large_rows(path: Path) -> None:
    legacy_db(path, (row | {"content": "x" * 1_500_000} for row in numbered(8)))
    with reading(path) as connection:
        table = LegacyTable(connection)
        sizes = [len(rows) for rows in table.rows(connection)]
        assert sizes == [len(rowids) for rowids in table.rowids(connection)] == [3, 3, 2]
    assert take_over(path).rows == 8


ODD: tuple[dict[str, Any], ...] = (
    {"id": None},
    {"content": RawText(b"caf\xe9")},
    {"content": b"\x00\xff"},
    {"tags": '["a", "\u00e9"]', "metadata": '{"b": 1.50, "a": [1e2]}'},
    {"metadata": '{"a": NaN}'},
    {"timestamp": 1_743_588_000.25},
    {"timestamp": "yesterday"},
)


async def test_worker_process_reads_rows_identically(path: Path) -> None:
    legacy_db(path, (PLAIN | {"id": f"m{n}"} | odd for n, odd in enumerate(ODD)))
    bounds = (str(path), 1, len(ODD))
    expected = read_copy(*bounds)
    assert [len(problems) for _, _, problems, _, _ in expected] == [1, 1, 1, 0, 1, 0, 1]
    worker_pool = WorkerPool(1)
    try:
        while (await worker_pool.map(os.getpid, [()] * MANY))[0] == os.getpid():
            pass
        (elsewhere,) = await worker_pool.map(read_copy, [bounds])
    finally:
        await worker_pool.close()
    assert elsewhere == expected


def test_existing_copy_with_other_rowids_is_accepted(path: Path) -> None:
    """The copy of an earlier attempt has the same values with other rowids."""
    rows = numbered(40)
    for row in rows[9::10]:
        row["id"] = None
    legacy_db(path, rows)
    copy = path.with_name(path.name + ".before-sagastore")
    shutil.copyfile(path, copy)
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        connection.execute("UPDATE messages SET rowid = 7 * rowid + 1000")
        connection.commit()
    report = take_over(path)
    assert (report.copy, report.served, report.quarantined) == (copy, 36, 4)
    assert list(quarantine(path)) == [f"messages/rowid={rowid}" for rowid in (10, 20, 30, 40)]


def test_plain_legacy_file_is_imported(path: Path) -> None:
    legacy_db(path, numbered(2500))
    seen: list[tuple[int, int]] = []
    report = take_over(path, progress=lambda done, total: seen.append((done, total)))
    assert report[:5] == (2500, 2500, 0, 3, 0)
    assert seen == [(0, 2500), (1000, 2500), (2000, 2500), (2500, 2500)]
    with reading(path) as connection:
        row = connection.execute("SELECT * FROM messages WHERE number = 8").fetchone()
        state = dict(connection.execute("SELECT name, value FROM store_state"))
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA user_version").fetchone()[0] >= 1
    when = 1_743_588_000_000_000
    assert row == (8, "m7", "openai", "user", "message 7 ", '["a"]', when, '{"n": 1}', "s",
                   when + 1_000_000, 8)  # fmt: skip
    assert state["revision"] == 2503
    takeover = json.loads(state["takeover"])
    assert takeover["copy"] == report.copy.name == "memory.db.before-sagastore"
    assert (takeover["rows"], takeover["served"], takeover["quarantined"]) == (2500, 2500, 0)


async def test_imported_messages_are_served(path: Path) -> None:
    rows = [
        {**PLAIN, "id": "one", "content": "running dogs", "tags": '["x"]'},
        {**PLAIN, "id": "two", "content": "a cat", "timestamp": "2025-04-02T12:00:00+02:00"},
        {**PLAIN, "id": "empty", "content": ""},
        {**PLAIN, "id": "blank", "content": " \n"},
        {**PLAIN, "id": "bad", "content": "\x00"},
    ]
    legacy_db(path, rows)
    async with opened(lambda: SQLiteStorage(path)) as store:
        assert await found(store, "run dog") == ["one"]
        two = await store.get("two")
        assert (two.timestamp, two.revision) == (1_743_588_000_000_000, 2)
        (aside,) = await store.quarantine(0, 10)
        assert (aside.source_key, aside.field) == ("messages/rowid=5", "content")
        assert [(await store.get(id)).content for id in ("empty", "blank")] == ["", " \n"]
    async with opened(lambda: SQLiteStorage(path)) as again:
        assert await found(again, "") == ["one", "two", "empty", "blank"]


def test_backup_copy_equals_original(path: Path) -> None:
    legacy_db(path, [*numbered(20), {**PLAIN, "id": RawText(b"\xff"), "content": b"\x00blob"}])
    path.chmod(0o600)
    with reading(path) as connection:
        before = fingerprint(connection)
    report = take_over(path)
    with reading(report.copy) as connection:
        assert fingerprint(connection) == before
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert report.copy.stat().st_mode & 0o777 == 0o600
    assert classify(report.copy).kind is Kind.LEGACY
    assert sorted(contents_of(path.parent)) == ["memory.db", "memory.db.before-sagastore"]


def test_repeated_import_keeps_distinct_copies(path: Path) -> None:
    """A copy with different contents is never replaced; an equal one is kept."""
    legacy_db(path, numbered(3))
    first = take_over(path).copy
    shutil.copy(first, path)
    stamp = first.stat().st_mtime_ns
    assert take_over(path).copy == first
    assert first.stat().st_mtime_ns == stamp
    shutil.copy(first, path)
    with reading(path) as connection, connection:
        insert(connection, {**PLAIN, "id": "new"})
    second = take_over(path)
    assert (second.copy.name, second.rows) == ("memory.db.before-sagastore-2", 4)
    assert first.stat().st_mtime_ns == stamp


def test_second_import_is_refused(path: Path) -> None:
    legacy_db(path, numbered(3))
    take_over(path)
    before = contents_of(path.parent)
    with pytest.raises(CannotOpenError, match="sagastore"):
        take_over(path)
    assert contents_of(path.parent) == before


def test_files_become_records(path: Path) -> None:
    legacy_db(path, numbered(1))
    report = take_over(path)
    assert (report.files, report.files_quarantined) == (3, 0)
    with reading(path) as connection:
        files = connection.execute("SELECT * FROM files ORDER BY id").fetchall()
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    assert files == [
        (f"f{n}", f"{n}.md", f"in/{n}.md", "markdown", f"text of {n}", "[]", n,
         1_740_819_600_000_000, "{}", None, n + 2, "{}")
        for n in range(3)
    ]  # fmt: skip
    assert "idx_files_type" not in names
    assert not [name for name in names if name.startswith(("files_fts", "files_before"))]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO messages (id, provider, role, content, timestamp) VALUES (1, 2, 3, 4, 5)",
        "REPLACE INTO messages (id, provider, role, content, timestamp) VALUES (1, 2, 3, 4, 5)",
        "UPDATE messages SET content = 'x'",
        "DELETE FROM messages WHERE id = 'm0'",
        "DELETE FROM files",
        "UPDATE files SET tags = ''",
    ],
)
def test_foreign_writers_are_locked_out(path: Path, statement: str) -> None:
    legacy_db(path, numbered(2))
    with reading(path) as writer:  # The legacy application, left running.
        writer.execute("SELECT * FROM messages").fetchall()
        take_over(path)
        with pytest.raises(sqlite3.OperationalError, match="sagastore_server_owns_this_file"):
            writer.execute(statement)


def test_colliding_ids_are_quarantined(path: Path) -> None:
    schema = MESSAGES.replace("id TEXT PRIMARY KEY", "id")
    rows = [
        {**PLAIN, "id": 7, "content": "\x00"},
        {**PLAIN, "id": "7"},
        {**PLAIN, "id": b"7"},
        {**PLAIN, "id": 7, "tags": "?"},
        {**PLAIN, "id": 8},
    ]
    legacy_db(path, rows, messages=schema, with_indexes=False)
    take_over(path)
    assert {key: entry[1] for key, entry in quarantine(path).items()} == {
        "messages/rowid=1": "content: holds U+0000, which PostgreSQL cannot store",
        "messages/rowid=3": "id: '7' is taken by rowid 2",
        "messages/rowid=4": "tags: is not JSON: Expecting value at character 0; "
        "id: '7' is taken by rowid 2",
    }


def test_additional_columns_are_kept(path: Path) -> None:
    schema = """CREATE TABLE messages (rowid TEXT, ID INTEGER PRIMARY KEY, "Role" TEXT,
        provider TEXT, content TEXT, timestamp TEXT, "odd ""name" , empty)"""
    rows = [
        {"ID": 5, "Role": "user", "provider": "p", "content": "c", "timestamp": "2025-04-02",
         "rowid": "mine", '"odd ""name"': RawText(b"\xff")},
        {"ID": 9, "Role": "user", "provider": "p", "content": "c", "timestamp": "?", "rowid": "x"},
    ]  # fmt: skip
    legacy_db(path, rows, messages=schema, with_indexes=False)
    report = take_over(path)
    assert (report.served, report.quarantined, report.files) == (1, 1, 0)
    with reading(path) as connection:
        connection.text_factory = bytes
        extra = connection.execute("SELECT *, typeof(value) FROM legacy_extra").fetchall()
        (takeover,) = connection.execute(
            "SELECT value FROM store_state WHERE name = 'takeover'"
        ).fetchone()
    assert extra == [
        (b"5", b'odd "name', b"\xff", b"text"),
        (b"5", b"rowid", b"mine", b"text"),
    ]
    assert json.loads(takeover)["missing_columns"] == [
        "tags", "metadata", "session_id", "created_at",
    ]  # fmt: skip
    ((key, (_, _, row)),) = quarantine(path).items()
    assert key == "messages/rowid=9"
    assert (row["rowid"], row["ID"], row["empty"]) == ("x", 9, None)


def test_unknown_tables_are_kept(path: Path) -> None:
    more = """
        CREATE TABLE notes (message TEXT REFERENCES messages (id) ON DELETE CASCADE);
        INSERT INTO notes VALUES ('m1');
        CREATE VIEW recent AS SELECT id FROM messages;
        CREATE VIEW broken AS SELECT x FROM nowhere;
        CREATE TRIGGER noted AFTER INSERT ON notes BEGIN SELECT count(*) FROM messages; END;
        CREATE INDEX mine ON messages (role);
        CREATE TRIGGER watch AFTER DELETE ON messages BEGIN DELETE FROM notes; END;
    """
    legacy_db(path, numbered(2), more=more)
    take_over(path)
    with reading(path) as connection:
        assert connection.execute("SELECT * FROM notes").fetchall() == [("m1",)]
        assert connection.execute("SELECT * FROM recent").fetchall() == [("m0",), ("m1",)]
        (takeover,) = connection.execute(
            "SELECT value FROM store_state WHERE name = 'takeover'"
        ).fetchone()
    remembered = json.loads(takeover)
    assert [entry["name"] for entry in remembered["dropped"]] == ["mine", "watch"]
    assert sorted(remembered["left_alone"]) == ["broken", "noted", "notes", "recent"]


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM messages_fts_docsize",
        "DELETE FROM messages_fts_config",
        "DROP TABLE messages_fts_idx; DROP TABLE messages_fts_data",
        "UPDATE messages_fts_data SET block = x'00'; DELETE FROM files_fts_idx",
        "DROP TABLE messages_fts",
    ],
)
def test_inconsistent_text_index_is_ignored(path: Path, damage: str) -> None:
    legacy_db(path, numbered(30), more=damage)
    assert take_over(path).served == 30
    with reading(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    assert "messages_fts_docsize" not in tables


@pytest.mark.parametrize("mode", ["wal", "persist", "truncate"])
def test_every_journal_mode_is_imported(path: Path, mode: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
    legacy_db(path, numbered(5))
    assert take_over(path).served == 5


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("CREATE TABLE quarantine (x)", "its table quarantine has a name"),
        ("CREATE VIEW tombstones AS SELECT 1", "its view tombstones has a name"),
        ("DROP TABLE files; CREATE VIEW files AS SELECT 1", "its view files has a name"),
    ],
)
def test_conflicting_names_are_refused(path: Path, more: str, line: str) -> None:
    legacy_db(path, numbered(2), more=more)
    before = contents_of(path.parent)
    with pytest.raises(CannotOpenError, match=line):
        take_over(path)
    assert contents_of(path.parent) == before
    assert line in str(look_into(path).refusal)


def test_file_with_active_writer_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagastore_server.sqlite.legacy.importer._BUSY_TIMEOUT_MS", 10)
    legacy_db(path, numbered(2))
    with reading(path) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(CannotOpenError, match="stop the legacy application first"):
            take_over(path)
    assert take_over(path).served == 2


text = st.one_of(
    storable_text,
    st.just("\x00"),
    st.sampled_from(["", " ", "a\x00b", "é", "x" * 129, '["a"]', "{}", '{"a": NaN}', "null"]),
)
times = st.one_of(
    st.datetimes().map(str),
    st.datetimes().map(lambda value: value.isoformat() + "+01:00"),
    st.sampled_from(["2025-04-02", "yesterday", 1743588004.25, 20250402, b"2025"]),
)
values = st.one_of(
    text,
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.binary(max_size=5),
    st.binary(max_size=5).map(RawText),
)
likely = st.one_of(st.just("x"), text, values)
rows = st.fixed_dictionaries(
    {
        "id": likely,
        "provider": likely,
        "role": likely,
        "content": likely,
        "tags": st.one_of(st.sampled_from(["[]", '["a", "ü"]', None]), values),
        "timestamp": st.one_of(times, values),
        "metadata": st.one_of(st.sampled_from(["{}", '{"a": 1.50}', "[]", None]), values),
        "session_id": likely,
        "created_at": st.one_of(st.none(), times),
    }
)


@given(st.lists(rows, max_size=8))
def test_every_row_is_served_or_quarantined(
    tmp_path_factory: pytest.TempPathFactory, oddities: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("odd") / "memory.db"
    # Without NOT NULL and keys, so that every oddity can be stored.
    schema = MESSAGES.replace(" PRIMARY KEY", "").replace(" NOT NULL", "")
    legacy_db(path, [PLAIN, *oddities], messages=schema)
    announced = look_into(path).legacy
    report = take_over(path)
    assert_accounted_for(path, report)
    assert announced is not None
    assert (announced.served, announced.quarantined) == (report.served, report.quarantined)
    assert [row.source_key for row in announced.set_aside] == list(quarantine(path))


def assert_accounted_for(path: Path, report: TakeoverReport) -> None:
    """Compare the messages of the file with those of its copy, row by row, with a simple reader
    of the old values.
    """
    aside = {key: row for key, row in quarantine(path).items() if key.startswith("messages/")}
    with reading(report.copy) as old, reading(path) as new:
        old.text_factory = Text
        cursor = old.execute("SELECT rowid, * FROM messages ORDER BY rowid")
        columns = [column[0] for column in cursor.description][1:]
        served = new.execute("SELECT * FROM messages ORDER BY number")
        for rowid, *raw in cursor:
            key = f"messages/rowid={rowid}"
            if key in aside:
                field, reason, row = aside.pop(key)
                assert reason.startswith(f"{field}: ")
                assert row == json.loads(raw_row_as_json(columns, raw))
            else:
                assert_served(dict(zip(columns, raw, strict=True)), served.fetchone())
        assert served.fetchone() is None
    assert aside == {}


def assert_served(raw: dict[str, Any], row: tuple[Any, ...]) -> None:
    _, *texts, tags, timestamp, metadata, session, created, _ = row
    for name, value in zip(["id", "provider", "role", "content"], texts, strict=True):
        assert value == as_text(raw[name])
    assert session == as_text(raw["session_id"])
    assert json.loads(tags) == (json.loads(as_text(raw["tags"]) or "null") or [])
    assert json.loads(metadata) == (json.loads((as_text(raw["metadata"]) or "").strip() or "null") or {})  # fmt: skip  # noqa: E501
    assert timestamp == as_micros(raw["timestamp"])
    assert created == (None if raw["created_at"] is None else as_micros(raw["created_at"]))


def as_text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else None if value is None else str(value)


def as_micros(value: Any) -> int:
    if isinstance(value, bytes):
        when = datetime.fromisoformat(value.decode())
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
    else:
        when = EPOCH + timedelta(seconds=value)
    return (when - EPOCH) // timedelta(microseconds=1)


LEGACY_FILES = ["sample", *filter(None, [os.environ.get("SAGASTORE_LEGACY_DB")])]
"""Real dialogues with anomalies, and a file of the machine, if the variable names one."""


@pytest.mark.parametrize("source", LEGACY_FILES)
def test_every_row_of_a_legacy_file_is_imported(path: Path, source: str) -> None:
    if source == "sample":
        legacy_sample(path, 1000)
    else:
        shutil.copy(source, path)
    announced = look_into(path).legacy
    report = take_over(path)
    assert report.served + report.quarantined == report.rows > 0
    assert announced is not None
    assert (announced.served, announced.quarantined) == (report.served, report.quarantined)
    assert_accounted_for(path, report)
