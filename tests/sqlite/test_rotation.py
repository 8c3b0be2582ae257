"""Rotated backups: what is kept and removed, and what a killed process leaves."""

# ruff: noqa: ASYNC240 - nothing else runs on these loops that a look at a file could hold up

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sagastore_server.interfaces.backups import BackupRecord
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.backup.create import BackupError, StoreMovedError
from sagastore_server.sqlite.backup.record import read_record, record_path, write_record
from sagastore_server.sqlite.backup.restore import restore
from sagastore_server.sqlite.backup.rotation import LOCK, Rotated, due, locked
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import MigrationState
from tests.sqlite.sources import opened_source
from tests.support.backends import opened
from tests.support.drafts import draft


def silent(what: str, done: int, total: int) -> None:
    """Ignore the progress."""


async def save(path: Path, *ids: str) -> None:
    async with opened(lambda: SQLiteStorage(path)) as store:
        for one in ids:
            await store.save(draft(one, "text"))


def rotate(path: Path, folder: Path, keep: int) -> Rotated:
    with locked(path, folder) as rotation:
        return rotation.make(keep, silent)


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if one.name != LOCK)


def ids_in(backup: Path) -> list[str]:
    with closing(sqlite3.connect(f"{backup.as_uri()}?mode=ro&immutable=1", uri=True)) as plain:
        return [row[0] for row in plain.execute("SELECT id FROM messages ORDER BY id")]


async def test_newest_backups_of_a_store_are_kept(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    made = []
    for number in range(4):
        await save(path, f"m{number}")
        made.append(rotate(path, folder, keep=2))
    files = [one.report.file for one in made]
    assert files == sorted(files)
    assert names(folder) == [one.name for one in files[2:]]
    assert [len(one.removed) for one in made] == [0, 0, 1, 1]
    assert [one.kept for one in made] == [1, 2, 2, 2]
    assert ids_in(files[3]) == ["m0", "m1", "m2", "m3"]
    assert rotate(path, folder, keep=1).removed == tuple(files[2:])


async def test_failed_backup_removes_nothing(path: Path, tmp_path: Path) -> None:
    await save(path, "a")
    folder = tmp_path / "backups"
    rotate(path, folder, keep=2)
    rotate(path, folder, keep=2)
    before = names(folder)
    with closing(sqlite3.connect(path)) as damaged:
        damaged.execute("PRAGMA writable_schema = ON")
        damaged.execute("DELETE FROM sqlite_master WHERE name = 'messages_fts_data'")
        damaged.commit()
    with pytest.raises(BackupError):
        rotate(path, folder, keep=1)
    assert names(folder) == before


async def test_backups_of_a_lost_store_stay(path: Path, tmp_path: Path) -> None:
    """A server that finds no file creates an empty store, and the schedule goes on."""
    folder = tmp_path / "backups"
    await save(path, "a")
    lost = rotate(path, folder, keep=1).report.file
    path.unlink()
    await save(path)
    for _ in range(3):
        empty = rotate(path, folder, keep=1).report.file
    assert names(folder) == sorted([lost.name, empty.name])
    assert (ids_in(lost), ids_in(empty)) == (["a"], [])


async def test_other_files_stay(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    await save(path, "a")
    first = rotate(path, folder, keep=1).report.file
    prefix = first.name[: -len("20000101T000000Z.db")]
    others = [
        f"{prefix}20000101T000000Z.db.old",
        f"x{prefix}20000101T000000Z.db",
        f"{prefix}yesterday.db",
        f"{prefix}20009999T000000Z.db",
        f"{prefix}2000101T000000Z.db",
        f"{prefix}99991231T235959Z.db",
        "notes.txt",
    ]
    for name in others:
        (folder / name).touch()
    (folder / f"{prefix}20000101T000001Z.db").mkdir()
    (folder / f"{prefix}20000101T000002Z.db").symlink_to(folder / "notes.txt")
    second = rotate(path, folder, keep=1).report.file
    assert not first.exists()
    assert {*others, second.name} < set(names(folder))
    assert len(names(folder)) == len(others) + 3


async def test_clock_that_was_set_back_removes_older_backups_first(
    path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "backups"
    await save(path, "a")
    first = rotate(path, folder, keep=2).report.file
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    prefix = first.name[: -len("20000101T000000Z.db")]
    future = first.rename(folder / f"{prefix}{later:%Y%m%dT%H%M%SZ}.db")
    await save(path, "b")
    second = rotate(path, folder, keep=2).report.file
    assert names(folder) == [future.name, second.name]
    third = rotate(path, folder, keep=2).report.file
    assert names(folder) == [second.name, third.name]
    assert ids_in(third) == ["a", "b"]


async def test_partial_file_of_a_killed_process_is_removed(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    await save(path, "a")
    first = rotate(path, folder, keep=2).report.file
    left = [f"{first.name}.partial", f"{first.name}.partial-journal"]
    for name in (*left, "mine.partial"):
        (folder / name).touch()
    second = rotate(path, folder, keep=2).report.file
    assert names(folder) == sorted(["mine.partial", first.name, second.name])


async def test_second_process_is_refused(path: Path, tmp_path: Path) -> None:
    await save(path, "a")
    folder = tmp_path / "backups"
    with (
        locked(path, folder),
        pytest.raises(BackupError, match=r"another backup command is writing to .*backups; stop"),
        locked(path, folder),
    ):
        pass
    assert rotate(path, folder, keep=1).kept == 1


def test_folder_in_a_missing_folder_is_refused(path: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(BackupError, match=r"cannot use .*backups: No such file"),
        locked(path, tmp_path / "missing" / "backups"),
    ):
        pass


async def test_folder_may_be_a_link(path: Path, tmp_path: Path) -> None:
    await save(path, "a")
    (tmp_path / "disk").mkdir()
    (tmp_path / "backups").symlink_to(tmp_path / "disk")
    made = rotate(path, tmp_path / "backups", keep=1)
    assert names(tmp_path / "disk") == [made.report.file.name]


async def test_rotated_backup_is_restored(path: Path, tmp_path: Path) -> None:
    await save(path, "a", "b")
    made = rotate(path, tmp_path / "backups", keep=3).report.file
    await save(path, "c")
    restore(made, path, replace=True, progress=silent)
    assert ids_in(path) == ["a", "b"]
    # The restored store continues the same series.
    assert rotate(path, tmp_path / "backups", keep=1).removed == (made,)


async def test_store_that_moved_to_postgresql_ends_the_backups(path: Path, tmp_path: Path) -> None:
    async with opened_source(path) as source:
        await source.save(draft("a", "text"))
        await source.set_state(MigrationState(Phase.POSTGRES_ONLY, epoch=5))
    with pytest.raises(StoreMovedError, match=r"is an archive, .* copy the file"):
        rotate(path, tmp_path / "backups", keep=1)
    path.rename(path.with_name("messages.db.archive"))
    path.with_name("messages.db.receipt.json").write_text("{}")
    with pytest.raises(StoreMovedError, match=r"moved to PostgreSQL .* tools of PostgreSQL"):
        rotate(path, tmp_path / "backups", keep=1)
    assert names(tmp_path / "backups") == []


@pytest.mark.parametrize(
    ("newest", "expected"),
    [(None, 0), (1000 - 3600, 0), (1000 - 600, 3000), (1000, 3600), (90_000, 3600), (-90_000, 0)],
)
def test_next_backup_is_due_an_interval_after_the_newest(
    newest: float | None, expected: float
) -> None:
    assert due(newest, 3600, now=1000) == expected


def test_record_is_private_and_read_as_written(path: Path) -> None:
    assert read_record(path) is None
    record = BackupRecord(1.5, 2.5, 3600.0, 4096, 0.25)
    write_record(path, record)
    write_record(path, record._replace(size=5))
    assert read_record(path) == record._replace(size=5)
    assert record_path(path).stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["messages.db.backup.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"size": "1"}', '{"size": NaN}', '{"failed_at": [1]}', "\xff"]
)
def test_unreadable_record_is_no_record(path: Path, text: str) -> None:
    record_path(path).write_bytes(text.encode("latin-1"))
    assert read_record(path) is None


def test_record_of_another_version_has_defaults(path: Path) -> None:
    record_path(path).write_text('{"succeeded_at": 5, "new_field": "x"}')
    assert read_record(path) == BackupRecord(succeeded_at=5)
