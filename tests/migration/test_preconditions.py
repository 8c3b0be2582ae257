"""What is refused, with which reasons; and that a refusal changes nothing."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.migration.single_store import SingleStore
from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.errors import CannotOpenError, FencedError, PreconditionError
from sagastore_server.storage.phase import Phase
from tests.migration.conftest import Place
from tests.migration.held import held
from tests.support.drafts import draft
from tests.support.migrating_service import backfilled, change, opened_live, refused, walk_to
from tests.support.postgres import execute, fresh_schema
from tests.support.waiting import until

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


@pytest.mark.parametrize(
    ("at", "wanted"),
    [
        (Phase.SQLITE_ONLY, Phase.BACKFILL),
        (Phase.SQLITE_ONLY, Phase.POSTGRES_ONLY),
        (Phase.DUAL_WRITE, Phase.READ_POSTGRES),
        (Phase.BACKFILL, Phase.SQLITE_ONLY),
        (Phase.READ_POSTGRES, Phase.DUAL_WRITE),
    ],
)
async def test_phase_change_by_two_steps_is_refused(place: Place, at: Phase, wanted: Phase) -> None:
    async with opened_live(*place) as service:
        await walk_to(service.control, at)
        epoch = (await service.control.status()).epoch
        assert await refused(service.control, wanted) == ["NOT_THE_NEXT_PHASE"]
        status = await service.control.status()
        assert (status.phase, status.epoch) == (at, epoch)


async def test_postgres_only_cannot_be_left(place: Place) -> None:
    async with opened_live(*place) as service:
        await walk_to(service.control, Phase.POSTGRES_ONLY)
        assert await refused(service.control, Phase.READ_POSTGRES) == ["NO_WAY_BACK"]


async def test_unreachable_postgresql_is_a_blocker(tmp_path: Path) -> None:
    async with opened_live(tmp_path / "messages.db", NOWHERE) as service:
        await service.backend.save(draft())
        assert await refused(service.control, Phase.DUAL_WRITE) == ["POSTGRES_NOT_USABLE"]
        status = await service.control.status()
        assert status.phase is Phase.SQLITE_ONLY
        assert [one.reason for one in status.blockers_to_next] == ["POSTGRES_NOT_USABLE"]


async def test_foreign_table_is_a_blocker(place: Place) -> None:
    await execute(place.dsn, "CREATE TABLE messages (id int)")
    async with opened_live(*place) as service:
        assert await refused(service.control, Phase.DUAL_WRITE) == ["POSTGRES_NOT_USABLE"]
    await execute(place.dsn, "SELECT id FROM messages")


class LateReplica(PostgreSQLTarget):
    """Answers when it may."""

    def __init__(self, dsn: str) -> None:
        super().__init__(PostgreSQLOptions(dsn, pool_min=1, pool_max=8))
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_answer.set()

    async def open(self) -> None:
        self.asked.set()
        await self.may_answer.wait()
        await super().open()


def _about_phases(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines of the log, without those of later attempts to open PostgreSQL."""
    return [line for line in caplog.messages if not line.startswith("PostgreSQL is unavailable: ")]


async def test_phase_change_survives_cancelled_caller(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    await execute(place.dsn, "CREATE TABLE messages (id int)")
    target = LateReplica(place.dsn)
    service = MigratingService(SQLiteSource(place.path), target)
    try:
        await service.backend.open()
        target.asked.clear()
        target.may_answer.clear()
        caplog.clear()
        changing = asyncio.create_task(change(service.control, Phase.DUAL_WRITE))
        await target.asked.wait()
        assert await refused(service.control, Phase.DUAL_WRITE) == ["CHANGE_UNDER_WAY"]
        changing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await changing
        target.may_answer.set()
        while not _about_phases(caplog):  # noqa: ASYNC110 - what is waited for sends no event
            await asyncio.sleep(0)
        assert await refused(service.control, Phase.DUAL_WRITE) == ["POSTGRES_NOT_USABLE"]
    finally:
        target.may_answer.set()
        await service.backend.close()
    gc.collect()
    (line,) = _about_phases(caplog)
    assert line.startswith("phase not changed, and the caller has disconnected: ")
    assert "messages" in line


async def test_newer_schema_is_a_blocker(place: Place) -> None:
    backend = PostgreSQLStorage(PostgreSQLOptions(place.dsn, pool_min=1))
    await backend.open()
    await backend.close()
    await execute(place.dsn, "INSERT INTO sagastore_schema VALUES (99, 99)")
    async with opened_live(*place) as service:
        assert await refused(service.control, Phase.DUAL_WRITE) == ["POSTGRES_NOT_USABLE"]


async def test_database_with_messages_is_a_blocker(place: Place) -> None:
    async with opened_live(*place) as service:
        backend = PostgreSQLStorage(PostgreSQLOptions(place.dsn, pool_min=1))
        await backend.open()
        await backend.save(draft("theirs"))
        await backend.close()
        assert await refused(service.control, Phase.DUAL_WRITE) == ["TARGET_NOT_EMPTY"]
        assert (await service.control.status()).phase is Phase.SQLITE_ONLY


async def test_migration_of_another_file_is_a_blocker(place: Place, tmp_path: Path) -> None:
    async with opened_live(tmp_path / "other.db", place.dsn) as service:
        await service.backend.save(draft("m-1"))
    async with opened_live(*place) as service:
        await walk_to(service.control, Phase.DUAL_WRITE)
    async with opened_live(tmp_path / "other.db", place.dsn) as service:
        assert await refused(service.control, Phase.DUAL_WRITE) == ["OTHER_MIGRATION"]


async def test_unfinished_backfill_is_a_blocker(place: Place) -> None:
    async with opened_live(*place) as service:
        await service.backend.save(draft())
        await walk_to(service.control, Phase.DUAL_WRITE)
        await change(service.control, Phase.BACKFILL)
        await service.control.control_backfill(
            paused=True, batch_size=None, max_rows_per_second=None
        )
        status = await service.control.status()
        if status.backfill.state.value != "done":
            reasons = await refused(service.control, Phase.READ_POSTGRES)
            assert "BACKFILL_NOT_DONE" in reasons


async def test_differing_rows_are_a_blocker(place: Place) -> None:
    async with opened_live(*place) as service:
        await service.backend.save(draft("m-1"))
        await walk_to(service.control, Phase.BACKFILL)
        await backfilled(service.control)
        await tamper(place.dsn, "UPDATE messages SET content = 'tampered'")
        found = [one async for one in service.control.verify(repair=True)]
        assert found[-1].mismatch_count == found[-1].repaired == 1
        assert [one.id for step in found for one in step.mismatches] == ["m-1"]
        assert "VERIFICATION_MISMATCH" in await refused(service.control, Phase.READ_POSTGRES)
        found = [one async for one in service.control.verify(repair=False)]
        assert found[-1].mismatch_count == 0
        await walk_to(service.control, Phase.READ_POSTGRES)


async def test_cutover_with_differing_row_is_refused(place: Place) -> None:
    async with opened_live(*place) as service:
        await service.backend.save(draft("m-1"))
        await walk_to(service.control, Phase.READ_POSTGRES)
        await service.backend.save(draft("m-2"))
        await tamper(place.dsn, "UPDATE messages SET content = 'tampered' WHERE id = 'm-2'")
        assert await refused(service.control, Phase.POSTGRES_ONLY) == ["VERIFICATION_MISMATCH"]
        status = await service.control.status()
        assert status.phase is Phase.READ_POSTGRES
        assert (await service.backend.save(draft("m-3"))).created


async def test_verify_with_one_store_is_refused(place: Place) -> None:
    async with opened_live(*place) as service:
        with pytest.raises(PreconditionError):
            await anext(aiter(service.control.verify(repair=False)))
        with pytest.raises(PreconditionError):
            await service.control.control_backfill(
                paused=True, batch_size=None, max_rows_per_second=None
            )


async def test_postgres_only_server_before_cutover_is_refused(place: Place) -> None:
    async with opened_live(*place) as service:
        await walk_to(service.control, Phase.READ_POSTGRES)
    alone = PostgreSQLStorage(PostgreSQLOptions(place.dsn, pool_min=1))
    with pytest.raises(CannotOpenError, match="--sqlite"):
        await alone.open()


async def test_new_file_beside_database_in_use_is_refused(place: Place, tmp_path: Path) -> None:
    async with opened_live(*place) as service:
        await walk_to(service.control, Phase.POSTGRES_ONLY)
    mistyped = tmp_path / "mistyped.db"
    with pytest.raises(CannotOpenError, match="omit --sqlite"):
        async with opened_live(mistyped, place.dsn):
            pass
    assert not mistyped.exists()


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.READ_POSTGRES])
async def test_new_file_beside_running_migration_is_refused(
    place: Place, tmp_path: Path, phase: Phase
) -> None:
    async with opened_live(*place) as service:
        await walk_to(service.control, phase)
    mistyped = tmp_path / "mistyped.db"
    with pytest.raises(CannotOpenError, match="give the path of that file"):
        async with opened_live(mistyped, place.dsn):
            pass
    assert not mistyped.exists()


@pytest.mark.parametrize("archive_is_there", [True, False])
async def test_archived_file_with_postgresql_of_another_migration_is_refused(
    place: Place, tmp_path: Path, *, archive_is_there: bool
) -> None:
    async with opened_live(*place) as service:
        await service.backend.save(draft("m-1"))
        await walk_to(service.control, Phase.POSTGRES_ONLY)
    async with fresh_schema() as other:
        async with opened_live(tmp_path / "other.db", other) as service:
            await walk_to(service.control, Phase.POSTGRES_ONLY)
        if not archive_is_there:
            place.path.with_name(f"{place.path.name}.archive").unlink()
        with pytest.raises(CannotOpenError, match="is not that database"):
            async with opened_live(place.path, other):
                pass
    async with opened_live(*place) as service:
        assert (await service.backend.get("m-1")).id == "m-1"


async def test_old_copy_of_file_is_refused(place: Place, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    async with opened_live(*place) as service:
        await service.backend.save(draft())
        await walk_to(service.control, Phase.DUAL_WRITE)
    copy.write_bytes(place.path.read_bytes())
    async with opened_live(*place) as service:
        await walk_to(service.control, Phase.READ_POSTGRES)
    with pytest.raises(CannotOpenError, match="older"):
        async with opened_live(copy, place.dsn):
            pass
    async with opened_live(*place) as service:
        await walk_to(service.control, Phase.POSTGRES_ONLY)
    with pytest.raises(CannotOpenError, match="old copy"):
        async with opened_live(copy, place.dsn):
            pass


async def test_wrong_database_during_migration_is_not_used(place: Place) -> None:
    """SQLite has everything, so it serves; the database that knows nothing is left alone."""
    async with opened_live(*place) as service:
        await walk_to(service.control, Phase.DUAL_WRITE)
        await service.backend.save(draft("m-1"))
    async with fresh_schema() as other, opened_live(place.path, other) as service:
        assert (await service.backend.get("m-1")).id == "m-1"
        await service.backend.save(draft("m-2"))
        async for status in service.control.watch():
            reasons = [one.reason for one in status.blockers_to_next]
            if reasons == ["TARGET_UNKNOWN"]:
                break
        await change(service.control, Phase.SQLITE_ONLY)
        await walk_to(service.control, Phase.READ_POSTGRES)
        assert (await service.backend.get("m-2")).id == "m-2"


async def test_single_store_reports_missing_option(place: Place) -> None:
    backend = PostgreSQLStorage(PostgreSQLOptions(place.dsn, pool_min=1))
    first, last = SingleStore(backend, Phase.SQLITE_ONLY), SingleStore(backend, Phase.POSTGRES_ONLY)
    assert await refused(first, Phase.DUAL_WRITE) == ["POSTGRES_NOT_CONFIGURED"]
    assert await refused(last, Phase.READ_POSTGRES) == ["NO_WAY_BACK"]


async def tamper(dsn: str, sql: str) -> None:
    """Change PostgreSQL behind the back of its holder, past the guard."""
    await execute(dsn, f"SET session_replication_role = replica; {sql}")


async def test_copy_of_file_in_use_is_refused(place: Place, tmp_path: Path) -> None:
    """Of two servers on copies of one file, the first continues and the second does not start."""
    copy = tmp_path / "copy.db"
    async with opened_live(*place) as service:
        await walk_to(service.control, Phase.DUAL_WRITE)
        await service.backend.save(draft("m-1"))
    copy.write_bytes(place.path.read_bytes())
    async with opened_live(*place) as service:
        with pytest.raises(CannotOpenError, match="another server"):
            async with opened_live(copy, place.dsn):
                pass
        await service.backend.save(draft("m-2"))


async def test_fenced_server_serves_nothing(place: Place, tmp_path: Path) -> None:
    async with opened_live(*place) as service:
        await walk_to(service.control, Phase.DUAL_WRITE)
        taking = "UPDATE migration SET holder = 'elsewhere:1:1', session = 'theirs'"
        await tamper(place.dsn, taking)
        async for status in service.control.watch():
            if "NOT_THE_HOLDER" in {one.reason for one in status.blockers_to_next}:
                break
        with pytest.raises(FencedError):
            await service.backend.save(draft("m-1"))
        with pytest.raises(FencedError):
            await service.backend.get("m-1")
        assert not (await service.backend.health()).healthy


async def test_refused_change_accepts_no_quarantine(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accepted count is committed together with the phase."""

    async def count() -> int:
        return 3

    async with held(place) as one:
        await one.backend.save(draft("m", "one"))
        await walk_to(one.control, Phase.BACKFILL)
        await backfilled(one.control)
        monkeypatch.setattr(one.source, "quarantine_count", count)
        monkeypatch.setattr("sagastore_server.migration.transitions.NEAR_WITHIN", 0.05)
        one.target.applying.close()
        await one.backend.save(draft("m", "two"))
        with pytest.raises(PreconditionError, match="did not catch up"):
            await change(one.control, Phase.READ_POSTGRES)
        assert one.service._current_state.state == await one.source.state()
        assert (await one.source.state()).accepted_quarantine != 3
        one.target.applying.open()
        await until(lambda: one.service._fallback.applied >= one.source.committed)
        await change(one.control, Phase.READ_POSTGRES)
        assert (await one.source.state()).accepted_quarantine == 3
