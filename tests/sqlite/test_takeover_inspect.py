"""Inspection of a file without changing it, and the report of `inspect`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sagastore_server.cli.main import cli
from sagastore_server.sqlite.files import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    Kind,
    apply_step,
    classify,
    register_owner_function,
    schema_steps,
)
from sagastore_server.sqlite.legacy.importer import take_over
from sagastore_server.sqlite.legacy.report import look_into
from sagastore_server.storage.errors import CannotOpenError
from tests.support.legacy_db import MESSAGES, PLAIN, RawText, contents_of, legacy_db, numbered

FILLER = b"these are no pages of a database "


def script(sql: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.executescript(sql)

    return make


def legacy(path: Path) -> None:
    legacy_db(path, numbered(50, 500))


def truncated(path: Path) -> None:
    legacy(path)
    os.truncate(path, path.stat().st_size // 2)


def torn(path: Path) -> None:
    legacy(path)
    with path.open("rb+") as file:
        file.seek(4096)
        file.write(FILLER * 120)


def overwritten(path: Path) -> None:
    """Corrupt every page except the first, which has the schema's root."""
    legacy(path)
    with path.open("rb+") as file:
        pages = path.stat().st_size // 4096
        for page in range(4, pages):
            file.seek(page * 4096)
            file.write(FILLER * 100)


def in_utf16(path: Path) -> None:
    script(f"PRAGMA encoding = 'UTF-16le'; {MESSAGES};")(path)


def taken_over(path: Path) -> None:
    legacy(path)
    take_over(path)
    path.with_name(path.name + ".before-sagastore").unlink()


FILES: dict[str, tuple[Callable[[Path], Any], Kind, str]] = {
    "empty": (Path.touch, Kind.EMPTY, ""),
    "no tables": (script("PRAGMA journal_mode = wal"), Kind.EMPTY, ""),
    "legacy": (legacy, Kind.LEGACY, ""),
    "taken over": (taken_over, Kind.SAGASTORE, ""),
    "text": (lambda p: p.write_text("hello " * 100), Kind.NOT_A_DATABASE, "not a SQLite database"),
    "short": (lambda p: p.write_bytes(b"SQLite"), Kind.NOT_A_DATABASE, "not a SQLite database"),
    "noise": (lambda p: p.write_bytes(b"SQLite format 3\0" + FILLER * 99), Kind.NOT_A_DATABASE, ""),
    "other": (script("CREATE TABLE notes (x)"), Kind.FOREIGN, "its tables: notes"),
    "view": (script("CREATE VIEW messages AS SELECT 1"), Kind.FOREIGN, "no table of messages"),
    "columns": (
        script("CREATE TABLE messages (id, content)"),
        Kind.FOREIGN,
        "without the columns provider, role, timestamp",
    ),
    "id": (script(f"{MESSAGES}; PRAGMA application_id = 7"), Kind.FOREIGN, "another application"),
    "utf16": (in_utf16, Kind.FOREIGN, "UTF-16le"),
    "truncated": (truncated, Kind.CORRUPT, "damaged"),
    "torn": (torn, Kind.CORRUPT, "damaged"),
    "overwritten": (overwritten, Kind.CORRUPT, "damaged"),
}


@pytest.mark.parametrize("name", FILES)
def test_file_kind_is_detected(name: str, tmp_path: Path) -> None:
    make, kind, detail = FILES[name]
    path = tmp_path / "some file?.db"
    make(path)
    before, stamp = contents_of(tmp_path), path.stat().st_mtime_ns
    state = classify(path, check=True)
    assert state.kind is kind
    assert detail in state.detail
    result = CliRunner().invoke(cli, ["inspect", str(path), "--json"])
    assert json.loads(result.stdout)["kind"] == kind.value
    usable = kind in {Kind.EMPTY, Kind.LEGACY, Kind.SAGASTORE}
    assert result.exit_code == (0 if usable else 1)
    assert len(result.stderr.splitlines()) == (0 if usable else 1)
    if not usable:
        with pytest.raises(CannotOpenError) as refused:
            take_over(path)
        assert "\n" not in str(refused.value)
    assert contents_of(tmp_path) == before
    assert path.stat().st_mtime_ns == stamp


def test_unreadable_file_is_reported(tmp_path: Path) -> None:
    assert classify(tmp_path / "nothing").kind is Kind.MISSING
    with pytest.raises(CannotOpenError, match="directory"):
        classify(tmp_path)
    result = CliRunner().invoke(cli, ["inspect", str(tmp_path / "nothing")])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "does not exist" in result.stderr


def test_table_without_rowid_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    legacy_db(path, [PLAIN], messages=MESSAGES + " WITHOUT ROWID", with_indexes=False)
    before = contents_of(tmp_path)
    with pytest.raises(CannotOpenError, match="no rowid"):
        take_over(path)
    assert "no rowid" in str(look_into(path).refusal)
    assert contents_of(tmp_path) == before


KILLED = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(f"PRAGMA journal_mode = {sys.argv[2]}")
connection.execute("PRAGMA cache_size = 1")
connection.execute("CREATE TABLE notes (x)")
connection.execute("BEGIN")
for n in range(2000):
    connection.execute("UPDATE messages SET content = ?", (f"changed {n} " * 20,))
    if n == 3:
        if sys.argv[2] == "wal":
            connection.execute("COMMIT")
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("mode", ["delete", "wal", "wal without shm"])
@pytest.mark.parametrize("recover", [False, True])
def test_file_of_killed_writer_is_read(tmp_path: Path, mode: str, recover: bool) -> None:
    """The contents of the log or journal are read without changing any file."""
    path = legacy_db(tmp_path / "memory.db", numbered(50, 500))
    journal = mode.partition(" ")[0]
    subprocess.run([sys.executable, "-c", KILLED, str(path), journal], check=False)
    if mode == "wal without shm":
        (tmp_path / "memory.db-shm").unlink()
    before = contents_of(tmp_path)
    assert len(before) > 1
    report = look_into(path)
    assert contents_of(tmp_path) == before
    assert report.legacy is not None
    assert report.legacy.served == 50
    assert [kept.name for kept in report.legacy.plan.kept] == ["notes"]
    assert classify(path, recover=recover).kind is Kind.LEGACY
    if not recover:
        assert contents_of(tmp_path) == before
    assert take_over(path).served == 50


def test_file_in_use_is_inspected(tmp_path: Path) -> None:
    path = legacy_db(tmp_path / "memory.db", numbered(5))
    with contextlib.closing(sqlite3.connect(path)) as writer:
        writer.execute("PRAGMA journal_mode = wal")
        writer.execute("CREATE TABLE in_the_log (x)")
        before = contents_of(tmp_path)
        assert "memory.db-wal" in before
        result = subprocess.run(
            [sys.executable, "-m", "sagastore_server", "inspect", str(path)],
            capture_output=True, text=True, check=True, timeout=200,
        )  # fmt: skip
        assert "table in_the_log" in result.stdout
        assert contents_of(tmp_path) == before


def test_text_report(tmp_path: Path) -> None:
    rows = [
        *numbered(120),
        *({**PLAIN, "id": f"n{n}", "tags": "a,b"} for n in range(60)),
        {**PLAIN, "id": "\x1b[31m[red]", "content": RawText(b"\xff"), "timestamp": "2025-04-02Z"},
        {**PLAIN, "id": "z", "timestamp": 1743588000, "metadata": None},
    ]
    path = legacy_db(tmp_path / "memory.db", rows)
    result = CliRunner().invoke(cli, ["inspect", str(path)], terminal_width=200)
    assert result.exit_code == 0, result.stderr
    out = " ".join(result.stdout.split())
    for line in (
        "182 messages: 121 would be served, 61 quarantined",
        "3 files: 3 would be served, 0 quarantined",
        "metadata is NULL 1 182",
        "timestamp is a number 1 182",
        "tags: is not JSON: Expecting value at character 0 60 121, 122, 123",
        "messages/rowid=121 tags: is not JSON",
        "… and 11 more; --json lists all",
        "It can be served.",
    ):
        assert line in out
    document = json.loads(CliRunner().invoke(cli, ["inspect", str(path), "--json"]).stdout)
    assert len(document["legacy"]["set_aside"]) == 61
    assert document["can_be_served"] is True
    take_over(path)
    result = CliRunner().invoke(cli, ["inspect", str(path)])
    assert "121 messages, 61 rows in quarantine, last revision 124" in result.stdout


def test_newer_schema_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    script(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 999")(path)
    assert classify(path)[:2] == (Kind.SAGASTORE, 999)
    assert "supports up to" in str(look_into(path).refusal)


def test_missing_disk_space_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = legacy_db(tmp_path / "memory.db", numbered(5))
    monkeypatch.setattr("sagastore_server.sqlite.legacy.report.bytes_free", lambda _: 1000)
    assert "1,000 are free" in str(look_into(path).refusal)


def test_failed_step_is_rolled_back() -> None:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        register_owner_function(connection)
        for undone in (True, False):
            connection.execute("BEGIN")
            for number in schema_steps():
                apply_step(connection, number)
            connection.execute("ROLLBACK" if undone else "COMMIT")
            header = [connection.execute(f"PRAGMA {name}").fetchone()[0]
                      for name in ("application_id", "user_version")]  # fmt: skip
            assert header == ([0, 0] if undone else [APPLICATION_ID, SCHEMA_VERSION])


def test_symlinks_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    legacy_db(folder / "memory.db", numbered(5))
    link = tmp_path / "link.db"
    link.symlink_to(folder / "memory.db")
    assert classify(link).kind is Kind.LEGACY
    assert take_over(link).copy == folder.resolve() / "memory.db.before-sagastore"
    assert sorted(contents_of(folder)) == ["memory.db", "memory.db.before-sagastore"]
    shutil.rmtree(folder)
