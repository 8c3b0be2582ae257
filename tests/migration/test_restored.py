"""A SQLite file that comes from a backup, while PostgreSQL went on, or did not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import asyncpg
import pytest

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.backup.create import BackupError, back_up
from sagastore_server.sqlite.backup.restore import restore
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import CannotOpenError
from sagastore_server.storage.migration import MigrationControl
from sagastore_server.storage.phase import Phase
from tests.migration.conftest import Place
from tests.sqlite.sources import content, opened_source
from tests.support.backends import opened
from tests.support.drafts import draft
from tests.support.migrating_service import (
    backfilled,
    change,
    eventually_current,
    live,
    opened_live,
    refused,
    unblocked,
    walk_to,
)
from tests.support.postgres import execute, fresh_schema

NOWHERE = "postgresql://me@127.0.0.1:1/saga"
PROMOTE = Path(__file__).parents[2] / "docs/sql/promote.sql"
JOURNALLING = [Phase.DUAL_WRITE, Phase.BACKFILL, Phase.READ_POSTGRES]


async def save(backend: StorageBackend, *ids: str, text: str = "as it was") -> None:
    for id in ids:
        await backend.save(draft(id, f"{id} {text}"))


def take(place: Place, name: str = "backup.db") -> Path:
    backup = place.path.with_name(name)
    back_up(place.path, backup, lambda *_: None)
    return backup


def put_back(backup: Path, place: Place) -> None:
    """Restore, and forget the file that was lost."""
    report = restore(backup, place.path, replace=True, progress=lambda *_: None)
    assert report.contents.restored == report.contents.revision


async def refusal(place: Place, dsn: str) -> str:
    service = live(place.path, dsn)
    with pytest.raises(CannotOpenError) as caught:
        await service.backend.open()
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def restored_note(path: Path) -> int:
    async with opened_source(path) as source:
        return (await source.state()).restored


async def equal(control: MigrationControl, ids: Iterable[str], service: MigratingService) -> None:
    """See that both stores have these ids and nothing else, field by field."""
    async for progress in control.verify(repair=False):
        last = progress
    assert (last.mismatch_count, last.compared) == (0, len(list(ids)))
    assert sorted(await service.backend.batch_get(list(ids))) == sorted(ids)


async def followed(service: MigratingService) -> None:
    """Wait until PostgreSQL has every write."""
    async for status in service.control.watch():
        if not status.journal_rows:
            return


@pytest.mark.parametrize("phase", JOURNALLING)
async def test_restored_file_older_than_postgresql_is_refused(place: Place, phase: Phase) -> None:
    async with opened_live(place.path, place.dsn) as service:
        await save(service.backend, "a", "b")
        await walk_to(service.control, phase)
        backup = await asyncio.to_thread(take, place)
        await save(service.backend, "c")
        await followed(service)
    put_back(backup, place)
    last = content(place.path).revision
    # Without PostgreSQL it cannot be known; writes would take the numbers of lost ones.
    line = await refusal(place, NOWHERE)
    assert line.startswith(f"{place.path} was restored from a backup, and must be compared once")
    assert "is older than its copy in PostgreSQL" in await refusal(place, place.dsn)
    # No start makes it forget that.
    assert await restored_note(place.path) == last


@pytest.mark.parametrize("phase", JOURNALLING)
async def test_restored_file_without_later_changes_is_served(place: Place, phase: Phase) -> None:
    async with opened_live(place.path, place.dsn) as service:
        await save(service.backend, "a", "b")
        await walk_to(service.control, phase)
        if phase is not Phase.DUAL_WRITE:
            await backfilled(service.control)
        backup = await asyncio.to_thread(take, place)
    put_back(backup, place)
    async with opened_live(place.path, place.dsn) as service:
        assert service.phase is phase
        await save(service.backend, "c")
        await walk_to(service.control, Phase.BACKFILL)
        await backfilled(service.control)
        await equal(service.control, ["a", "b", "c"], service)
    # It has been asked. From now on the file is like any other.
    assert await restored_note(place.path) == -1
    async with opened_live(place.path, NOWHERE) as service:
        await save(service.backend, "d")


async def test_restored_file_loses_unreplicated_changes_in_both_stores(place: Place) -> None:
    async with opened_live(place.path, place.dsn) as service:
        await save(service.backend, "a")
        await walk_to(service.control, Phase.BACKFILL)
        await backfilled(service.control)
    async with opened_live(place.path, NOWHERE) as service:
        await save(service.backend, "b")
        backup = await asyncio.to_thread(take, place)
        await save(service.backend, "lost", "a", text="changed, and lost")
    put_back(backup, place)
    async with opened_live(place.path, place.dsn) as service:
        await save(service.backend, "c", "a", text="new")
        await walk_to(service.control, Phase.READ_POSTGRES)
        await equal(service.control, ["a", "b", "c"], service)
        assert (await service.backend.get("a")).content == "a new"


async def test_restored_file_with_reused_revisions_is_refused(place: Place) -> None:
    """The case that no look at revisions alone would find."""
    async with opened_live(place.path, place.dsn) as service:
        await save(service.backend, "a")
        backup = await asyncio.to_thread(take, place)
        await walk_to(service.control, Phase.DUAL_WRITE)
        await save(service.backend, "lost")
        await followed(service)
        await change(service.control, Phase.SQLITE_ONLY)
    put_back(backup, place)
    line = await refusal(place, NOWHERE)
    assert line.endswith("start again, or omit --postgres to serve the file alone")
    assert "is older" in await refusal(place, place.dsn)
    # Alone it may be served, and is now ahead by numbers.
    async with opened(lambda: SQLiteStorage(place.path)) as alone:
        await save(alone, "b", "c", "d", "e")
    assert "is older" in await refusal(place, place.dsn)


async def test_restored_file_with_unreplicated_phase_is_refused(
    place: Place,
) -> None:
    async with opened_live(place.path, place.dsn) as service:
        await save(service.backend, "a")
        await walk_to(service.control, Phase.DUAL_WRITE)
        backup = await asyncio.to_thread(take, place)
        await save(service.backend, "lost")
        await followed(service)
    put_back(backup, place)
    # Back to sqlite-only without PostgreSQL's word: the epoch grows on both lines.
    async with opened_source(place.path) as source:
        state = await source.state()
        await source.set_state(state._replace(phase=Phase.SQLITE_ONLY, epoch=state.epoch + 1))
    async with opened(lambda: SQLiteStorage(place.path)) as alone:
        await save(alone, "b", "c")
    assert "is older" in await refusal(place, place.dsn)


async def test_restored_file_starts_new_migration(place: Place) -> None:
    async with opened_live(place.path, place.dsn) as service:
        await save(service.backend, "a")
        backup = await asyncio.to_thread(take, place)
    put_back(backup, place)
    async with opened_live(place.path, place.dsn) as service:
        await save(service.backend, "b")
        await walk_to(service.control, Phase.DUAL_WRITE)
        await save(service.backend, "c")
        await followed(service)
    async with opened_live(place.path, place.dsn) as service:
        await unblocked(service.control)
        await walk_to(service.control, Phase.READ_POSTGRES)
        await eventually_current(service.control)
        await equal(service.control, ["a", "b", "c"], service)


async def test_restored_file_with_empty_database_starts_again(place: Place) -> None:
    """What a refusal offers: go back, and begin again elsewhere."""
    async with opened_live(place.path, place.dsn) as service:
        await save(service.backend, "a")
        await walk_to(service.control, Phase.DUAL_WRITE)
        backup = await asyncio.to_thread(take, place)
        await save(service.backend, "lost")
        await followed(service)
    put_back(backup, place)
    assert "or give it an empty database" in await refusal(place, place.dsn)
    async with fresh_schema() as empty, opened_live(place.path, empty) as service:
        assert await refused(service.control, Phase.BACKFILL) == ["TARGET_UNKNOWN"]
        await change(service.control, Phase.SQLITE_ONLY)
        await save(service.backend, "b")
        await walk_to(service.control, Phase.BACKFILL)
        await backfilled(service.control)
        await equal(service.control, ["a", "b"], service)
    assert await restored_note(place.path) == -1


async def test_restore_after_cutover_is_refused(place: Place) -> None:
    async with opened_live(place.path, place.dsn) as service:
        await save(service.backend, "a")
        await walk_to(service.control, Phase.READ_POSTGRES)
        backup = await asyncio.to_thread(take, place)
    # Made during the last step: the file records that step as started.
    async with opened_source(place.path) as source:
        state = await source.state()
        await source.set_state(state._replace(completing=True))
        midway = await asyncio.to_thread(take, place, "midway.db")
        await source.set_state(state)
    async with opened_live(place.path, place.dsn) as service:
        await unblocked(service.control)
        await eventually_current(service.control)
        await change(service.control, Phase.POSTGRES_ONLY)
    with pytest.raises(BackupError, match="its messages have moved to PostgreSQL") as caught:
        restore(backup, place.path, replace=False, progress=lambda *_: None)
    receipt = place.path.with_name("messages.db.receipt.json")
    assert f"move {receipt.name} away" in str(caught.value)
    receipt.rename(receipt.with_name("elsewhere.json"))
    for one in (backup, midway):
        put_back(one, place)
        assert "is an old copy of the file" in await refusal(place, place.dsn)
    archive = place.path.with_name("messages.db.archive")
    with pytest.raises(BackupError, match="is an archive"):
        back_up(archive, place.path.with_name("b.db"), lambda *_: None)
    with pytest.raises(BackupError, match="is the archive of a store"):
        restore(archive, place.path, replace=True, progress=lambda *_: None)


async def test_lost_file_leaves_postgresql_serving(place: Place) -> None:
    """docs/sql/promote.sql, as docs/how-to/backup.md says to run it."""
    promote = PROMOTE.read_text(encoding="utf-8")
    async with opened_live(place.path, place.dsn) as service:
        await save(service.backend, "a", "b")
        await walk_to(service.control, Phase.BACKFILL)
        with pytest.raises(asyncpg.RaiseError, match="not the target of a migration in phase"):
            await execute(place.dsn, promote)
        await walk_to(service.control, Phase.READ_POSTGRES)
        await eventually_current(service.control)
        last = (await service.backend.save(draft("c", "text"))).revision
        with pytest.raises(asyncpg.RaiseError, match="a server holds this migration"):
            await execute(place.dsn, promote)
    await execute(place.dsn, promote)
    async with opened(lambda: PostgreSQLStorage(PostgreSQLOptions(place.dsn))) as alone:
        assert sorted(await alone.batch_get(["a", "b", "c"])) == ["a", "b", "c"]
        assert (await alone.save(draft("d", "text"))).revision > last
    # Should the file turn up again, it is refused.
    assert "is an old copy of the file" in await refusal(place, place.dsn)
