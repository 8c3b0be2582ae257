"""Interrupted import: leaves either the complete old file or the complete new one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagastore_server.sqlite.files import Kind, classify
from sagastore_server.sqlite.legacy.copy import fingerprint
from sagastore_server.sqlite.legacy.importer import take_over
from sagastore_server.storage.errors import CannotOpenError
from tests.support.legacy_db import contents_of, legacy_db, numbered
from tests.support.strategies import QUICK

ROWS = 200
ATTEMPTS = 8 if QUICK else 80

# Kills itself at the start of a statement, with a cache so small that what was
# changed is already in the file.
KILLED = """
import os, pathlib, signal, sys
from sagastore_server.sqlite.legacy import importer

path, last = pathlib.Path(sys.argv[1]), int(sys.argv[2])
connect, count = importer._connect, 0

def watched(path):
    connection = connect(path)
    connection.execute("PRAGMA cache_size = 10")
    connection.set_trace_callback(statement)
    return connection

def statement(sql):
    global count
    count += 1
    if count == last or (last < 0 and sql == "COMMIT"):
        os.kill(os.getpid(), signal.SIGKILL)

importer._connect = watched
importer.take_over(path)
print(count)
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return legacy_db(tmp_path_factory.mktemp("original") / "memory.db", numbered(ROWS, 3000))


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(original, tmp_path / "memory.db"))


def digest(path: Path) -> bytes:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return fingerprint(connection)


def run(path: Path, last: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(last)],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


def assert_whole(path: Path, original: Path) -> Kind:
    """Check that the file is completely old or completely new."""
    kind = classify(path).kind
    assert classify(path, recover=True, check=True).kind is kind
    if kind is Kind.LEGACY:
        assert digest(path) == digest(original)
        assert take_over(path).served == ROWS
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM messages").fetchone() == (ROWS,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    kept = path.with_name("memory.db.before-sagastore")
    assert digest(kept) == digest(original)
    assert sorted(contents_of(path.parent)) == ["memory.db", "memory.db.before-sagastore"]
    return kind


def test_import_survives_kill_at_any_statement(path: Path, original: Path) -> None:
    """The file is the old one until the commit, whichever statement is the last."""
    whole = run(path, 0)
    statements = int(whole.stdout)
    assert statements > ROWS
    hot = 0
    for last in [*range(3, statements, statements // ATTEMPTS), -1]:
        for file in path.parent.iterdir():
            file.unlink()
        shutil.copy(original, path)
        assert run(path, last).returncode == -signal.SIGKILL
        hot += path.with_name("memory.db-journal").exists()
        assert assert_whole(path, original) is Kind.LEGACY
    assert hot > ATTEMPTS // 2


def test_import_survives_kill_at_any_time(path: Path, original: Path) -> None:
    script = "import pathlib, sys; from sagastore_server.sqlite.legacy import importer;"
    script += "print(flush=True); importer.take_over(pathlib.Path(sys.argv[1]));"
    script += "print(flush=True); sys.stdin.read()"
    for milliseconds in range(0, 400, 400 // ATTEMPTS):
        for file in path.parent.iterdir():
            file.unlink()
        shutil.copy(original, path)
        with subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            time.sleep(milliseconds / 1000)
            process.kill()
        assert_whole(path, original)


def test_import_fails_cleanly_at_file_size_limit(path: Path, original: Path) -> None:
    """Every write beyond a size fails, at any point of the import."""
    size = path.stat().st_size
    for share in (0.5, 1.05, 1.3):
        limit = int(size * share)
        result = subprocess.run(
            [sys.executable, "-c", _FAILING, str(path), str(limit)],
            capture_output=True, text=True, check=False, timeout=200,
        )  # fmt: skip
        assert result.stdout.startswith("refused: cannot import"), result
        assert "the disk is full or faulty" in result.stdout
        assert len(result.stdout.splitlines()) == 1
        assert not path.with_name("memory.db-journal").exists()
        assert digest(path) == digest(original)
    assert assert_whole(path, original) is Kind.LEGACY


_FAILING = """
import pathlib, resource, sys
from sagastore_server.sqlite.legacy import importer
from sagastore_server.storage.errors import CannotOpenError
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    importer.take_over(pathlib.Path(sys.argv[1]))
except CannotOpenError as exc:
    print("refused:", exc)
"""


@pytest.fixture
def small_disk(tmp_path: Path, original: Path) -> Iterator[Path]:
    """Mount a disk with space for the file and its copy, but not for an import."""
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    size = original.stat().st_size * 5 // 2
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run([mount, *options], check=False, capture_output=True).returncode:
        pytest.skip("no disk can be mounted on this machine")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_import_fails_cleanly_on_full_disk(
    small_disk: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(original, small_disk / "memory.db"))
    before = contents_of(small_disk)
    with pytest.raises(CannotOpenError, match=r"need up to \d+ MB of disk space, \d+ MB are free"):
        take_over(path)
    assert contents_of(small_disk) == before
    # Others may fill the disk after the check.
    monkeypatch.setattr("sagastore_server.sqlite.legacy.copy._check_room", lambda *_: None)
    with pytest.raises(CannotOpenError, match="the disk is full or faulty"):
        take_over(path)
    assert digest(path) == digest(original)
    (small_disk / "ballast").write_bytes(b"x" * (original.stat().st_size // 2))
    shutil.copy(original, path)
    small_disk.joinpath("memory.db.before-sagastore").unlink(missing_ok=True)
    small_disk.joinpath("ballast").write_bytes(b"x" * (original.stat().st_size * 3 // 4))
    with pytest.raises(CannotOpenError, match="the disk is full or faulty"):
        take_over(path)
    assert sorted(contents_of(small_disk)) == ["ballast", "memory.db"]
    assert digest(path) == digest(original)


def test_corrupt_copy_aborts_import(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(source: Path, partial: Path) -> None:
        shutil.copy(source, partial)
        with contextlib.closing(sqlite3.connect(partial)) as connection, connection:
            connection.execute("UPDATE messages SET content = content || '.' WHERE id = 'm7'")

    monkeypatch.setattr("sagastore_server.sqlite.legacy.copy._write", torn)
    before = contents_of(path.parent)
    with pytest.raises(CannotOpenError, match="check the disk"):
        take_over(path)
    assert contents_of(path.parent) == before


def test_lost_row_aborts_import(
    path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts before the commit detect a bug of the import."""
    monkeypatch.setattr(
        "sagastore_server.sqlite.legacy.importer._Takeover._quarantine", lambda *_: None
    )
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE messages SET content = char(0) WHERE id = 'm7'")
    before = digest(path)
    with pytest.raises(CannotOpenError, match="does not add up"):
        take_over(path)
    assert digest(path) == before
    assert classify(path).kind is Kind.LEGACY
