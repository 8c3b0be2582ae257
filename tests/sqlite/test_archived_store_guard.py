"""Guard of migrating and archived files: refused unless PostgreSQL is configured."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sagastore_server.sqlite.archived_store_guard import store_id_of
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.legacy.report import look_into
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.errors import CannotOpenError, MovedError, UnavailableError
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import MigrationState
from tests.sqlite.sources import content, opened_source
from tests.support.backends import opened
from tests.support.drafts import draft
from tests.support.legacy_db import contents_of


async def _refusal(store: SQLiteStorage, kind: type[CannotOpenError]) -> str:
    with pytest.raises(CannotOpenError) as caught:
        await store.open()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    await store.close()
    return str(caught.value)


async def test_identity_of_a_store_in_use_is_readable(path: Path) -> None:
    async with opened_source(path) as source:
        identity = source.store_id
        assert identity
    async with opened(lambda: SQLiteStorage(path)) as store:
        await store.save(draft("a"))
        assert store_id_of(path) == identity


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.BACKFILL, Phase.READ_POSTGRES])
async def test_file_under_migration_requires_postgresql(path: Path, phase: Phase) -> None:
    async with opened_source(path) as source:
        await source.save(draft("a"))
        await source.set_state(MigrationState(phase))
    before = contents_of(path.parent)
    line = await _refusal(SQLiteStorage(path), CannotOpenError)
    assert line == (
        f"{path} is in phase {phase.slug} of a migration to PostgreSQL; also set --postgres, or "
        "return to phase sqlite-only first"
    )
    assert contents_of(path.parent) == before
    assert look_into(path).refusal == line.removeprefix(f"{path} ")
    async with opened_source(path) as source:
        assert (await source.get("a")).id == "a"
        await source.set_state(MigrationState(Phase.SQLITE_ONLY))
    assert look_into(path).refusal is None
    async with opened(lambda: SQLiteStorage(path)) as alone:
        assert (await alone.get("a")).id == "a"


async def test_unreadable_state_is_refused(path: Path) -> None:
    async with opened_source(path):
        pass
    for text in ("nonsense", "[1]", '{"phase": "sideways"}', '{"phase": "backfill"}'):
        with closing(sqlite3.connect(path)) as plain:
            plain.execute("REPLACE INTO store_state VALUES ('migration', ?)", (text,))
            plain.commit()
        for store in (SQLiteStorage(path), SQLiteSource(path)):
            assert "restore the store from a backup" in await _refusal(store, CannotOpenError)
        assert "cannot be served" in str(look_into(path).refusal)


def _names(path: Path) -> list[str]:
    return sorted(one.name for one in path.parent.iterdir() if one.suffix != ".lock")


async def _archived(path: Path) -> Path:
    async with opened_source(path) as source:
        await source.save(draft("a"))
        return (await source.archive({})).path


async def test_archive_is_refused(path: Path) -> None:
    archive = await _archived(path)
    before = contents_of(path.parent)
    for store in (SQLiteStorage(archive), SQLiteSource(archive)):
        line = await _refusal(store, MovedError)
        assert line.startswith(f"{archive} was archived: the messages are in PostgreSQL since 20")
        assert line.endswith(" UTC; start with --postgres alone")
    assert contents_of(path.parent) == before
    # A copy that can be written to is still the archive.
    copy = path.with_name("copy.db")
    await asyncio.to_thread(shutil.copyfile, archive, copy)
    for store in (SQLiteStorage(copy), SQLiteSource(copy)):
        assert "was archived" in await _refusal(store, MovedError)
    assert copy.read_bytes() == archive.read_bytes()
    assert "was archived" in str(look_into(archive).refusal)


async def test_missing_file_with_receipt_is_refused(path: Path) -> None:
    await _archived(path)
    before = contents_of(path.parent)
    for store in (SQLiteStorage(path), SQLiteSource(path)):
        line = await _refusal(store, MovedError)
        assert line.startswith(f"{path} does not exist: its messages moved to PostgreSQL at 20")
        assert "the file is now messages.db.archive; start with --postgres alone" in line
        assert "move messages.db.receipt.json away" in line
    assert contents_of(path.parent) == before
    path.with_name("messages.db.receipt.json").rename(path.with_name("elsewhere.json"))
    async with opened(lambda: SQLiteStorage(path)) as new:
        assert (await new.health()).messages == 0


async def test_missing_file_with_unreadable_receipt_is_refused(path: Path) -> None:
    receipt = path.with_name("messages.db.receipt.json")
    receipt.write_text("torn", encoding="utf-8")
    line = await _refusal(SQLiteStorage(path), MovedError)
    assert "is not a receipt" in line
    assert "move messages.db.receipt.json away" in line
    assert _names(path) == [receipt.name]


async def test_receipt_next_to_file_is_ignored(path: Path) -> None:
    """The receipt may be left over after the file was recreated or restored."""
    await _archived(path)
    receipt = path.with_name("messages.db.receipt.json")
    text = receipt.read_text(encoding="utf-8")
    receipt.unlink()
    async with opened(lambda: SQLiteStorage(path)) as store:
        await store.save(draft("new"))
    receipt.write_text(text, encoding="utf-8")
    async with opened(lambda: SQLiteStorage(path)) as store:
        assert (await store.get("new")).id == "new"


async def test_symlink_leads_to_receipt(path: Path) -> None:
    link = path.with_name("link.db")
    async with opened_source(path):
        pass
    link.symlink_to(path)
    async with opened_source(link) as source:
        archive = await source.archive({})
    assert _names(path) == ["link.db", "messages.db.archive", "messages.db.receipt.json"]
    assert archive.path.name == "messages.db.archive"
    assert "now messages.db.archive" in await _refusal(SQLiteStorage(link), MovedError)
    assert "now messages.db.archive" in await _refusal(SQLiteStorage(path), MovedError)


async def test_file_awaiting_archiving_opens_sealed(path: Path) -> None:
    async with opened_source(path) as source:
        await source.save(draft("a"))
        identity, holder = source.store_id, source.holder
        await source.set_state(MigrationState(Phase.POSTGRES_ONLY, epoch=6))
    before = content(path)
    assert "was archived" in await _refusal(SQLiteStorage(path), MovedError)
    async with opened_source(path) as source:
        assert await source.state() == MigrationState(Phase.POSTGRES_ONLY, epoch=6)
        assert (source.store_id, source.holder, source.place) == (identity, holder, str(path))
        with pytest.raises(UnavailableError):
            await source.save(draft("b"))
        with pytest.raises(UnavailableError):
            await source.get("a")
        with pytest.raises(UnavailableError):
            await source.set_state(MigrationState())
        assert not (await source.health()).healthy
        with pytest.raises(CannotOpenError, match="in use"):
            await SQLiteSource(path).open()
        assert content(path) == before
        made = await source.archive({"finished": "later"})
    assert _names(path) == ["messages.db.archive", "messages.db.receipt.json"]
    said = json.loads(made.receipt.read_text(encoding="utf-8"))
    assert said["report"] == {"finished": "later"}
    assert (await source.state()).epoch == 6


async def test_source_has_path_and_holder_names(path: Path) -> None:
    async with opened_source(path) as source:
        status = os.stat(path)  # noqa: PTH116 - the numbers are what it is about
        host, device, inode = source.holder.rsplit(":", 2)
        assert host
        assert (int(device), int(inode)) == (status.st_dev, status.st_ino)
        assert source.place == str(path)
        identity = source.store_id
    copy = path.with_name("copy.db")
    await asyncio.to_thread(shutil.copyfile, path, copy)
    async with opened_source(copy) as other:
        assert other.store_id == identity
        assert other.holder != source.holder
