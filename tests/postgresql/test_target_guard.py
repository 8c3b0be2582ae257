"""Write guard of the target: the permitted writers during a migration, and afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import asyncpg
import pytest

from sagastore_server.postgresql.indexes import LATE
from sagastore_server.storage.errors import (
    CannotOpenError,
    FencedError,
    PreconditionError,
)
from sagastore_server.storage.model import OnConflict, QuarantinedRow
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import AuxiliaryRows
from tests.postgresql.targets import claimed, fetched, opened_plain, opened_target, plain
from tests.support.drafts import draft
from tests.support.migration_values import (
    LEASE,
    MARK,
    SOURCE,
    content_of,
    finish,
    message,
    saved,
)
from tests.support.postgres import execute, fresh_schema, server_dsn

HERE = "current_schema()::regnamespace"
FILE = "('f', 'n', 'p', 't', '', '[]', 3, now(), '{}', NULL, 1, '{}')"


@pytest.fixture(params=[100, 0])
def cache(request: pytest.FixtureRequest) -> int:
    """Size of the statement cache; 0 is for PgBouncer."""
    size: int = request.param
    return size


# ------------------------------------------------------------------ the guard


async def test_running_server_is_locked_out_until_finish(dsn: str, cache: int) -> None:
    """The server was started on PostgreSQL alone before the database was claimed."""
    async with (
        opened_plain(dsn, statement_cache=cache) as backend,
        opened_target(dsn, statement_cache=cache) as replica,
    ):
        await backend.save(draft("m-0"))
        await backend.delete("m-0")
        await replica.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
        await replica.apply(LEASE, [saved(message("m-1", 1))])
        for write in (
            backend.save(draft("m-2")),
            backend.save(draft("m-1", "changed")),
            backend.delete("m-1"),
            backend.bulk_save([draft(f"m-{n}") for n in range(300)], OnConflict.REPLACE),
            replica.save(draft("m-2")),
        ):
            with pytest.raises(FencedError, match="target of a migration"):
                await write
        assert await content_of(replica) == {"m-1": message("m-1", 1)}
        await replica.release(LEASE)
        with pytest.raises(FencedError):
            await backend.save(draft("m-2"))
        await replica.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
        await finish(replica, 1000)
        for number, store in enumerate([backend, replica]):
            assert (await store.save(draft(f"m-{number}", "new"))).revision > 1000


async def test_direct_sql_writes_are_refused(dsn: str) -> None:
    async with claimed(dsn) as replica:
        for statement in (
            "DELETE FROM messages",
            "TRUNCATE tombstones",
            f"INSERT INTO files VALUES {FILE}",
            "UPDATE quarantine SET reason = ''",
            "DELETE FROM legacy_extra",
            "DELETE FROM file_tombstones",
            "SET sagastore.session = 'x'; DELETE FROM messages",
            "SET sagastore.session = ''; DELETE FROM messages",
        ):
            with pytest.raises(asyncpg.PostgresError, match="another server holds"):
                await execute(dsn, statement)
        await replica.release(LEASE)
        with pytest.raises(asyncpg.PostgresError, match="another server holds"):
            await execute(dsn, "SET sagastore.session = ''; DELETE FROM files")


async def test_guard_runs_once_per_statement(dsn: str) -> None:
    async with claimed(dsn):
        rows = await fetched(
            dsn, "SELECT DISTINCT tgtype & 1 FROM pg_trigger WHERE tgname = 'sagastore_guard'"
        )
        assert rows == [(0,)]


async def test_postgresql_only_start_is_refused_during_migration(dsn: str) -> None:
    async with claimed(dsn) as replica:
        for phase in (Phase.BACKFILL, Phase.READ_POSTGRES, Phase.SQLITE_ONLY):
            await replica.set_phase(LEASE, phase, 3, 0)
            line = rf"target of a migration in phase {phase.slug}; .* on here; also set --sqlite"
            with pytest.raises(CannotOpenError, match=line):
                await plain(dsn).open()
        await replica.release(LEASE)
        with pytest.raises(
            CannotOpenError, match=r"in phase sqlite-only; .* on here; also set --sqlite"
        ):
            await plain(dsn).open()
        await replica.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
        await finish(replica)
    async with opened_plain(dsn) as backend:
        await backend.save(draft())


# ------------------------------------------------------------------ the end


async def test_finish_allows_other_writers(dsn: str, cache: int) -> None:
    async with claimed(dsn, statement_cache=cache) as replica:
        row = QuarantinedRow(41, "messages/rowid=1", "because", "id", b"{}")
        await replica.carry(LEASE, AuxiliaryRows(quarantine=[row]), MARK, first=True)
        await replica.apply(LEASE, [saved(message("m-1", 500))])
        await finish(replica, 777)
        found = await replica.inspect()
        assert found.record is not None
        assert found.record[:5] == (SOURCE, Phase.POSTGRES_ONLY, 5, "", "")
        assert (await replica.save(draft("m-2"))).revision == 778
        await execute(
            dsn, "INSERT INTO quarantine (source_key, reason, field, row) VALUES ('x', '', '', '')"
        )
        assert [one.number for one in await replica.quarantine(0, 10)] == [41, 42]
        guard = "SELECT FROM pg_proc WHERE proname = 'sagastore_guard' AND pronamespace = "
        assert await fetched(dsn, guard + HERE) == []
        with pytest.raises(FencedError):
            await replica.finish(LEASE, 5, 777)
        with pytest.raises(PreconditionError) as caught:
            await replica.claim(LEASE, SOURCE, Phase.READ_POSTGRES, 4)
        assert caught.value.blockers[0].reason == "MIGRATION_FINISHED"


async def test_revisions_never_decrease(dsn: str) -> None:
    async with claimed(dsn) as replica:
        await execute(dsn, "SELECT setval('message_revisions', 5000)")
        await finish(replica, 777)
        assert (await replica.save(draft("m-2"))).revision > 5000


async def test_long_reader_does_not_block_finish(dsn: str) -> None:
    """pg_dump, for example, reads for hours. The guard remains and allows all writes."""
    async with claimed(dsn) as replica:
        for name in LATE:
            await replica.build_index(name, lambda share: None)
        reader = await asyncpg.connect(dsn)
        try:
            await reader.execute("BEGIN; SELECT count(*) FROM messages")
            await replica.finish(LEASE, 5, 0)
            await replica.save(draft("m-1"))
        finally:
            await reader.close()
    guard = "SELECT FROM pg_trigger WHERE tgname = 'sagastore_guard' AND tgrelid = "
    guard += "'messages'::regclass"
    assert len(await fetched(dsn, guard)) == 1
    async with opened_plain(dsn) as backend:
        await backend.save(draft("m-2"))
    assert await fetched(dsn, guard) == []


async def test_other_schema_in_search_path_is_unchanged(dsn: str) -> None:
    """The other schema contains a store with equally named indexes and functions."""
    async with fresh_schema() as other, opened_plain(other):
        await execute(other, "CREATE FUNCTION sagastore_guard() RETURNS int RETURN 1")
        schema = other.rpartition("=")[2]
        async with claimed(f"{dsn},{schema}") as replica:
            await replica.apply(LEASE, [saved(message())])
            await finish(replica)
        async with opened_plain(other) as backend:
            await backend.save(draft("m-1"))
        indexes = f"SELECT FROM pg_indexes WHERE schemaname = '{schema}' AND tablename = 'messages'"
        assert len(await fetched(dsn, indexes)) == 7


async def test_owner_role_migrates_and_server_role_serves(dsn: str) -> None:
    """Uses the roles of docs/sql/least_privileges.sql."""
    script = Path(__file__).parents[2] / "docs" / "sql" / "least_privileges.sql"
    name = f"move_{os.getpid()}"
    await execute(dsn, script.read_text(encoding="utf-8").replace("sagastore", name))
    base = server_dsn()
    server = base.replace("postgres@", f"{name}_server@")
    try:
        async with claimed(base.replace("postgres@", f"{name}_owner@")) as replica:
            await replica.apply(LEASE, [saved(message())])
            with pytest.raises(CannotOpenError, match="target of a migration"):
                await plain(server).open()
            await finish(replica, 10)
        async with opened_plain(server) as backend:
            assert (await backend.save(draft("m-2"))).revision == 11
    finally:
        await execute(base, f"DROP SCHEMA {name} CASCADE")
        for role in ("owner", "server"):
            await execute(base, f"DROP OWNED BY {name}_{role}")
            await execute(base, f"DROP ROLE {name}_{role}")
