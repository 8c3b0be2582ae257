"""A PostgreSQL that is set back while the server runs is noticed, and gets again what it lacks."""

from __future__ import annotations

import asyncio

import pytest

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.errors import CannotOpenError, FencedError, UnavailableError
from sagastore_server.storage.files import NewFile
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.model import OnConflict
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import TargetState
from tests.migration.conftest import Place
from tests.migration.held import Backup, Held, held
from tests.support.drafts import NOW, draft
from tests.support.migrating_service import (
    change,
    eventually_current,
    opened_live,
    unblocked,
    walk_to,
)
from tests.support.waiting import until, until_async


async def _followed(one: Held) -> None:
    """Wait until PostgreSQL has every write."""
    assert await one.service._replicator.fallback.reach(one.source.committed, 30.0)


async def _equal(one: Held) -> None:
    """See that the stores do not differ."""
    async for progress in one.control.verify(repair=False):
        last = progress
    assert last.mismatch_count == 0


async def _changed_after(one: Held, backup: Backup) -> None:
    """Take a backup, and let PostgreSQL have a change, a new message and a deletion more."""
    await _followed(one)
    await backup.take()
    await one.backend.save(draft("m", "two"))
    await one.backend.save(draft("new", "new"))
    await one.backend.delete("gone")
    await _followed(one)
    assert await one.stored("new")


async def _begun(one: Held, phase: Phase) -> None:
    """Go to ``phase``, with two messages in both stores."""
    await walk_to(one.control, Phase.DUAL_WRITE)
    await one.backend.save(draft("m", "one"))
    await one.backend.save(draft("gone", "one"))
    await walk_to(one.control, phase)
    if phase is Phase.READ_POSTGRES:
        await eventually_current(one.control)


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.BACKFILL, Phase.READ_POSTGRES])
async def test_set_back_is_detected_while_idle(place: Place, phase: Phase) -> None:
    backup = Backup(place.dsn)
    async with held(place) as one:
        await _begun(one, phase)
        if phase is Phase.BACKFILL:
            await unblocked(one.control)
        await _changed_after(one, backup)
        await backup.restore()
        attachments = one.service._replicator.session.attachments
        await until(lambda: one.service._replicator.session.attachments > attachments)
        await _followed(one)
        assert [await one.stored(id) for id in ("m", "new", "gone")] == ["two", "new", ""]
        if phase is not Phase.DUAL_WRITE:
            await _equal(one)


async def test_set_back_is_detected_by_next_change(place: Place) -> None:
    """It must not be applied on top of what lacks the changes before it."""
    backup = Backup(place.dsn)
    async with held(place) as one:
        await _begun(one, Phase.DUAL_WRITE)
        await _changed_after(one, backup)
        # Nothing else asks PostgreSQL meanwhile.
        one.target.renewing.close()
        await backup.restore()
        await one.backend.save(draft("next", "next"))
        one.target.renewing.open()
        await _followed(one)
        assert [await one.stored(id) for id in ("m", "new", "next")] == ["two", "new", "next"]


async def test_set_back_during_backfill_is_detected(place: Place) -> None:
    backup = Backup(place.dsn)
    drafts = [draft(f"m-{number:03}") for number in range(200)]
    async with held(place) as one:
        await one.backend.bulk_save(drafts, OnConflict.REPLACE)
        await walk_to(one.control, Phase.DUAL_WRITE)
        one.target.copies_until_held = 0
        await change(one.control, Phase.BACKFILL)
        await one.target.copying.reached.wait()
        await one.control.control_backfill(paused=None, batch_size=20, max_rows_per_second=None)
        # The first notes are of its beginning; from then on each copies some rows.
        await one.target.let_pass(3)
        await backup.take()
        await one.target.let_pass(3)
        copied = one.service._replicator.session.mark.copied
        assert 0 < copied < len(drafts)
        await backup.restore()
        one.target.copying.open()
        await unblocked(one.control)
        assert one.service._replicator.session.mark.state is BackfillState.DONE
        assert len(await one.target.batch_get([one.id for one in drafts])) == len(drafts)
        await _equal(one)


async def _attached_again(one: Held, backup: Backup) -> None:
    """Set PostgreSQL back, and wait until the server has noticed; the journal is not applied."""
    one.target.applying.close()
    session = one.service._replicator.session
    attachments = session.attachments
    await backup.restore(cut=True)
    await until(lambda: session.attachments > attachments)


async def test_set_back_while_a_page_is_read_is_detected(place: Place) -> None:
    """The page continues a copy that the target has lost."""
    backup = Backup(place.dsn)
    drafts = [draft(f"m-{number:03}") for number in range(200)]
    async with held(place) as one:
        await one.backend.bulk_save(drafts, OnConflict.REPLACE)
        await walk_to(one.control, Phase.DUAL_WRITE)
        one.target.copies_until_held = 0
        await change(one.control, Phase.BACKFILL)
        await one.target.copying.reached.wait()
        await one.control.control_backfill(paused=None, batch_size=20, max_rows_per_second=None)
        await one.target.let_pass(3)
        await backup.take()
        await one.target.let_pass(3)
        # After a failure, the page is read again from the confirmed mark.
        one.source.scans.close()
        one.target.next_copy_fails = True
        one.target.copying.open()
        await until(lambda: not one.target.next_copy_fails)
        await one.source.scans.reached.wait()
        await _attached_again(one, backup)
        one.target.applying.open()
        one.source.scans.open()
        await unblocked(one.control)
        assert len(await one.target.batch_get([one.id for one in drafts])) == len(drafts)
        await _equal(one)


async def test_set_back_while_sessions_and_files_are_copied_is_detected(place: Place) -> None:
    """They are older than the journal, so that they are not in it a second time."""
    backup = Backup(place.dsn)
    async with held(place) as one:
        file = NewFile("f", "name", "/path", "pdf", "text", (), 1, NOW, "{}")
        await one.backend.save_file(file)
        await one.backend.save(draft("m"))
        await walk_to(one.control, Phase.DUAL_WRITE)
        await _followed(one)
        one.target.applying.close()
        # The second copy sets the mark, once PostgreSQL has the journal.
        one.target.copies_until_held = 1
        await change(one.control, Phase.BACKFILL)
        await one.target.applying.reached.wait()
        await until(lambda: one.service._replicator.session.mark.attempt > 0)
        await backup.take()
        one.target.applying.open()
        await one.target.copying.reached.wait()
        assert await one.target.files_by_id(["f"])
        position = one.source.committed

        async def pruned() -> bool:
            return (await one.source.journal_status(position)).pruned >= position

        await until_async(pruned)
        await backup.restore()
        one.target.copying.open()
        await unblocked(one.control)
        assert await one.target.files_by_id(["f"])
        await _equal(one)


async def test_set_back_during_the_change_to_read_postgres_is_detected(place: Place) -> None:
    """It is attached again after the journal was applied, and before PostgreSQL answers reads."""
    backup = Backup(place.dsn)
    async with held(place) as one:
        await _begun(one, Phase.BACKFILL)
        await unblocked(one.control)
        await _changed_after(one, backup)
        one.target.renewing.close()
        changing = asyncio.create_task(change(one.control, Phase.READ_POSTGRES))
        await until(lambda: one.service.phase is Phase.READ_POSTGRES)
        await one.target.renewing.reached.wait()
        await _attached_again(one, backup)
        one.target.renewing.open()
        await changing
        assert not one.service._replicator.fallback.current
        assert await one.text() == "two"
        one.target.applying.open()
        await eventually_current(one.control)
        assert [await one.stored(id) for id in ("m", "new", "gone")] == ["two", "new", ""]
        await _equal(one)


async def test_set_back_during_the_cutover_is_detected(place: Place) -> None:
    """It is attached again after the comparison, and has as many messages as before."""
    backup = Backup(place.dsn)
    async with held(place) as one:
        await _begun(one, Phase.READ_POSTGRES)
        await _changed_after(one, backup)
        one.target.counting.close()
        changing = asyncio.create_task(change(one.control, Phase.POSTGRES_ONLY))
        await one.target.counting.reached.wait()
        await _attached_again(one, backup)
        one.target.counting.open()
        with pytest.raises(UnavailableError, match="the phase was not changed"):
            await changing
        assert one.service.phase is Phase.READ_POSTGRES
        assert await one.text() == "two"
        one.target.applying.open()
        await eventually_current(one.control)
        await walk_to(one.control, Phase.POSTGRES_ONLY)
        assert [await one.stored(id) for id in ("m", "new", "gone")] == ["two", "new", ""]


async def test_set_back_before_this_session_waits_for_lease_expiry(place: Place) -> None:
    """The record names a session that has ended: the server waits for it, and is not fenced."""
    backup = Backup(place.dsn)
    async with held(place) as one:
        await _begun(one, Phase.READ_POSTGRES)
        await _followed(one)
        await backup.take()
    async with held(place) as one:
        await eventually_current(one.control)
        await one.backend.save(draft("m", "two"))
        await backup.restore(lease_seconds=0.5)
        await until(lambda: one.service._replicator.session.guard.contested is not None)
        # Until the lease has run out it might be another server's.
        with pytest.raises(UnavailableError, match="checking whether"):
            await one.backend.save(draft("m", "three"))
        await until(lambda: one.service._replicator.fallback.attached)
        assert not one.service._replicator.session.fenced
        await one.backend.save(draft("m", "four"))
        await eventually_current(one.control)
        assert await one.text() == await one.stored("m") == "four"
        await _equal(one)


async def test_read_after_lost_connections_is_not_answered_by_what_was_set_back(
    place: Place,
) -> None:
    backup = Backup(place.dsn)
    async with held(place) as one:
        await _begun(one, Phase.READ_POSTGRES)
        # Connections that are idle when the others are lost.
        await asyncio.gather(*[one.target.scan_ids("", "z", 10) for _ in range(4)])
        await _followed(one)
        await backup.take()
        await one.backend.save(draft("m", "two"))
        one.target.renewing.close()
        await one.target.renewing.reached.wait()
        await backup.restore(cut=True)
        replicator = one.service._replicator
        assert replicator.fallback.attached or replicator.session.must_reattach
        # The follower itself asks nothing for as long as it is held up.
        for _ in range(5):
            assert await one.text() == "two"
        one.target.renewing.open()
        await eventually_current(one.control)
        assert await one.stored("m") == "two"


async def test_listener_of_lost_connections_is_called_before_the_answer(place: Place) -> None:
    heard: list[str] = []
    async with held(place) as one:
        await walk_to(one.control, Phase.DUAL_WRITE)
    target = PostgreSQLTarget(PostgreSQLOptions(place.dsn, pool_min=1, pool_max=1))
    target.on_connection_loss(lambda: heard.append("lost"))
    await target.open()
    try:
        await target.last_id()
        pool = target._pool._pool
        (pid,) = [one._con.get_server_pid() for one in pool._holders if one._con is not None]
        async with held(place) as one:
            await one.target._pool.value(f"SELECT pg_terminate_backend({pid})")
        await target.last_id()
        assert heard == ["lost"]
    finally:
        await target.close()
    assert heard == ["lost"]


class Silent(PostgreSQLTarget):
    """Opens, and then cannot tell what is there."""

    async def inspect(self) -> TargetState:
        raise UnavailableError("PostgreSQL did not answer in time")


async def test_start_that_cannot_ask_postgresql_gives_one_line(place: Place) -> None:
    async with opened_live(place.path, place.dsn) as service:
        await service.backend.save(draft("m"))
        await walk_to(service.control, Phase.POSTGRES_ONLY)
    service = MigratingService(SQLiteSource(place.path), Silent(PostgreSQLOptions(place.dsn)))
    with pytest.raises(CannotOpenError, match="did not answer in time") as caught:
        await service.backend.open()
    assert "\n" not in str(caught.value)


async def test_deletion_lost_in_a_second_dual_write_is_applied_again(place: Place) -> None:
    """The target has rows from the first one, and no backfill: only the journal can delete."""
    backup = Backup(place.dsn)
    async with held(place) as one:
        await _begun(one, Phase.DUAL_WRITE)
        await _followed(one)
        await backup.take()
        await one.backend.delete("gone")
        await one.backend.save(draft("m", "two"))
        await _followed(one)
        await change(one.control, Phase.SQLITE_ONLY)
        await change(one.control, Phase.DUAL_WRITE)
        await until(lambda: one.service._replicator.fallback.attached)
        await backup.restore(lease_seconds=0.0)
        await until(lambda: one.service._replicator.fallback.attached)
        await one.backend.save(draft("next", "next"))
        await _followed(one)
        assert [await one.stored(id) for id in ("m", "gone", "next")] == ["two", "", "next"]


async def test_released_lease_does_not_stop_sqlite_only(place: Place) -> None:
    """A backfill in progress stops with an error when replication to the target ends."""
    drafts = [draft(f"m-{number:03}") for number in range(60)]
    async with held(place) as one:
        await one.backend.bulk_save(drafts, OnConflict.REPLACE)
        await walk_to(one.control, Phase.DUAL_WRITE)
        one.target.copies_until_held = 2
        await change(one.control, Phase.BACKFILL)
        await one.target.copying.reached.wait()
        await change(one.control, Phase.DUAL_WRITE)
        await change(one.control, Phase.SQLITE_ONLY)
        heard = one.service._backfill._replicator.lease_lost
        one.target.copying.open()
        session = one.service._replicator.session
        await until(lambda: session.copies_started == session.copies_ended)
        heard(FencedError("the lease was given back"))
        await one.backend.save(draft("after", "after"))
        assert await one.text("after") == "after"
