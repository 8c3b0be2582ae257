"""Permissions of the files of a store: none for other users, those of the group as set."""

# ruff: noqa: ASYNC240 - nothing else runs on these loops that a look at a file could hold up

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.backup.create import back_up
from sagastore_server.sqlite.backup.restore import restore
from tests.support.backends import opened
from tests.support.drafts import draft
from tests.support.legacy_db import legacy_db, numbered
from tests.support.other_user import needs_root

GROUP = 7
"""A group that is not the one of this process."""


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Set a umask that restricts nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


def silent(what: str, done: int, total: int) -> None:
    """Ignore the progress."""


def modes(folder: Path) -> dict[str, str]:
    return {one.name: f"{stat.S_IMODE(one.stat().st_mode):o}" for one in sorted(folder.iterdir())}


async def test_files_of_a_new_store_are_private(path: Path) -> None:
    async with opened(lambda: SQLiteStorage(path)) as store:
        await store.save(draft("a", "text"))
        names = ("", "-shm", "-wal", ".lock", ".owner")
        assert modes(path.parent) == {f"messages.db{suffix}": "600" for suffix in names}


async def test_access_of_other_users_to_an_existing_store_is_removed(path: Path) -> None:
    async with opened(lambda: SQLiteStorage(path)) as store:
        await store.save(draft("a", "text"))
    path.chmod(0o646)
    alias = path.with_name("alias.db")
    alias.symlink_to(path)
    with capture_logs() as logs:
        async with opened(lambda: SQLiteStorage(alias)) as store:
            await store.save(draft("b", "text"))
            found = modes(path.parent)
    assert {found[name] for name in ("messages.db", "messages.db-wal", "messages.db-shm")} == {
        "640"
    }
    (line,) = [line for line in logs if line["event"].startswith("removed the access")]
    assert line["files"] == ["messages.db"]
    with capture_logs() as logs:
        async with opened(lambda: SQLiteStorage(path)):
            pass
    assert [line for line in logs if line["event"].startswith("removed the access")] == []


async def test_access_of_the_group_is_kept(path: Path) -> None:
    async with opened(lambda: SQLiteStorage(path)):
        pass
    path.chmod(0o640)
    async with opened(lambda: SQLiteStorage(path)) as store:
        await store.save(draft("a", "text"))
        assert modes(path.parent)["messages.db"] == "640"
    back_up(path, path.with_name("backup.db"), silent)
    assert modes(path.parent)["backup.db"] == "640"
    restore(path.with_name("backup.db"), path.with_name("new.db"), replace=False, progress=silent)
    assert modes(path.parent)["new.db"] == "600"
    restore(path.with_name("backup.db"), path, replace=True, progress=silent)
    assert modes(path.parent)["messages.db"] == "640"


@needs_root
async def test_group_of_a_replaced_store_is_kept(path: Path) -> None:
    async with opened(lambda: SQLiteStorage(path)):
        pass
    back_up(path, path.with_name("backup.db"), silent)
    path.chmod(0o660)
    os.chown(path, -1, GROUP)
    restore(path.with_name("backup.db"), path, replace=True, progress=silent)
    assert (path.stat().st_gid, modes(path.parent)["messages.db"]) == (GROUP, "660")


async def test_copy_of_a_legacy_file_has_no_access_for_others(path: Path) -> None:
    legacy_db(path, numbered(3))
    path.chmod(0o666)
    async with opened(lambda: SQLiteStorage(path)):
        pass
    found = modes(path.parent)
    assert (found["messages.db"], found["messages.db.before-sagastore"]) == ("660", "660")


async def test_refused_file_keeps_its_permissions(path: Path) -> None:
    path.write_text("no database")
    path.chmod(0o644)
    store = SQLiteStorage(path)
    with pytest.raises(Exception, match="is not a SQLite database"):
        await store.open()
    await store.close()
    assert modes(path.parent)["messages.db"] == "644"
