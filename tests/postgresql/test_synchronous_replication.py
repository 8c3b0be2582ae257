"""Writes on a PostgreSQL with a synchronous standby: none is acknowledged that a failover loses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sagastore import AsyncClient, Message
from sagastore_server.migration.migrating_service import MigratingService, Options
from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.rpc.admission import Limits
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.errors import NotReplicatedError, PreconditionError, UnavailableError
from sagastore_server.storage.migration import MigrationControl
from sagastore_server.storage.model import Store
from sagastore_server.storage.phase import Phase
from tests.support.backends import opened
from tests.support.drafts import lone
from tests.support.in_process_server import served
from tests.support.migrating_service import change
from tests.support.postgres import execute, with_parameter
from tests.support.standby import ReplicatedPostgres, replicated_postgres
from tests.support.waiting import WITHIN, until, until_async

_WINDOW = "sagastore_server.postgresql.commit._STANDBY_RETURNS_WITHIN"
_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
_CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture(scope="module")
def postgres() -> Iterator[ReplicatedPostgres]:
    with replicated_postgres() as both:
        asyncio.run(_prepare(both))
        yield both


async def _prepare(postgres: ReplicatedPostgres) -> None:
    await postgres.start()
    # Fewer messages than the server relies on.
    await execute(postgres.primary.dsn, "ALTER DATABASE postgres SET client_min_messages = error")


@asynccontextmanager
async def store(postgres: ReplicatedPostgres, **options: Any) -> AsyncIterator[PostgreSQLStorage]:
    values = PostgreSQLOptions(postgres.primary.dsn, pool_min=1, pool_max=4)
    async with opened(lambda: PostgreSQLStorage(values._replace(**options))) as backend:
        assert isinstance(backend, PostgreSQLStorage)
        yield backend


def unconfirmed(backend: PostgreSQLStorage) -> int:
    (load,) = backend.loads()
    return load.commits_unconfirmed


async def until_commit_waits(postgres: ReplicatedPostgres) -> None:
    async def holds() -> bool:
        return bool(await postgres.value(_WAITING))

    await until_async(holds)


@pytest.mark.parametrize("statement_cache", [100, 0], ids=["session", "pgbouncer"])
async def test_cancelled_wait_for_the_standby_is_not_acknowledged(
    postgres: ReplicatedPostgres, statement_cache: int
) -> None:
    """PostgreSQL reports such a commit as a success, with a warning."""
    one = lone(f"cancelled-{statement_cache}")
    async with store(postgres, statement_cache=statement_cache) as backend:
        async with postgres.frozen_standby():
            saving = asyncio.create_task(backend.save(one))
            await until_commit_waits(postgres)
            await postgres.value(_CANCEL)
            with pytest.raises(UnavailableError, match="its standby has not confirmed it"):
                await saving
        assert unconfirmed(backend) == 1
        # The commit is on the disk of the primary; a repetition is confirmed.
        assert (await backend.get(one.id)).content == one.content
        result = await backend.save(one)
        assert not result.created
        assert unconfirmed(backend) == 1


async def test_time_limit_of_a_statement_that_waits_for_the_standby(
    postgres: ReplicatedPostgres,
) -> None:
    """PostgreSQL does not apply it to a commit; the server stops waiting."""
    async with store(postgres, statement_timeout=0.5) as backend:
        async with postgres.frozen_standby():
            with pytest.raises(UnavailableError, match="did not answer in time"):
                await backend.save(lone("timeout"))
        assert not (await backend.save(lone("timeout"))).created


async def test_commit_that_waits_is_visible(postgres: ReplicatedPostgres) -> None:
    async with store(postgres) as backend:
        assert backend.loads()[0].commit_seconds == 0
        async with postgres.frozen_standby():
            saving = asyncio.create_task(backend.save(lone("waits")))
            await until_commit_waits(postgres)
            first = backend.loads()[0].commit_seconds
            await asyncio.sleep(0)
            assert backend.loads()[0].commit_seconds >= first > 0
        await saving
        assert backend.loads()[0].commit_seconds == 0


async def test_required_standby_is_missing(
    postgres: ReplicatedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with store(postgres, require_sync=True) as backend:
        await backend.save(lone("with standby"))
        postgres.standby.stop()
        await postgres.until_synchronous(0)
        with pytest.raises(NotReplicatedError, match="no synchronous standby") as caught:
            await backend.save(lone("without standby"))
        assert [blocker.reason for blocker in caught.value.blockers] == ["NOT_REPLICATED"]
        assert backend.loads()[0].is_unreplicated
        assert (await backend.get("with standby")).id == "with standby"
        assert caught.value.retry_after is not None  # Its standby was there a moment ago.
        monkeypatch.setattr(_WINDOW, 0.0)
        with pytest.raises(NotReplicatedError) as caught:
            await backend.save(lone("without standby"))
        assert caught.value.retry_after is None
        postgres.standby.start()
        await postgres.until_synchronous()
        assert (await backend.save(lone("without standby"))).created
        assert not backend.loads()[0].is_unreplicated


async def test_client_repeats_a_write_until_the_required_standby_is_back(
    postgres: ReplicatedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_WINDOW, 600.0)
    async with store(postgres, require_sync=True) as backend, served(backend, Limits()) as server:
        await backend.save(lone("before"))
        postgres.standby.stop()
        await postgres.until_synchronous(0)
        async with AsyncClient(server.address, timeout=600) as client:
            saving = asyncio.create_task(client.save(Message("after", "p", "user")))
            await until(lambda: backend.loads()[0].is_unreplicated)
            postgres.standby.start()
            assert (await saving).created


async def test_standby_that_never_streamed_is_not_waited_for(
    postgres: ReplicatedPostgres,
) -> None:
    postgres.standby.stop()
    try:
        await postgres.until_synchronous(0)
        # Its schema exists, so the start writes nothing.
        async with store(postgres, require_sync=True) as backend:
            with pytest.raises(NotReplicatedError) as caught:
                await backend.save(lone("never"))
        assert caught.value.retry_after is None
    finally:
        postgres.standby.start()
        await postgres.until_synchronous()


async def test_asynchronous_standby_is_not_enough(postgres: ReplicatedPostgres) -> None:
    await postgres.configure(synchronous_standby_names="")
    try:
        await postgres.until_synchronous(0)
        async with store(postgres, require_sync=True) as backend:
            with pytest.raises(NotReplicatedError, match="no synchronous standby"):
                await backend.save(lone("asynchronous"))
        async with store(postgres) as backend:
            assert (await backend.save(lone("asynchronous"))).created
    finally:
        await postgres.configure(synchronous_standby_names="standby1")
        await postgres.until_synchronous()


def is_unreplicated(control: MigrationControl) -> bool:
    trouble = control.snapshot().trouble
    return trouble is not None and trouble.reason == "NOT_REPLICATED"


async def test_migration_without_the_required_standby_keeps_every_change(
    postgres: ReplicatedPostgres, tmp_path: Path
) -> None:
    """Replication pauses, and SQLite answers; it continues once the standby is back."""
    await execute(postgres.primary.dsn, "CREATE SCHEMA moving")
    dsn = with_parameter(postgres.primary.dsn, "search_path", "moving")
    target = PostgreSQLTarget(PostgreSQLOptions(dsn, pool_min=1, pool_max=8, require_sync=True))
    service = MigratingService(SQLiteSource(tmp_path / "moving.db"), target, Options())
    await service.backend.open()
    try:
        await change(service.control, Phase.DUAL_WRITE)
        saved = await service.backend.save(lone("both"), everywhere_within=WITHIN)
        assert saved.durable_on == (Store.SQLITE, Store.POSTGRESQL)
        postgres.standby.stop()
        await postgres.until_synchronous(0)
        assert (await service.backend.save(lone("one"))).durable_on == (Store.SQLITE,)
        await until(lambda: is_unreplicated(service.control))
        with pytest.raises(PreconditionError, match="no synchronous standby"):
            await change(service.control, Phase.BACKFILL)
        assert service.control.snapshot().phase is Phase.DUAL_WRITE
        postgres.standby.start()
        await postgres.until_synchronous()
        saved = await service.backend.save(lone("both again"), everywhere_within=WITHIN)
        assert saved.durable_on == (Store.SQLITE, Store.POSTGRESQL)
        assert await target.count() == 3
    finally:
        await service.backend.close()


async def test_role_that_cannot_see_the_standbys(postgres: ReplicatedPostgres) -> None:
    await execute(
        postgres.primary.dsn,
        "CREATE ROLE service LOGIN; CREATE SCHEMA service AUTHORIZATION service",
    )
    dsn = postgres.primary.dsn.replace("postgres@", "service@")
    async with store(postgres, require_sync=True, dsn=dsn) as backend:
        with pytest.raises(NotReplicatedError, match="GRANT pg_read_all_stats"):
            await backend.save(lone("blind"))
        await execute(postgres.primary.dsn, "GRANT pg_read_all_stats TO service")
        assert (await backend.save(lone("blind"))).created
