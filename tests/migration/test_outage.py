"""PostgreSQL dies, hangs, comes back, or comes back older: nothing is lost, nothing stale."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.storage.errors import UnavailableError
from sagastore_server.storage.model import OnConflict, Store
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Criteria, Scan
from tests.support.drafts import NOW, draft
from tests.support.migrating_service import (
    change,
    eventually_current,
    opened_live,
    walk_to,
)
from tests.support.postgres import PostgresProcess, postgres_process

SQLITE = (Store.SQLITE,)
BOTH = (Store.SQLITE, Store.POSTGRESQL)


@pytest.fixture
def postgres() -> Iterator[PostgresProcess]:
    """Run a PostgreSQL for this test, which may freeze or stop it."""
    with postgres_process() as process:
        yield process


@pytest.fixture
async def service(postgres: PostgresProcess, tmp_path: Path) -> AsyncIterator[MigratingService]:
    """Run a service of both stores, in READ_POSTGRES."""
    async with opened_live(tmp_path / "messages.db", postgres.dsn) as service:
        await service.backend.save(draft("old", "what was there before"))
        await walk_to(service.control, Phase.READ_POSTGRES)
        yield service


@contextmanager
def frozen(postgres: PostgresProcess) -> Iterator[None]:
    """Freeze PostgreSQL: connections stay open, and nothing is answered."""
    pids = [postgres.pid, *children_of(postgres.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in text.split()]


async def check_fallback(service: MigratingService) -> None:
    """Write and read as a client would; each write is seen at once."""
    backend = service.backend
    for number in range(5):
        saved = await backend.save(draft(f"new-{number}", f"text {number}"))
        assert saved.durable_on == SQLITE
        assert (await backend.get(f"new-{number}")).revision == saved.revision
    await backend.save(draft("old", "replaced meanwhile"))
    await backend.delete("new-4")
    page = await backend.search(Criteria(provider="anthropic"), Scan(False, 50))
    assert {message.id for message in page.messages} == {"old", *[f"new-{n}" for n in range(4)]}
    assert (await service.control.status()).reads_from_fallback
    with pytest.raises(UnavailableError):
        await backend.save(draft("new-9"), everywhere_within=0.1)
    assert (await backend.get("new-9")).id == "new-9"


async def check_return(service: MigratingService) -> None:
    await eventually_current(service.control)
    backend = service.backend
    assert (await backend.get("old")).content == "replaced meanwhile"
    found = await backend.batch_get([f"new-{n}" for n in range(10)])
    assert set(found) == {"new-0", "new-1", "new-2", "new-3", "new-9"}
    assert (await backend.save(draft("after"))).durable_on == BOTH
    async for progress in service.control.verify(repair=False):
        assert progress.mismatch_count == 0


async def test_outage_killed_postgresql_returns(
    postgres: PostgresProcess, service: MigratingService
) -> None:
    postgres.kill9()
    await check_fallback(service)
    postgres.start()
    await check_return(service)


async def test_outage_frozen_postgresql_returns(
    postgres: PostgresProcess, service: MigratingService
) -> None:
    with frozen(postgres):
        await check_fallback(service)
    await check_return(service)


async def test_outage_freeze_during_calls_is_answered_by_sqlite(
    postgres: PostgresProcess, service: MigratingService
) -> None:
    """SQLite answers the calls in progress when PostgreSQL freezes, before their time limit."""
    with frozen(postgres):
        calls = [service.backend.get("old") for _ in range(10)]
        writes = [service.backend.save(draft(f"w-{n}")) for n in range(10)]
        async with asyncio.timeout(30):
            await asyncio.gather(*calls, *writes)
    await eventually_current(service.control)
    assert len(await service.backend.batch_get([f"w-{n}" for n in range(10)])) == 10


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.BACKFILL])
async def test_outage_before_read_postgres_is_caught_up(
    postgres: PostgresProcess, tmp_path: Path, phase: Phase
) -> None:
    async with opened_live(tmp_path / "messages.db", postgres.dsn) as service:
        drafts = [draft(f"m-{n:04}", timestamp=NOW + n) for n in range(500)]
        await service.backend.bulk_save(drafts, OnConflict.REPLACE)
        await walk_to(service.control, Phase.DUAL_WRITE)
        await change(service.control, phase)
        postgres.kill9()
        await service.backend.save(draft("m-0001", "replaced while it was away"))
        await service.backend.delete("m-0002")
        postgres.start()
        await walk_to(service.control, Phase.READ_POSTGRES)
        assert (await service.backend.get("m-0001")).content == "replaced while it was away"
        assert await service.backend.batch_get(["m-0002"]) == {}


async def test_outage_allows_phase_back_and_forward(
    postgres: PostgresProcess, service: MigratingService
) -> None:
    postgres.kill9()
    for phase in (Phase.BACKFILL, Phase.DUAL_WRITE, Phase.SQLITE_ONLY):
        await change(service.control, phase)
        await service.backend.save(draft("old", f"changed in {phase.slug}"))
    postgres.start()
    await walk_to(service.control, Phase.READ_POSTGRES)
    assert (await service.backend.get("old")).content == "changed in sqlite-only"
    await walk_to(service.control, Phase.POSTGRES_ONLY)
    assert (await service.backend.get("old")).content == "changed in sqlite-only"


async def test_outage_at_start_serves_from_sqlite(
    postgres: PostgresProcess, tmp_path: Path
) -> None:
    path = tmp_path / "messages.db"
    async with opened_live(path, postgres.dsn) as service:
        await service.backend.save(draft("old"))
        await walk_to(service.control, Phase.READ_POSTGRES)
    postgres.kill9()
    async with opened_live(path, postgres.dsn) as service:
        await check_fallback(service)
        postgres.start()
        await check_return(service)


async def test_outage_with_older_backup_is_rejournalled(
    postgres: PostgresProcess, tmp_path: Path
) -> None:
    """What it had confirmed and lost is journalled again, from what SQLite has."""
    path = tmp_path / "messages.db"
    data, backup = Path(postgres.dsn.partition("host=")[2]) / "data", tmp_path / "backup"
    async with opened_live(path, postgres.dsn) as service:
        await service.backend.bulk_save([draft(f"m-{n}") for n in range(50)], OnConflict.REPLACE)
        await walk_to(service.control, Phase.READ_POSTGRES)
    postgres.stop()
    shutil.copytree(data, backup)
    keep_owner(data, backup)
    postgres.start()
    async with opened_live(path, postgres.dsn) as service:
        await service.backend.save(draft("m-1", "after the backup"))
        await service.backend.save(draft("m-new"))
        await service.backend.delete("m-2")
        await service.control.status()
        await pruned(service)
    postgres.stop()
    postgres.replace_data(backup)
    postgres.start()
    async with opened_live(path, postgres.dsn) as service:
        await eventually_current(service.control)
        assert (await service.backend.get("m-1")).content == "after the backup"
        found = await service.backend.batch_get(["m-new", "m-2"])
        assert set(found) == {"m-new"}
        async for progress in service.control.verify(repair=False):
            assert progress.mismatch_count == 0


async def pruned(service: MigratingService) -> None:
    """Wait until the journal has forgotten what was confirmed."""
    async for _ in service.control.watch():
        if not (await service._source.journal_status(0)).rows:
            return


def keep_owner(like: Path, folder: Path) -> None:
    owner = like.stat()
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, owner.st_uid, owner.st_gid)
    folder.chmod(0o700)
