"""Legacy table ``files``: its rows become file records or go to quarantine."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sagastore_server.sqlite import files
from sagastore_server.sqlite.legacy.report import look_into
from sagastore_server.sqlite.migration_state import save_state
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.files import File, FileScan, NewFile
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import MigrationState
from sagastore_server.storage.sessions import RecordKind
from tests.sqlite.sources import opened_source
from tests.support.legacy_db import PLAIN, legacy_db

DAY = 1_743_465_600_000_000
"""2025-04-01T00:00:00Z in microseconds."""

ODD = """
CREATE TABLE files (ID, filename, filepath, file_type, extracted_text, tags, file_size,
    uploaded_at, metadata, created_at, "own ""column" , Colour TEXT);
CREATE TEMPORARY VIEW plain AS
    SELECT 'a', 'b', 'c', NULL, NULL, 1, '2025-04-01', NULL, NULL, 1, 1;
INSERT INTO files VALUES
    ('ok', 'a', 'b', 'c', NULL, NULL, NULL, '2025-04-01', NULL, NULL, 1.5, 'ü');
INSERT INTO files SELECT NULL, * FROM plain;
INSERT INTO files SELECT 17, * FROM plain;
INSERT INTO files VALUES
    ('blob', x'00ff', 'b', 'c', NULL, NULL, 1, '2025-04-01', NULL, NULL, 1, 1);
INSERT INTO files SELECT 'nul', * FROM plain;
UPDATE files SET extracted_text = 'x' || char(0) || 'y' WHERE id = 'nul';
INSERT INTO files SELECT 'bytes', * FROM plain;
UPDATE files SET file_type = CAST(x'41ff42' AS TEXT) WHERE id = 'bytes';
INSERT INTO files VALUES ('size', 'a', 'b', 'c', NULL, NULL, 1.5, '2025-04-01', NULL, NULL, 1, 1);
INSERT INTO files VALUES ('minus', 'a', 'b', 'c', NULL, NULL, -1, '2025-04-01', NULL, NULL, 1, 1);
INSERT INTO files VALUES ('time', 'a', 'b', 'c', NULL, NULL, 1, 20250401, NULL, NULL, 1, 1);
INSERT INTO files VALUES ('made', 'a', 'b', 'c', NULL, NULL, 1, 'now', NULL, 5, 1, 1);
INSERT INTO files SELECT 'ok', * FROM plain;
INSERT INTO files VALUES
    ('OK', 'other', 'b', 'c', '', '["t", "t"]', 7, 1743465600.5, '{"b": 1, "a": 2}', '2025-04-01',
    x'ff', NULL);
INSERT INTO files SELECT '', * FROM plain;
INSERT INTO files SELECT printf('%.129c', 'x'), * FROM plain;
INSERT INTO files VALUES
    ('tags', 'a', 'b', 'c', NULL, '["a", 1]', 1, '2025-04-01', NULL, NULL, 1, 1);
INSERT INTO files VALUES ('long', 'a', 'b', 'c', printf('%.3145729c', 'x'), NULL, 1, '2025-04-01',
    '{"a": NaN}', NULL, 1, 1);
INSERT INTO files (rowid, ID, filename, filepath, file_type, uploaded_at)
    VALUES (-3, 'below', '', 'b', 'c', '2025-04-01');
"""
NO_TIME = "which may be Unix seconds, milliseconds, a Julian day or a date"
REASONS = {
    2: "id: is NULL",
    4: "filename: is a BLOB of bytes that are not UTF-8, the first at 1",
    5: "extracted_text: holds U+0000, which PostgreSQL cannot store",
    6: "file_type: is text with bytes that are not UTF-8, the first at 1",
    7: "file_size: is a real number, not an integer",
    8: "file_size: is -1, which is negative",
    9: f"uploaded_at: is the number '20250401', {NO_TIME}",
    10: "uploaded_at: is 'now', which is not a time in ISO form; created_at: is the number '5', "
    + NO_TIME,
    11: "id: 'ok' is taken by files/rowid=1",
    13: "id: is required: 1 to 128 characters",
    14: "id: has 129 characters, at most 128 are allowed",
    15: "tags: has a JSON number or null at position 1, not a string",
    16: "extracted_text: has 3,145,729 bytes, at most 3,145,728 are allowed; metadata: holds NaN, "
    "which is not a JSON number",
    -3: "filename: is required: 1 to 1,024 characters",
}


async def all_files(source: SQLiteSource) -> list[File]:
    """Return every file record, oldest first."""
    return (await source.list_files(FileScan(500))).files[::-1]


async def test_unreadable_files_go_to_quarantine(tmp_path: Path) -> None:
    path = legacy_db(tmp_path / "memory.db", [PLAIN], with_indexes=False, more=ODD)
    report = look_into(path).legacy
    assert report is not None
    foreseen = {row.source_key: row.reason for row in report.files_set_aside}
    expected = {f"files/rowid={rowid}": reason for rowid, reason in REASONS.items()}
    assert foreseen == expected
    assert (report.files, report.files_quarantined) == (len(REASONS) + 3, len(REASONS))
    async with opened_source(path) as source:
        aside = {row.source_key: row for row in await source.quarantine(0, 100)}
        assert {key: row.reason for key, row in aside.items()} == expected
        raw = json.loads(aside["files/rowid=6"].row)
        assert raw["file_type"] == {"base64": "Qf9C", "type": "text"}
        assert list(raw)[-2:] == ['own "column', "Colour"]
        names = ("a", "b", "c")
        assert await all_files(source) == [
            File("17", *names, "", (), 1, DAY, "{}", None, 3,
                 '{"own \\"column": 1, "Colour": "1"}'),
            File("ok", *names, "", (), 0, DAY, "{}", None, 2,
                 '{"own \\"column": 1.5, "Colour": "ü"}'),
            File("OK", "other", "b", "c", "", ("t", "t"), 7, DAY + 500_000, '{"a": 2, "b": 1}', DAY,
                 4, '{"own \\"column": {"base64": "/w=="}, "Colour": null}'),
        ]  # fmt: skip
        assert source.committed == 4


async def test_extra_values_are_kept_by_a_save(tmp_path: Path) -> None:
    path = legacy_db(tmp_path / "memory.db", [PLAIN], with_indexes=False, more=ODD)
    async with opened_source(path) as source:
        before = await source.get_file("ok")
        draft = File(*before)._replace(filename="new")
        await source.save_file(NewFile(*draft[:9]))
        after = await source.get_file("ok")
        assert after == draft._replace(revision=5)
        await source.delete_file("ok")
        await source.save_file(NewFile(*draft[:9]))
        assert (await source.get_file("ok")).extra == "{}"


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("CREATE TABLE files (name TEXT); INSERT INTO files VALUES ('a'), ('b');", 2),
        (
            """CREATE TABLE files (id TEXT PRIMARY KEY) WITHOUT ROWID;
            INSERT INTO files VALUES ('x');""",
            1,
        ),
        (
            """CREATE TABLE files (rowid TEXT, oid TEXT, id TEXT);
            INSERT INTO files VALUES (1, 2, 3);""",
            1,
        ),
    ],
)
async def test_table_without_columns_goes_to_quarantine(
    tmp_path: Path, table: str, rows: int
) -> None:
    path = legacy_db(tmp_path / "memory.db", [PLAIN], with_indexes=False, more=table)
    async with opened_source(path) as source:
        assert await source.quarantine_count() == rows
        assert await source.count_files() == 0
        found = await source.quarantine(0, 9)
        assert all(row.source_key.startswith("files/row") for row in found)
        assert all("uploaded_at: is NULL" in row.reason for row in found)


def _store_of_step_5(path: Path, phase: Phase) -> None:
    """Create a SagaStore file of schema version 5 with a good and a bad file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        files.register_owner_function(connection)
        for number in range(1, 6):
            files.apply_step(connection, number)
        connection.executemany(
            "INSERT INTO store_state VALUES (?, ?)",
            [("revision", 7), ("analysis", "older"), ("store_id", "the-id")],
        )
        save_state(connection, MigrationState(phase, 2, base=7))
        connection.executemany(
            "INSERT INTO files (rowid, id, filename, filepath, file_type, uploaded_at)"
            " VALUES (?, ?, 'a', 'b', 'c', ?)",
            [(3, "good", "2025-04-01"), (5, "bad", "soon"), (6, "late", "2025-04-02")],
        )
        # An earlier version has judged the row by other rules; a VACUUM has renumbered it since.
        connection.execute(
            "INSERT INTO quarantine (source_key, reason, field, row)"
            " VALUES ('files/rowid=3', 'odd', 'id', '{}'), ('messages/rowid=1', 'odd', 'id', '{}')"
        )
        connection.execute("CREATE INDEX idx_files_uploaded ON files (uploaded_at)")
        connection.execute("CREATE VIEW names AS SELECT filename FROM files")


@pytest.mark.parametrize("phase", [Phase.SQLITE_ONLY, Phase.BACKFILL])
async def test_earlier_store_is_upgraded(path: Path, phase: Phase) -> None:
    _store_of_step_5(path, phase)
    for _ in range(2):
        async with opened_source(path) as source:
            found = [(one.id, one.revision) for one in await all_files(source)]
            assert found == [("good", 8), ("late", 9)]
            aside = [row.source_key for row in await source.quarantine(0, 9)]
            assert sorted(aside) == ["files/rowid=5", "messages/rowid=1"]
            assert source.committed == 9
            entries = await source.journal(0, 9)
            journalled = [(one.sequence, one.kind, one.id) for one in entries]
            expected = [(8, RecordKind.FILE, "good"), (9, RecordKind.FILE, "late")]
            assert journalled == (expected if phase.journals else [])
            assert [one.file is not None for one in entries] == [True] * len(entries)
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("SELECT count(*) FROM names").fetchone() == (2,)
