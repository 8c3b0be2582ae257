"""Upgrades of the schema while other servers use the database."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest

from sagastore_server.postgresql import ddl_locks, schema
from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.compatibility import Compatibility
from sagastore_server.postgresql.ddl_locks import Holder, TableLocks
from sagastore_server.postgresql.pool import Pool
from sagastore_server.postgresql.queries import MIGRATION, QUERIES
from sagastore_server.postgresql.schema import (
    LAST_OFFLINE,
    SCHEMA_VERSION,
    STEPS,
    Step,
    prepare,
    upgrade,
)
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.storage.errors import (
    CannotOpenError,
    NotFoundError,
    OutdatedServerError,
    UnavailableError,
)
from sagastore_server.storage.files import NewFile
from sagastore_server.storage.phase import Phase
from tests.postgresql.targets import claimed, fetched, opened_plain, target_on, until_one_waits
from tests.support.drafts import draft, lone, save_all
from tests.support.migration_values import LEASE, MARK, SOURCE
from tests.support.postgres import execute, postgres_process
from tests.support.waiting import WITHIN, until, until_async

NEXT = SCHEMA_VERSION + 1
COLUMN = "ALTER TABLE messages ADD COLUMN later BIGINT NOT NULL DEFAULT 0;"
TABLE = "CREATE TABLE later (id BIGINT);"


def next_step(sql: str, compatible_from: int) -> list[Step]:
    """Return the steps of a newer server."""
    return [*STEPS, Step(NEXT, sql, compatible_from)]


@asynccontextmanager
async def reading(dsn: str, table: str = "messages") -> AsyncIterator[asyncpg.Connection]:
    """Keep a transaction open that has read ``table``."""
    connection = await asyncpg.connect(dsn, server_settings={"application_name": "a report"})
    try:
        await connection.execute(f"BEGIN; SELECT FROM {table} LIMIT 1")
        yield connection
    finally:
        await connection.close()


async def upgrade_by_newer(newer: PostgreSQLStorage, sql: str, compatible_from: int) -> int:
    return await prepare(newer._pool, newer.place, next_step(sql, compatible_from))


# -------------------------------------------------------------------- locks


@pytest.mark.parametrize("step", STEPS[1:], ids=lambda step: str(step.number))
async def test_tables_of_a_step_are_those_that_it_locks(dsn: str, step: Step) -> None:
    """What PostgreSQL locks against reads or writes was locked before, with a short wait."""
    for earlier in STEPS[: step.number - 1]:
        await execute(dsn, earlier.sql)
    connection = await asyncpg.connect(dsn)
    try:
        tables = await connection.fetch(
            "SELECT oid, relname FROM pg_class WHERE relkind = 'r' "
            "AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
        )
        await connection.execute("BEGIN")
        await connection.execute(step.sql)
        locked = await connection.fetch(
            "SELECT DISTINCT relation FROM pg_locks WHERE pid = pg_backend_pid() AND mode IN "
            "('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"
        )
    finally:
        await connection.close()
    names = {row["oid"]: row["relname"] for row in tables}
    assert {names[row[0]] for row in locked if row[0] in names} == set(step.tables)


@pytest.mark.parametrize(
    "step",
    [step for step in STEPS if step.number > LAST_OFFLINE],
    ids=lambda step: str(step.number),
)
def test_recent_steps_change_definitions_only(step: Step) -> None:
    """Rows are changed, and indexes of existing tables are built, online: see `schema`."""
    assert re.findall(r"^(UPDATE|INSERT|DELETE|DO)\b", step.sql, re.MULTILINE) == []
    indexed = re.findall(r"^CREATE (?:UNIQUE )?INDEX \w+ ON (\w+)", step.sql, re.MULTILINE)
    assert not set(indexed) & set(step.tables)


async def test_calls_proceed_while_an_upgrade_waits_for_a_long_read(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened_plain(dsn) as server, opened_plain(dsn) as newer:
        async with reading(dsn) as reader:
            upgrading = asyncio.create_task(upgrade_by_newer(newer, COLUMN, SCHEMA_VERSION))
            await until(lambda: "cannot be changed yet" in caplog.text)
            await server.save(draft("m-1"))
            assert (await server.get("m-1")).id == "m-1"
            assert not upgrading.done()
            pid = await reader.fetchval("SELECT pg_backend_pid()")
        assert await upgrading == NEXT
        assert f"table messages is in use by process {pid} (application a report" in caplog.text
        # A server of the former version continues.
        await server.save(draft("m-2"))
        assert (await server.health()).schema_version == NEXT


async def test_upgrade_fails_with_the_cause_if_a_read_does_not_end(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "PATIENCE", 0.0)
    async with opened_plain(dsn) as newer, reading(dsn):
        line = r"table messages is in use by process \d+ \(application a report, user \w+, "
        with pytest.raises(CannotOpenError, match=line):
            await upgrade_by_newer(newer, COLUMN, SCHEMA_VERSION)
        assert (await newer.health()).schema_version == SCHEMA_VERSION


@pytest.mark.parametrize(
    ("row", "text"),
    [
        # Servers for tests permit no prepared transactions.
        (("messages", None, None, None, None, None, None), "a prepared transaction"),
        # What a role without pg_read_all_stats sees of another role.
        (
            ("messages", 7, "backup", "pg_dump", None, None, None),
            "process 7 (application pg_dump, user b",
        ),
        (
            ("messages", 7, None, "", "autovacuum worker", 3700.2, 1),
            "process 7 (autovacuum worker, transaction open for 3,700 s)",
        ),
    ],
)
def test_holder_is_named_as_far_as_it_can_be_seen(row: tuple[object, ...], text: str) -> None:
    holder = Holder(row)
    assert holder.text.startswith(f"table messages is in use by {text}")
    assert holder.is_autovacuum == ("autovacuum" in text)


async def test_calls_stop_once_for_a_long_read(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt begins when the read has ended."""
    monkeypatch.setattr(ddl_locks, "_PAUSES", (0.01, 0.01))
    attempts: list[TableLocks] = []
    looks: list[object] = []
    look = ddl_locks._holder

    async def counted_look(pool: Pool, locks: TableLocks) -> Holder | None:
        looks.append(locks)
        return await look(pool, locks)

    async def attempt(locks: TableLocks) -> None:
        attempts.append(locks)
        await locks.take(["messages"])

    monkeypatch.setattr(ddl_locks, "_holder", counted_look)
    async with opened_plain(dsn) as newer, newer._pool.connection() as connection:
        async with reading(dsn):
            taking = asyncio.create_task(
                ddl_locks.patiently(newer._pool, connection, attempt, WITHIN)
            )
            await until(lambda: len(looks) > 5)
            assert len(attempts) == 1
        await taking
        assert len(attempts) == 2


async def test_further_tables_are_not_waited_for_long(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While one table is locked, calls wait; the others are requested again later."""
    sql = COLUMN + "\nALTER TABLE migration ADD COLUMN later BIGINT;"
    async with opened_plain(dsn) as server, opened_plain(dsn) as newer:
        async with reading(dsn, "migration"):
            upgrading = asyncio.create_task(upgrade_by_newer(newer, sql, SCHEMA_VERSION))
            await until(lambda: "table migration is in use" in caplog.text)
            await server.save(draft("m-1"))
        assert await upgrading == NEXT


_SLOW_AUTOVACUUM = """
ALTER TABLE messages SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1,
    autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0);
UPDATE messages SET role = 'assistant'
"""
_AUTOVACUUM = """
SELECT FROM pg_stat_activity JOIN pg_locks USING (pid)
WHERE backend_type = 'autovacuum worker' AND relation = 'messages'::regclass AND granted
"""


async def test_autovacuum_does_not_prevent_an_upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL cancels it, if the upgrade waits for longer than ``deadlock_timeout``."""
    monkeypatch.setattr(schema, "PATIENCE", 30.0)
    with postgres_process() as postgres:
        dsn = postgres.dsn
        async with opened_plain(dsn) as server, opened_plain(dsn) as newer:
            await save_all(server, [lone(f"m-{number}") for number in range(4000)])
            for setting in ("autovacuum_naptime = '1s'", "autovacuum = on"):
                await execute(dsn, f"ALTER SYSTEM SET {setting}")
            await execute(dsn, "SELECT pg_reload_conf()")
            await execute(dsn, _SLOW_AUTOVACUUM)

            async def is_vacuumed() -> bool:
                return bool(await fetched(dsn, _AUTOVACUUM))

            await until_async(is_vacuumed)
            assert await upgrade_by_newer(newer, COLUMN, SCHEMA_VERSION) == NEXT


async def test_claim_of_a_target_names_what_has_a_table_in_use(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagastore_server.postgresql.target.CLAIM_PATIENCE", 0.0)
    async with opened_plain(dsn):
        pass
    target = target_on(dsn)
    await target.open()
    try:
        async with reading(dsn, "sessions"):
            with pytest.raises(UnavailableError, match="table sessions is in use by process"):
                await target.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
        await target.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
    finally:
        await target.close()


async def test_steps_are_applied_one_by_one(dsn: str) -> None:
    """A failure in a step keeps those before it: each is a valid schema."""
    steps = [*next_step(TABLE, SCHEMA_VERSION), Step(NEXT + 1, "SELECT 1 / 0;", SCHEMA_VERSION)]
    async with opened_plain(dsn) as newer:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await prepare(newer._pool, newer.place, steps)
        assert (await newer.health()).schema_version == NEXT


# -------------------------------------------------------------------- excluded servers


FILE = NewFile("f-1", "a.txt", "/a.txt", "text", "words", (), 5, None, "{}")

WRITES: dict[str, Callable[[PostgreSQLStorage], Awaitable[object]]] = {
    "save": lambda server: server.save(lone("new")),
    "delete": lambda server: server.delete("m-1"),
    "append": lambda server: server.append("s-1", [draft("new")]),
    "file": lambda server: server.save_file(FILE),
}


@pytest.mark.parametrize("write", WRITES)
async def test_excluded_server_writes_nothing(
    dsn: str, write: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened_plain(dsn) as server, opened_plain(dsn) as newer:
        await server.save(draft("m-1"))
        await upgrade_by_newer(newer, TABLE, NEXT)
        for _ in range(2):
            with pytest.raises(OutdatedServerError, match=f"schema version {NEXT} or newer") as got:
                await WRITES[write](server)
        assert isinstance(got.value, UnavailableError)
        assert server.loads()[0].is_outdated
        health = await server.health()
        assert not health.healthy
        assert health.detail == str(got.value)
        assert len(re.findall("has upgraded the schema", caplog.text)) == 1
        assert (await server.get("m-1")).content == draft("m-1").content
        with pytest.raises(NotFoundError):
            await server.get("new")
        assert await server.count_files() == 0
    with pytest.raises(CannotOpenError, match="run a newer server"):
        async with opened_plain(dsn):
            pass


async def test_write_that_waits_for_an_upgrade_is_refused(dsn: str) -> None:
    """The version is read after the locks are granted, so no excluded write commits later."""
    async with opened_plain(dsn) as server, opened_plain(dsn) as newer:
        await server.save(draft("m-1"))
        async with newer._pool.connection() as connection:
            async with newer._pool.transaction(connection, QUERIES["begin"]):
                await upgrade(TableLocks(connection, 0.0), next_step(TABLE, NEXT))
                writing = asyncio.create_task(server.save(draft("m-1", "changed")))
                await until_one_waits(dsn)
            with pytest.raises(OutdatedServerError):
                await writing
        assert (await server.get("m-1")).content == draft("m-1").content


async def test_upgrade_waits_for_a_write_that_has_begun(dsn: str) -> None:
    async with opened_plain(dsn) as server, opened_plain(dsn) as newer:
        await server.save(draft("m-1"))
        async with (
            server._pool.connection() as connection,
            server._pool.transaction(connection, QUERIES["begin"]),
        ):
            await connection.fetch(QUERIES["lock"], ["m-1"], 1, [])
            upgrading = asyncio.create_task(upgrade_by_newer(newer, TABLE, NEXT))
            await until_one_waits(dsn)
            assert await schema.version_of(connection) == SCHEMA_VERSION
        assert await upgrading == NEXT


async def test_server_that_only_answers_reads_turns_unhealthy(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened_plain(dsn) as server:
        assert (await server.health()).healthy
        await execute(dsn, f"INSERT INTO sagastore_schema VALUES ({NEXT}, {NEXT})")
        assert not (await server.health()).healthy
        assert server.loads()[0].is_outdated
        assert "has upgraded the schema" in caplog.text
        # The database was restored from a backup.
        await execute(dsn, f"DELETE FROM sagastore_schema WHERE version = {NEXT}")
        assert (await server.health()).healthy
        await server.save(draft("m-1"))


async def test_change_of_a_type_invalidates_no_write_and_no_read(dsn: str) -> None:
    """The prepared statements of a server that continues have other results then."""
    async with opened_plain(dsn, pool_max=1) as server:
        for id in ("m-1", "m-2", "m-3"):
            await server.save(draft(id))
            assert (await server.get(id)).id == id
            await execute(dsn, "ALTER TABLE messages ALTER COLUMN provider TYPE varchar(1000)")
            await execute(dsn, "ALTER TABLE sessions ALTER COLUMN title TYPE varchar(1000)")


async def test_reads_of_an_excluded_server_can_be_repeated_elsewhere(dsn: str) -> None:
    """A later version removes what the former one reads. No call fails for good."""
    async with opened_plain(dsn) as server, opened_plain(dsn) as newer:
        await server.save(draft("m-1"))
        await upgrade_by_newer(newer, "ALTER TABLE messages DROP COLUMN role;", NEXT)
        with pytest.raises(UnavailableError, match="lacks a table or a column"):
            await server.get("m-1")
        with pytest.raises(UnavailableError):
            await server.save(draft("m-1", "changed"))


TARGET_WRITES: dict[str, Callable[[PostgreSQLTarget], Awaitable[object]]] = {
    "renew": lambda target: target.renew(LEASE),
    "copy": lambda target: target.copy(LEASE, [], MARK),
    "set_phase": lambda target: target.set_phase(LEASE, Phase.BACKFILL, 3, 0),
    "finish": lambda target: target.finish(LEASE, 5, 0),
}


@pytest.mark.parametrize("write", TARGET_WRITES)
async def test_excluded_target_writes_nothing(dsn: str, write: str) -> None:
    async with claimed(dsn) as target:
        before = await fetched(dsn, MIGRATION["phase"])
        await execute(dsn, f"INSERT INTO sagastore_schema VALUES ({NEXT}, {NEXT})")
        with pytest.raises(OutdatedServerError):
            await TARGET_WRITES[write](target)
        assert await fetched(dsn, MIGRATION["phase"]) == before


async def test_excluded_server_ends_its_reanalysis(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with opened_plain(dsn) as server:
        await server.save(draft("m-1"))
        await execute(dsn, "UPDATE messages SET analysed_3 = 0, terms = 'former'")
        await execute(dsn, "DELETE FROM store_state WHERE name = 'analysis'")
        await execute(dsn, f"INSERT INTO sagastore_schema VALUES ({NEXT}, {NEXT})")
        await server._reanalyser.start()
        await until(lambda: "a newer server analyses the rows" in caplog.text)
        assert await fetched(dsn, "SELECT terms FROM messages") == [("former",)]


def test_exclusion_is_logged_once_and_ends_with_a_restored_database(
    caplog: pytest.LogCaptureFixture,
) -> None:
    compatibility = Compatibility(6)
    for value in (None, 5, 6):
        compatibility.check(value)
    for _ in range(3):
        with pytest.raises(OutdatedServerError):
            compatibility.check(7)
    assert len(caplog.records) == 1
    compatibility.check(6)
    assert compatibility.error is None
