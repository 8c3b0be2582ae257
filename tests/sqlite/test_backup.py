"""Backup is a consistent snapshot during writes; restore is all or nothing."""

# ruff: noqa: ASYNC240 - nothing else runs on these loops that a look at a file could hold up

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.backup import restore as restoring
from sagastore_server.sqlite.backup.create import BackupError, back_up
from sagastore_server.sqlite.backup.restore import restore
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.model import OnConflict
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import MigrationState
from tests.sqlite.sources import opened_source
from tests.support.backends import opened
from tests.support.drafts import draft, found
from tests.support.legacy_db import contents_of, legacy_db, numbered

LONG = "a text of some length " * 200


def silent(what: str, done: int, total: int) -> None:
    """Ignore the progress."""


async def fill(store: StorageBackend, prefix: str, count: int, text: str = LONG) -> None:
    drafts = [draft(f"{prefix}-{number}", f"{prefix} {text}") for number in range(count)]
    await store.bulk_save(drafts, OnConflict.REPLACE)


def ids_in(path: Path) -> list[str]:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as plain:
        return [row[0] for row in plain.execute("SELECT id FROM messages ORDER BY id")]


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if one.suffix not in {".lock", ".owner"})


async def ids_served(path: Path) -> list[str]:
    """Open the file as a server does, and check every message through the search index."""
    async with opened(lambda: SQLiteStorage(path)) as store:
        listed = (await store.scan_ids("", "\U0010ffff", 500)).messages
        in_order = sorted(listed, key=lambda one: one.position)
        assert await found(store, "text") == [one.id for one in in_order]
        return [one.id for one in listed]


class Meanwhile:
    """Runs an action on the event loop once during a backup, after its first pages."""

    def __init__(self, work: Callable[[], asyncio.Future[None] | None]) -> None:
        self.done = False
        self.steps: list[str] = []
        self._work = work

    def __call__(self, what: str, done: int, total: int) -> None:
        self.steps.append(what)
        if not self.done and 0 < done < total:
            self.done = True
            self._work()


async def test_backup_is_a_snapshot_during_writes(store: SQLiteStorage, path: Path) -> None:
    await fill(store, "before", 1500)
    loop = asyncio.get_running_loop()

    async def write() -> None:
        await fill(store, "while", 1500)
        await store.delete("before-7")
        await store.save(draft("before-8", "changed meanwhile"))
        # Nor does it hold the log for longer than it lasts, or the server at all.
        await store.checkpoint()

    meanwhile = Meanwhile(lambda: asyncio.run_coroutine_threadsafe(write(), loop).result(60))
    target = path.with_name("backup.db")
    report = await asyncio.to_thread(back_up, path, target, meanwhile)
    assert meanwhile.done
    assert meanwhile.steps[-2:] == ["verifying", "verifying the search index"]
    assert (report.contents.messages, report.contents.revision) == (1500, 1500)
    assert report.bytes == target.stat().st_size
    assert ids_in(target) == sorted(f"before-{number}" for number in range(1500))
    assert target.read_bytes()[18:20] == b"\x01\x01"  # Not in WAL mode: it needs no other file.
    assert names(path.parent) == ["backup.db", "messages.db", "messages.db-shm", "messages.db-wal"]
    # The server never noticed, and its log can be emptied again.
    assert (await store.health()).messages == 2999
    async with opened(lambda: SQLiteStorage(target)) as copy:
        assert (await copy.get("before-8")).content.startswith("before")
        assert (await copy.save(draft("new", "after the backup"))).revision == 1501


async def test_store_without_server_is_backed_up(path: Path) -> None:
    async with opened_source(path) as source:
        await source.save(draft("a", "text"))
        await source.set_state(MigrationState(Phase.DUAL_WRITE, epoch=2))
    report = back_up(path, path.with_name("backup.db"), silent)
    assert (report.contents.phase, report.contents.epoch) == (Phase.DUAL_WRITE, 2)
    assert names(path.parent) == ["backup.db", "messages.db"]


async def killed(path: Path, at: Path) -> None:
    """Create at ``at`` the files of a killed server: a store with a WAL."""
    async with opened(lambda: SQLiteStorage(path)) as store:
        await store.save(draft("killed", "text"))
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{path}{suffix}", f"{at}{suffix}")


async def test_store_of_killed_server_is_backed_up(path: Path) -> None:
    left = path.with_name("left.db")
    await killed(path, left)
    target = path.with_name("backup.db")
    assert back_up(left, target, silent).contents.messages == 1
    assert ids_in(target) == ["killed"]


async def test_backup_keeps_permissions_and_existing_files(path: Path) -> None:
    async with opened(lambda: SQLiteStorage(path)):
        pass
    path.chmod(0o600)
    target = path.with_name("backup.db")
    back_up(path, target, silent)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    before = contents_of(path.parent)
    with pytest.raises(BackupError, match="already exists"):
        back_up(path, target, silent)
    other = path.with_name("other.db")
    other.with_name("other.db.partial").write_text("another backup")
    with pytest.raises(BackupError, match="another backup is writing it"):
        back_up(path, other, silent)
    other.with_name("other.db.partial").unlink()
    assert contents_of(path.parent) == before

    def take_the_name(what: str, done: int, total: int) -> None:
        other.write_text("somebody was faster")

    with pytest.raises(BackupError, match="already exists"):
        back_up(path, other, take_the_name)
    assert other.read_text() == "somebody was faster"
    assert not other.with_name("other.db.partial").exists()


@pytest.mark.parametrize("step", ["copying", "verifying", "verifying the search index"])
async def test_interrupted_backup_leaves_no_file(path: Path, step: str) -> None:
    async with opened(lambda: SQLiteStorage(path)) as store:
        await store.save(draft("a", "text"))

    def interrupt(what: str, done: int, total: int) -> None:
        if what == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(path, path.with_name("backup.db"), interrupt)
    with pytest.raises(KeyboardInterrupt):
        restore(path, path.with_name("restored.db"), replace=False, progress=interrupt)
    assert names(path.parent) == ["messages.db"]


async def test_non_store_is_refused(path: Path) -> None:
    folder = path.parent
    legacy_db(folder / "memory.db", numbered(3))
    (folder / "text").write_text("no database")
    (folder / "empty").touch()
    with closing(sqlite3.connect(folder / "other.db")) as plain:
        plain.execute("CREATE TABLE things (id)")
    newer = folder / "newer.db"
    async with opened(lambda: SQLiteStorage(newer)):
        pass
    with closing(sqlite3.connect(newer)) as plain:
        plain.execute("PRAGMA user_version = 99")
    before = contents_of(folder)
    lines = {
        "memory.db": "is a legacy memory.db",
        "text": "not a SQLite database",
        "empty": "not a SQLite database|is empty",
        "other.db": "is not a SagaStore file",
        "newer.db": "schema version 99",
        "missing.db": "No such file",
    }
    for name, line in lines.items():
        with pytest.raises(BackupError, match=line):
            back_up(folder / name, folder / "backup.db", silent)
        with pytest.raises(BackupError, match=line):
            restore(folder / name, path, replace=False, progress=silent)
    (folder / "messages.db.lock").unlink()
    assert contents_of(folder) == before


async def damaged_copy(path: Path, at: Path, *, index: bool) -> None:
    """Create a store with a corrupt page of the messages or of the search index."""
    async with opened(lambda: SQLiteStorage(path)) as store:
        await fill(store, "one", 200)
    shutil.copyfile(path, at)
    with closing(sqlite3.connect(at)) as plain:
        if index:
            plain.execute("UPDATE messages_fts_data SET block = x'00' WHERE id > 100")
            plain.commit()
            return
        root = plain.execute("SELECT rootpage FROM sqlite_master WHERE name = 'messages'")
        (page,) = root.fetchone()
        (size,) = plain.execute("PRAGMA page_size").fetchone()
    with at.open("rb+") as file:
        file.seek((page - 1) * size + 8)
        file.write(os.urandom(size - 8))


@pytest.mark.parametrize("index", [False, True])
async def test_damaged_store_fails_verification(path: Path, *, index: bool) -> None:
    bad = path.with_name("bad.db")
    await damaged_copy(path, bad, index=index)
    with pytest.raises(BackupError, match="damaged"):
        back_up(bad, path.with_name("backup.db"), silent)
    with pytest.raises(BackupError, match="damaged"):
        restore(bad, path, replace=True, progress=silent)
    assert names(path.parent) == ["bad.db", "messages.db"]
    assert len(await ids_served(path)) == 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no disk can be mounted on this machine")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_full_disk_leaves_no_backup(
    path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(lambda: SQLiteStorage(path)) as store:
        await fill(store, "one", 600)
    with pytest.raises(BackupError, match="are needed; free space"):
        back_up(path, small_disk / "backup.db", silent)
    # It may also fill up after the look at what is free.
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096,) * 10))
    with pytest.raises(BackupError, match="the disk is full"):
        back_up(path, small_disk / "backup.db", silent)
    with pytest.raises(BackupError, match="the disk is full"):
        restore(path, small_disk / "messages.db", replace=False, progress=silent)
    assert names(small_disk) == []


# ------------------------------------------------------------------ restoring


@pytest.fixture
async def backup(tmp_path: Path) -> Path:
    """Create a backup with one message."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    async with opened(lambda: SQLiteStorage(folder / "store.db")) as store:
        await store.save(draft("backup", "text"))
    back_up(folder / "store.db", folder / "backup.db", silent)
    return folder / "backup.db"


async def test_restore_to_new_path(backup: Path, path: Path) -> None:
    before = backup.read_bytes()
    report = restore(backup, path, replace=False, progress=silent)
    assert (report.contents.messages, report.replaced) == (1, None)
    assert await ids_served(path) == ["backup"]
    assert backup.read_bytes() == before


async def test_restore_refuses_store_in_use(backup: Path, store: SQLiteStorage, path: Path) -> None:
    for replace in (False, True):
        with pytest.raises(BackupError, match="in use by another SagaStore server"):
            restore(backup, path, replace=replace, progress=silent)
    with pytest.raises(BackupError, match="is in use by a server, or was"):
        restore(path, path.with_name("new.db"), replace=False, progress=silent)
    await store.save(draft("still", "text"))


async def test_restore_refuses_file_open_elsewhere(backup: Path, path: Path) -> None:
    async with opened(lambda: SQLiteStorage(path)) as store:
        await store.save(draft("old", "text"))
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("SELECT count(*) FROM messages").fetchone() == (1,)
        with pytest.raises(BackupError, match="another program has"):
            restore(backup, path, replace=True, progress=silent)
    assert await ids_served(path) == ["old"]


async def test_restore_keeps_old_file(backup: Path, path: Path) -> None:
    with pytest.raises(BackupError, match="the file to be replaced"):
        restore(backup, backup, replace=True, progress=silent)
    await killed(path.with_name("former.db"), path)
    path.chmod(0o640)
    with pytest.raises(BackupError, match="--replace"):
        restore(backup, path, replace=False, progress=silent)
    for number in ("", "-2"):
        report = restore(backup, path, replace=True, progress=silent)
        assert report.replaced == path.with_name(f"messages.db.replaced{number}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    # What was only in the log of the old file is in it now, and nowhere else.
    assert await ids_served(path) == ["backup"]
    assert await ids_served(path.with_name("messages.db.replaced")) == ["killed"]


async def test_orphaned_log_is_not_applied(backup: Path, path: Path) -> None:
    """The main file was lost and its log was kept; SQLite would apply it to any database."""
    await killed(path.with_name("former.db"), path)
    path.unlink()
    report = restore(backup, path, replace=False, progress=silent)
    assert report.replaced is not None
    assert report.replaced.with_name(f"{report.replaced.name}-wal").exists()
    assert await ids_served(path) == ["backup"]


async def test_restore_keeps_damaged_file_and_companions(backup: Path, path: Path) -> None:
    await killed(path.with_name("former.db"), path)
    path.write_bytes(b"no database any more" * 1000)
    path.with_name("messages.db-wal").write_bytes(b"nor a log" * 1000)
    path.with_name("messages.db-journal").write_bytes(b"nor a journal" * 1000)
    assert restore(backup, path, replace=True, progress=silent).replaced is not None
    kept = {suffix: path.with_name(f"messages.db.replaced{suffix}") for suffix in ("", "-wal")}
    assert kept[""].read_bytes().startswith(b"no database")
    assert not path.with_name("messages.db-wal").exists()
    assert not path.with_name("messages.db-journal").exists()
    assert await ids_served(path) == ["backup"]


class Cut(BaseException):
    """Point at which a process is killed."""


@pytest.mark.parametrize("lost", [False, True])
async def test_restore_is_repeatable_after_kill_at_any_step(
    backup: Path, path: Path, monkeypatch: pytest.MonkeyPatch, *, lost: bool
) -> None:
    """Before each change of the folder; ``lost`` is a log without its file."""
    template = path.with_name("template")
    await killed(path.with_name("former.db"), template)
    changes = [(os, "link"), (Path, "rename"), (Path, "replace"), (restoring, "sync_folder")]
    for cut in range(20):
        for one in path.parent.glob("messages.db*"):
            one.unlink()
        for suffix in ("-wal",) if lost else ("", "-wal"):
            shutil.copyfile(f"{template}{suffix}", f"{path}{suffix}")
        left = iter(range(cut))
        with monkeypatch.context() as patch:
            for owner, name in changes:
                patch.setattr(owner, name, _until(left, getattr(owner, name)))
            try:
                restore(backup, path, replace=True, progress=silent)
            except Cut:
                if path.exists():
                    assert (await ids_served(path)) in (["killed"], ["backup"])
                else:
                    assert lost
                continue
        break
    else:
        raise AssertionError("it never came to its end")
    assert cut >= 3
    assert await ids_served(path) == ["backup"]


def _until(left: Iterator[int], usual: Callable[..., object]) -> Callable[..., object]:
    def limited(*given: object) -> object:
        if next(left, None) is None:
            raise Cut
        return usual(*given)

    return limited
