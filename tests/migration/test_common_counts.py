"""Counts of both stores at one revision, while one of them is ahead of the other."""

from __future__ import annotations

import pytest

from sagastore_server.migration.common_counts import MOST_PENDING
from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.runtime.session_deletion import SessionDeletion
from sagastore_server.runtime.supervisor import Supervisor
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.counts import PendingRecords
from sagastore_server.storage.files import NewFile
from sagastore_server.storage.migration import MigrationControl
from sagastore_server.storage.model import StoreHealth
from sagastore_server.storage.phase import Phase
from tests.migration.conftest import Place
from tests.support.drafts import NOW, draft
from tests.support.migrating_service import backfilled, opened_live, walk_to
from tests.support.postgres import execute


async def _change_much(backend: StorageBackend, name: str) -> None:
    """Save, replace, move and delete messages, sessions and files, old ones and new ones."""
    for n in range(6):
        await backend.save(draft(f"{name}-{n}", session_id=f"{name}-a" if n % 2 else None))
    await backend.save(draft(f"{name}-1", "moved", session_id=f"{name}-b"))
    await backend.delete(f"{name}-0")
    await backend.delete(f"{name}-3")
    await backend.delete(f"{name}-5")  # The last message of its session.
    await backend.update_session(f"{name}-empty", title="no messages")
    await backend.append(f"{name}-c", [draft(f"{name}-c{n}", session_id=f"{name}-c") for n in "12"])
    await SessionDeletion(backend, Supervisor()).delete(f"{name}-c")
    for n in range(3):
        await backend.save_file(_file(f"{name}-{n}"))
    await backend.delete_file(f"{name}-1")


def _file(id: str) -> NewFile:
    return NewFile(id, "a.txt", "/a.txt", "txt", "text", (), 4, NOW, "{}")


async def _counted_while_changing(service: MigratingService, place: Place, name: str) -> None:
    """Change much after the target was counted, and compare the counts."""
    source = service._source
    assert isinstance(source, SQLiteSource)
    target = PostgreSQLTarget(PostgreSQLOptions(place.dsn, pool_min=1, pool_max=2))
    await target.open()

    async def changed_since(position: int) -> PendingRecords | None:
        await _change_much(service.backend, name)
        pending = await source.pending_records(position, MOST_PENDING)
        assert pending is None or len(pending.messages) >= 6
        return pending

    try:
        # None: the journal was pruned meanwhile.
        for _ in range(20):
            counts = await target.count_beside(changed_since)
            if counts is not None:
                assert counts.source == counts.target
                return
            await service.backend.save(draft("again"))
        raise AssertionError("the journal was pruned each time")
    finally:
        await target.close()


async def _counted_at(control: MigrationControl, revision: int) -> tuple[StoreHealth, ...]:
    """Return the first counts that are not older than ``revision``: a status reuses counts."""
    async for status in control.watch():
        if min(store.revision for store in status.stores) >= revision:
            return status.stores
    raise AssertionError("the watch ended")


@pytest.mark.parametrize("phase", [Phase.BACKFILL, Phase.READ_POSTGRES])
async def test_counts_at_one_revision_do_not_differ_under_writes(
    place: Place, phase: Phase
) -> None:
    async with opened_live(*place) as service:
        await _change_much(service.backend, "before")
        await walk_to(service.control, Phase.BACKFILL)
        await backfilled(service.control)
        await walk_to(service.control, phase)
        for number in range(3):
            await _counted_while_changing(service, place, f"round-{number}")
            # The next round replaces and deletes what PostgreSQL has by now.
            await _counted_while_changing(service, place, "again")
        last = (await service.backend.save(draft("last"))).revision
        sqlite, postgresql = await _counted_at(service.control, last)
        assert sqlite.revision == postgresql.revision
        assert (sqlite.messages, sqlite.sessions, sqlite.files) == (
            postgresql.messages,
            postgresql.sessions,
            postgresql.files,
        )


async def test_counts_show_a_row_that_one_store_lacks(place: Place) -> None:
    async with opened_live(*place) as service:
        await service.backend.save(draft("a"))
        await service.backend.save(draft("b"))
        await walk_to(service.control, Phase.BACKFILL)
        await backfilled(service.control)
        await execute(
            place.dsn,
            "ALTER TABLE messages DISABLE TRIGGER USER; DELETE FROM messages WHERE id = 'a'; "
            "ALTER TABLE messages ENABLE TRIGGER USER",
        )
        async for status in service.control.watch():
            sqlite, postgresql = status.stores
            if postgresql.revision >= 0 and postgresql.messages == 1:
                assert sqlite.messages == 2
                break


async def test_counts_of_a_store_far_behind_have_no_common_revision(place: Place) -> None:
    async with opened_live(*place) as service:
        await walk_to(service.control, Phase.DUAL_WRITE)
        source = service._source
        assert isinstance(source, SQLiteSource)
        before = source.committed
        for n in range(4):
            await service.backend.save(draft(f"m-{n}"))
        assert await source.pending_records(before, 3) is None


async def test_one_store_has_no_common_revision(place: Place) -> None:
    async with opened_live(*place) as service:
        status = await service.control.status()
        assert {store.revision for store in status.stores} == {-1}
