"""Archiving: the file becomes an archive with a receipt, despite interruptions at any point."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from sagastore import receipt
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.backup import archive
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.errors import (
    CannotOpenError,
    CorruptStoreError,
    MovedError,
    StorageError,
    StorageFullError,
    UnavailableError,
)
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import MigrationState
from tests.sqlite.sources import opened_source
from tests.support.drafts import draft
from tests.support.legacy_db import PLAIN, legacy_db

LAST = MigrationState(Phase.READ_POSTGRES, epoch=5, completing=True)
REPORT: dict[str, object] = {"postgresql": {"messages": 3}, "text": "grüße", "none": None}


async def _ready(path: Path) -> None:
    """Create a file that is ready to be archived."""
    legacy_db(path, [PLAIN | {"id": f"m{n}"} for n in range(3)] + [PLAIN | {"id": None}])
    async with opened_source(path) as source:
        await source.set_state(LAST)
        await source.save(draft("late"))
        await source.delete("m1")


def _files(folder: Path) -> list[str]:
    ignored = (".lock", ".before-sagastore")
    return sorted(one.name for one in folder.iterdir() if not one.name.endswith(ignored))


def _require_archive(path: Path, made: Path) -> None:
    """Check all properties of an archive."""
    assert _files(path.parent) == sorted([made.name, "messages.db.receipt.json"])
    assert stat.S_IMODE(made.stat().st_mode) == 0o440
    assert stat.S_IMODE(path.with_name("messages.db.receipt.json").stat().st_mode) == 0o640
    result = receipt.check(made)
    assert result.ok, result.checks
    rows = {name: result.said.facts[name]["rows"] for name in ("messages", "quarantine", "files")}
    assert rows == {"messages": 3, "quarantine": 1, "files": 3}
    assert result.said.facts["tombstones"]["rows"] == 1
    assert (result.said.file, result.said.archive) == ("messages.db", made.name)
    with closing(sqlite3.connect(f"{made.as_uri()}?mode=ro", uri=True)) as plain:
        assert plain.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        state = json.loads(
            plain.execute("SELECT value FROM store_state WHERE name = 'migration'").fetchone()[0]
        )
        assert (state["phase"], state["epoch"], state["completing"]) == ("postgres-only", 6, False)
        ids = [key for (key,) in plain.execute("SELECT id FROM messages ORDER BY id")]
        assert ids == ["late", "m0", "m2"]
        assert plain.execute("SELECT count(*) FROM journal").fetchone() == (0,)


async def test_archive_has_all_rows_and_a_receipt(path: Path) -> None:
    await _ready(path)
    async with opened_source(path) as source:
        made = await source.archive(REPORT)
        _require_archive(path, made.path)
        said = receipt.read_receipt(made.receipt)
        assert said.report == REPORT
        assert said.made_by.startswith("sagastore-server ")
        assert (await source.state()).phase is Phase.POSTGRES_ONLY
        with pytest.raises(UnavailableError):
            await source.save(draft("x"))
        # Again, on the store that is closed now.
        assert await source.archive({}) == made
        assert await SQLiteSource(path).archive({}) == made
        _require_archive(path, made.path)
        assert receipt.read_receipt(made.receipt).report == REPORT


async def test_archive_includes_writes_in_progress(path: Path) -> None:
    async with opened_source(path) as source:
        saves = [asyncio.create_task(source.save(draft(f"m{n}"))) for n in range(50)]
        await asyncio.sleep(0)
        made = await source.archive({})
        outcomes = await asyncio.gather(*saves, return_exceptions=True)
        saved = sum(not isinstance(one, BaseException) for one in outcomes)
        assert receipt.check(made.path).said.facts["messages"]["rows"] == saved == 50


async def test_cancelled_caller_does_not_stop_archiving(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _ready(path)
    async with opened_source(path) as source:
        sealed = asyncio.Event()
        loop, seal = asyncio.get_running_loop(), source._sealed_as

        def seal_and_tell(state: MigrationState) -> None:
            seal(state)
            loop.call_soon_threadsafe(sealed.set)

        monkeypatch.setattr(source, "_sealed_as", seal_and_tell)
        archiving = asyncio.create_task(source.archive(REPORT))
        await sealed.wait()
        archiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await archiving
        _require_archive(path, path.with_name("messages.db.archive"))


async def test_close_waits_for_archiving(path: Path) -> None:
    await _ready(path)
    source = SQLiteSource(path)
    await source.open()
    archiving = asyncio.create_task(source.archive(REPORT))
    await asyncio.sleep(0)
    await source.close()
    assert archiving.done()
    _require_archive(path, (await archiving).path)


async def test_earlier_archive_and_receipt_are_kept(path: Path) -> None:
    async with opened_source(path) as source:
        await source.save(draft("first"))
        first = await source.archive({"which": 1})
    first.receipt.rename(path.with_name("aside"))
    source = SQLiteSource(path)
    await source.open()
    path.with_name("aside").rename(first.receipt)
    await source.save(draft("second"))
    second = await source.archive({"which": 2})
    assert (first.path.name, second.path.name) == ("messages.db.archive", "messages.db.archive-2")
    for made, number in ((first, 1), (second, 2)):
        result = receipt.check(made.path)
        assert result.ok
        assert result.said.report == {"which": number}
    assert result.receipt == second.receipt


async def test_missing_file_cannot_be_archived(path: Path) -> None:
    with pytest.raises(UnavailableError, match="it does not exist"):
        await SQLiteSource(path).archive({})
    async with opened_source(path) as source:
        made = await source.archive({})
    made.path.rename(path.with_name("taken away"))
    with pytest.raises(UnavailableError, match=r"neither it nor messages\.db\.archive"):
        await source.archive({})


# ------------------------------------------------------------------ interruptions

_KILLER = """
import json, os, shutil, signal, sqlite3, sys
from pathlib import Path
from sagastore_server.sqlite.backup.archive import archive_file

template, folder, report = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])

def archive_until(place, path):
    '''Archive, and be killed before the step that has the number `place`.'''
    steps = 0
    def step(*_):
        nonlocal steps
        steps += 1
        if steps == place:
            os.kill(os.getpid(), signal.SIGKILL)
    def heard(event, arguments):
        if event in {"open", "os.chmod", "os.rename", "os.remove", "sqlite3.connect"}:
            step()
    connect = sqlite3.connect
    def traced(*arguments, **options):
        connection = connect(*arguments, **options)
        connection.set_trace_callback(step)
        return connection
    sqlite3.connect = traced
    sys.addaudithook(heard)
    archive_file(path, report, lambda state: step())

for place in range(1, 1000):
    path = folder / f"{place:03}" / "messages.db"
    path.parent.mkdir()
    shutil.copyfile(template, path)
    if (child := os.fork()) == 0:
        archive_until(place, path)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(600)
async def test_archiving_resumes_after_kill_at_any_step(path: Path, tmp_path: Path) -> None:
    await _ready(path)
    folder = tmp_path / "killed"
    folder.mkdir()
    await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _KILLER, str(path), str(folder), json.dumps(REPORT)],
        check=True,
        timeout=200,
    )
    killed = sorted(folder.iterdir())
    finished = [one for one in killed if _files(one) == _files(killed[-1])]
    assert len(killed) > 25
    # Before the new name, nothing is final; after it, only the folder is still synced.
    assert 1 <= len(finished) <= 3
    seen: set[tuple[str, ...]] = set()
    for one in killed:
        seen.add(tuple(_files(one)))
        await _make_good(one / "messages.db")
    assert len(seen) >= 4


async def _make_good(path: Path) -> None:
    """Repeat the startup actions of a server after the crash."""
    for alone in (SQLiteStorage(path),):
        with pytest.raises(CannotOpenError, match="--postgres"):
            await alone.open()
    source = SQLiteSource(path)
    try:
        await source.open()
    except MovedError:
        made = path.with_name("messages.db.archive")
    else:
        state = await source.state()
        assert state.completing or state.phase is Phase.POSTGRES_ONLY
        made = (await source.archive(REPORT)).path
    finally:
        await source.close()
    for partial in path.parent.glob("*.partial"):
        raise AssertionError(f"{partial} is left")
    _require_archive(path, made)


# ------------------------------------------------------------------ refusals


async def test_foreign_reader_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "BUSY_TIMEOUT_MS", 50)
    await _ready(path)
    async with opened_source(path) as source:
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM messages").fetchone()
            with pytest.raises(UnavailableError, match="another program has it open") as caught:
                await source.archive(REPORT)
            assert "\n" not in str(caught.value)
            assert path.name in _files(path.parent)
        _require_archive(path, (await source.archive(REPORT)).path)


async def test_damaged_file_is_not_archived(path: Path) -> None:
    await _ready(path)
    async with opened_source(path) as source:
        await source.close()
        with path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(size // 2)
            file.write(b"\xff" * 4096)
        for _ in range(2):
            with pytest.raises(CorruptStoreError, match="messages are in PostgreSQL"):
                await source.archive(REPORT)
        assert _files(path.parent) == ["messages.db"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """Return a disk of 32 MiB; the test unmounts it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    command = [mount, "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("no disk can be mounted on this machine")
    return folder


def _empty(folder: Path) -> None:
    for one in folder.iterdir():
        one.unlink()


async def _refused_then_made_good(
    path: Path, kind: type[StorageError], *commands: list[str]
) -> None:
    source = SQLiteSource(path)
    refuse, allow = commands
    await asyncio.to_thread(subprocess.run, refuse, check=True)
    with pytest.raises(kind) as caught:
        await source.archive(REPORT)
    assert "\n" not in str(caught.value)
    await asyncio.to_thread(subprocess.run, allow, check=True)
    async with opened_source(path) as again:
        made = await again.archive(REPORT)
    _require_archive(path, made.path)


async def test_archiving_on_full_disk_or_read_only_folder(small_disk: Path) -> None:
    try:
        path = small_disk / "messages.db"
        ballast = small_disk / "ballast"
        for kind, refuse, allow in (
            (
                StorageFullError,
                ["sh", "-c", f"cat /dev/zero > {ballast} 2> /dev/null || true"],
                ["rm", str(ballast)],
            ),
            (
                StorageError,
                ["mount", "-o", "remount,ro", str(small_disk)],
                ["mount", "-o", "remount,rw", str(small_disk)],
            ),
        ):
            await _ready(path)
            path.with_name("messages.db.before-sagastore").unlink()
            await _refused_then_made_good(path, kind, refuse, allow)
            _empty(small_disk)
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", str(small_disk)], check=True)
