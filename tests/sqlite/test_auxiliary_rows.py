"""Auxiliary rows: legacy files, extra values, quarantine."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sagastore_server.sqlite import auxiliary_rows
from sagastore_server.sqlite.files import register_owner_function
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.auxiliary_rows import (
    AuxiliaryTallier,
    extra_values,
    file_values,
    quarantine_values,
)
from sagastore_server.storage.errors import PreconditionError
from sagastore_server.storage.replication import ExtraValue, FileRow
from tests.sqlite.sources import opened_source
from tests.support.legacy_db import MESSAGES, PLAIN, legacy_db

ODD = """
CREATE TABLE files (ID, filename, filepath, file_type, extracted_text, tags, file_size,
    uploaded_at, metadata, created_at, "own ""column" , Colour TEXT);
CREATE TEMPORARY VIEW plain AS SELECT 'a', 'b', 'c', NULL, NULL, 1, 'now', NULL, NULL, 1, 1;
INSERT INTO files VALUES ('ok', 'a', 'b', 'c', NULL, NULL, NULL, 'now', NULL, NULL, 1.5, 'ü');
INSERT INTO files SELECT NULL, * FROM plain;
INSERT INTO files SELECT 17, * FROM plain;
INSERT INTO files VALUES ('blob', x'00ff', 'b', 'c', NULL, NULL, 1, 'now', NULL, NULL, 1, 1);
INSERT INTO files SELECT 'nul', * FROM plain;
UPDATE files SET extracted_text = 'x' || char(0) || 'y' WHERE id = 'nul';
INSERT INTO files SELECT 'bytes', * FROM plain;
UPDATE files SET file_type = CAST(x'41ff42' AS TEXT) WHERE id = 'bytes';
INSERT INTO files VALUES ('size', 'a', 'b', 'c', NULL, NULL, 1.5, 'now', NULL, NULL, 1, 1);
INSERT INTO files VALUES ('sizes', 'a', 'b', 'c', NULL, NULL, '12', 'now', NULL, NULL, 1, 1);
INSERT INTO files VALUES ('time', 'a', 'b', 'c', NULL, NULL, 1, 20250401, NULL, NULL, 1, 1);
INSERT INTO files VALUES ('made', 'a', 'b', 'c', NULL, NULL, 1, 'now', NULL, 5, 1, 1);
INSERT INTO files SELECT 'ok', * FROM plain;
INSERT INTO files VALUES ('OK', 'other', 'b', 'c', '', '', -1, '', '', '', x'ff', NULL);
INSERT INTO files SELECT '', * FROM plain;
UPDATE files SET file_size = 9223372036854775807 WHERE id = '';
INSERT INTO files SELECT printf('%.2001c', 'x'), * FROM plain;
INSERT INTO files (rowid, ID, filename, filepath, file_type, uploaded_at)
    VALUES (-3, 'below', 'a', 'b', 'c', 'now');
"""
REASONS = {
    2: ("id", "is NULL"),
    3: ("id", "is a number, not text"),
    4: ("filename", "is a BLOB, not text"),
    5: ("extracted_text", "holds U+0000"),
    6: ("file_type", "is text with bytes that are not UTF-8, the first at 1"),
    7: ("file_size", "is a number, not an integer"),
    8: ("file_size", "is text, not an integer"),
    9: ("uploaded_at", "is a number, not text"),
    10: ("created_at", "is a number, not text"),
    11: ("id", "is taken by rowid 1"),
    14: ("id", "is longer than 2,000 bytes"),
    -3: ("rowid", "is not positive"),
}


async def _all_files(source: SQLiteSource, limit: int = 2) -> list[FileRow]:
    found: list[FileRow] = []
    while rows := await source.files(found[-1].number if found else 0, limit):
        assert len(rows) <= limit
        found += rows
    return found


async def _all_extras(source: SQLiteSource, limit: int = 2) -> list[ExtraValue]:
    found: list[ExtraValue] = []
    while rows := await source.extras(found[-1][:2] if found else ("", ""), limit):
        found += rows
    return found


async def _check_tallies(source: SQLiteSource) -> None:
    """Compare with an independent read, sorted here."""
    quarantine, files, extras = AuxiliaryTallier(), AuxiliaryTallier(), AuxiliaryTallier()
    quarantine.add_all(map(quarantine_values, await source.quarantine(0, 10_000)))
    rows = sorted(await _all_files(source), key=lambda row: row.id.encode())
    files.add_all(map(file_values, rows))
    values = sorted(
        await _all_extras(source), key=lambda row: (row.message_id.encode(), row.name.encode())
    )
    extras.add_all(map(extra_values, values))
    assert await source.carried() == (quarantine.tally(), files.tally(), extras.tally())


async def test_unrepresentable_files_are_quarantined_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auxiliary_rows, "PAGE_ROWS", 3)
    path = legacy_db(tmp_path / "memory.db", [PLAIN], with_indexes=False, more=ODD)
    async with opened_source(path) as source:
        assert await source.quarantine_count() == 0
        assert await source.set_aside_files() == len(REASONS)
        assert await source.set_aside_files() == 0
        aside = {row.source_key: row for row in await source.quarantine(0, 100)}
        assert {key: row.reason for key, row in aside.items()} == {
            f"files/rowid={rowid}": f"{field}: {reason}"
            for rowid, (field, reason) in REASONS.items()
        }
        assert {key: row.field for key, row in aside.items()} == {
            f"files/rowid={rowid}": field for rowid, (field, _) in REASONS.items()
        }
        raw = json.loads(aside["files/rowid=6"].row)
        assert raw["file_type"] == {"base64": "Qf9C", "type": "text"}
        assert list(raw)[-2:] == ['own "column', "Colour"]
        assert await _all_files(source) == [
            FileRow(1, "ok", "a", "b", "c", None, None, None, "now", None, None,
                    '{"own \\"column": 1.5, "Colour": "ü"}'),
            FileRow(12, "OK", "other", "b", "c", "", "", -1, "", "", "",
                    '{"own \\"column": {"base64": "/w=="}, "Colour": null}'),
            FileRow(13, "", "a", "b", "c", None, None, 2**63 - 1, "now", None, None,
                    '{"own \\"column": 1, "Colour": "1"}'),
        ]  # fmt: skip
        await _check_tallies(source)
    async with opened_source(path) as source:
        assert await source.set_aside_files() == 0
        await _check_tallies(source)


async def test_representable_files_are_copied_unchanged(tmp_path: Path) -> None:
    path = legacy_db(tmp_path / "memory.db", [PLAIN])
    async with opened_source(path) as source:
        assert await source.set_aside_files() == 0
        assert await _all_files(source) == [
            FileRow(n + 1, f"f{n}", f"{n}.md", f"in/{n}.md", "markdown", f"text of {n}", "[]", n,
                    "2025-03-01T09:00:00", "{}", None, "{}")
            for n in range(3)
        ]  # fmt: skip
        await _check_tallies(source)


async def test_files_table_without_required_column(tmp_path: Path) -> None:
    more = """
    CREATE TABLE files (rowid TEXT, oid TEXT, id TEXT PRIMARY KEY, filename TEXT, filepath TEXT);
    INSERT INTO files VALUES ('r', 'o', 'f', 'a', 'b');
    """
    path = legacy_db(tmp_path / "memory.db", [PLAIN], with_indexes=False, more=more)
    async with opened_source(path) as source:
        assert await source.set_aside_files() == 1
        (row,) = await source.quarantine(0, 9)
        assert row.reason == (
            "file_type: is missing from the table; uploaded_at: is missing from the table"
        )
        assert row.source_key == "files/rowid=1"
        assert json.loads(row.row)["rowid"] == "r"
        assert await source.files(0, 9) == []
        await _check_tallies(source)


async def test_files_table_without_ids(tmp_path: Path) -> None:
    more = "CREATE TABLE files (name TEXT); INSERT INTO files VALUES ('a'), ('b');"
    path = legacy_db(tmp_path / "memory.db", [PLAIN], with_indexes=False, more=more)
    async with opened_source(path) as source:
        assert await source.set_aside_files() == 2
        await _check_tallies(source)


async def test_files_table_without_rowid(tmp_path: Path) -> None:
    more = "CREATE TABLE files (id TEXT PRIMARY KEY) WITHOUT ROWID;"
    path = legacy_db(tmp_path / "memory.db", [PLAIN], with_indexes=False, more=more)
    async with opened_source(path) as source:
        with pytest.raises(PreconditionError, match="no rowid"):
            await source.set_aside_files()


async def test_large_files_are_read_in_smaller_batches(path: Path) -> None:
    async with opened_source(path):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as plain:
        register_owner_function(plain)
        plain.executemany(
            "INSERT INTO files VALUES (?, 'a', 'b', 'c', ?, '', 1, 'now', '', '')",
            [(f"f{n}", "x" * 3_000_000) for n in range(5)],
        )
    async with opened_source(path) as source:
        assert len(await source.files(0, 100)) == 1
        assert [row.id for row in await _all_files(source, 100)] == [f"f{n}" for n in range(5)]
        await _check_tallies(source)


async def test_changed_rowids_hide_no_file(tmp_path: Path) -> None:
    """VACUUM can change rowids; a quarantined file then has another number."""
    table = "CREATE TABLE files (id TEXT UNIQUE, filename, filepath, file_type, uploaded_at);"
    odd = "INSERT INTO files VALUES ('b', NULL, 'b', 'c', 'now');"
    good = "INSERT INTO files VALUES ('{}', 'a', 'b', 'c', 'now');"
    more = table + good.format("a") + good.format("gone") + odd + good.format("c")
    more += "DELETE FROM files WHERE id = 'gone';"
    path = legacy_db(tmp_path / "memory.db", [PLAIN], with_indexes=False, more=more)
    async with opened_source(path) as source:
        assert await source.set_aside_files() == 1
        assert [row.number for row in await _all_files(source)] == [1, 4]
        before = await source.carried()
    with closing(sqlite3.connect(path, isolation_level=None)) as plain:
        register_owner_function(plain)
        plain.execute("UPDATE files SET rowid = rowid - 1 WHERE rowid > 1")
    async with opened_source(path) as source:
        assert [(row.id, row.number) for row in await _all_files(source)] == [("a", 1), ("c", 3)]
        assert (await source.carried()).files == before.files
        assert await source.set_aside_files() == 1
        assert [row.number for row in await _all_files(source)] == [1, 3]


async def test_extra_values_keep_their_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auxiliary_rows, "PAGE_ROWS", 2)
    messages = MESSAGES.replace("created_at DATETIME", "mood, Ärger, created_at DATETIME")
    values: list[tuple[str, Any, Any]] = [
        ("int", 2**62, 1),
        ("real", 1.0, None),
        ("text", "na\0ja", "x"),
        ("blob", b"\x00\xff", b""),
        ("null", None, None),
        ("große", "ü", -0.0),
    ]
    rows = [PLAIN | {"id": key, "mood": mood, "Ärger": other} for key, mood, other in values]
    more = """UPDATE messages SET mood = CAST(x'ff41' AS TEXT) WHERE id = 'real';
              UPDATE messages SET "Ärger" = 9e999 WHERE id = 'null';"""
    path = legacy_db(tmp_path / "memory.db", rows, messages=messages, more=more)
    async with opened_source(path) as source:
        extras = await _all_extras(source)
        assert extras == sorted(extras, key=lambda one: (one[0].encode(), one[1].encode()))
        assert {(one.message_id, one.name): json.loads(one.value)["value"] for one in extras} == {
            ("int", "mood"): 2**62,
            ("int", "Ärger"): 1,
            ("real", "mood"): {"base64": "/0E=", "type": "text"},
            ("text", "mood"): "na\0ja",
            ("text", "Ärger"): "x",
            ("blob", "mood"): {"base64": "AP8="},
            ("blob", "Ärger"): {"base64": ""},
            ("null", "Ärger"): {"real": "Infinity"},
            ("große", "mood"): "ü",
            ("große", "Ärger"): -0.0,
        }
        await _check_tallies(source)


def test_distinct_rows_have_distinct_digests() -> None:
    def digest(*rows: tuple[str | int | None, ...]) -> str:
        tallier = AuxiliaryTallier()
        tallier.add_all(rows)
        assert tallier.tally().rows == len(rows)
        return tallier.tally().digest

    different: list[Callable[[], str]] = [
        digest,
        lambda: digest(("a", "b")),
        lambda: digest(("a",), ("b",)),
        lambda: digest(("ab", "")),
        lambda: digest(("b", "a")),
        lambda: digest((None, "b")),
        lambda: digest(("n", "b")),
        lambda: digest((1,)),
        lambda: digest(("1",)),
        lambda: digest(("i1\n",)),
        lambda: digest((11,)),
        lambda: digest((1, 1)),
        lambda: digest(("a\ns1:b",)),
    ]
    assert len({one() for one in different}) == len(different)
    # The digest is kept on disk, in other databases: it must not change.
    spelled = "3\ns2:ä\nn\ni-5\n".encode()
    assert digest(("ä", None, -5)) == hashlib.sha256(spelled).hexdigest()
