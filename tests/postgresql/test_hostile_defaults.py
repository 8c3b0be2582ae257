"""Defaults of database and role that contradict what the server relies on.

The storage contract runs on such defaults, too (tests/support/backends.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from sagastore import Client, Message
from sagastore_server.migration.migrating_service import MigratingService, Options
from sagastore_server.postgresql import session
from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.model import OnConflict
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Scan
from tests.postgresql.pgbouncer import pgbouncer_before
from tests.postgresql.targets import fetched, opened_plain
from tests.support.drafts import draft, found
from tests.support.hostile_defaults import (
    DEFAULTS,
    POOLED,
    as_role,
    create_role,
    drop_role,
    hostile_schema,
)
from tests.support.migrating_service import change, unblocked, walk_to
from tests.support.postgres import execute, new_database, server_dsn
from tests.support.server_process import ServerProcess

THREADS = 18
_LIMITS = "('transaction_timeout', 'idle_session_timeout')"
"""Settings that older versions do not have."""


class Hostile(NamedTuple):
    """A database whose only role has hostile defaults."""

    name: str
    role: str
    dsn: str
    """Connection string of the role, without a search_path."""
    owner: str
    """Connection string of an administrator."""


@pytest.fixture
async def hostile() -> AsyncIterator[Hostile]:
    role = await create_role(DEFAULTS | {"search_path": '"$user", public'})
    name, owner = await new_database()
    await execute(owner, f"GRANT CREATE ON SCHEMA public TO {role}")
    try:
        yield Hostile(name, role, as_role(owner, role), owner)
    finally:
        await drop_role(role, owner)
        await execute(server_dsn(), f"DROP DATABASE {name} WITH (FORCE)")


def test_threads_write_under_hostile_defaults(hostile: Hostile, tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "unused.db", postgres=hostile.dsn)
    try:
        server.start()

        def work(thread: int) -> None:
            with Client(server.address, timeout=60) as client:
                for number in range(12):
                    # Few sessions, so that the threads write the same rows.
                    said = Message(
                        provider="p", role="user", content=f"word {thread} {number}",
                        session_id=f"s-{number % 3}",
                    )  # fmt: skip
                    saved = client.save(said)
                    assert client.get(saved.id).content == said.content
                    if number % 4 == 0:
                        own = replace(said, session_id=None)
                        client.sessions.append(f"a-{thread % 2}", [own])

        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(work, range(THREADS)))
        with Client(server.address, timeout=60) as client:
            assert len(list(client.search("word"))) == THREADS * (12 + 3)
        assert server.terminate() == 0
        assert [line for line in server.stderr if "PostgreSQL error" in line] == []
    finally:
        server.close()


async def test_every_default_is_replaced(hostile: Hostile) -> None:
    async with opened_plain(hostile.dsn) as store:
        wanted = session.session_settings(15_000)
        rows = await store._pool.rows("SELECT name, source FROM pg_settings")
        assert {dict(rows)[name] for name in wanted} == {"client"}
        shown = {name: await store._pool.value(f"SHOW {name}") for name in wanted}
        assert shown.pop("statement_timeout") == "15s"
        assert shown.pop("idle_in_transaction_session_timeout") == "15s"
        rest = {name: wanted[name] for name in shown}
        assert shown == rest
        # Newer time limits are set where they exist.
        assert await _limits(store) <= {"0"}


async def _limits(store: PostgreSQLStorage) -> set[str]:
    return {row[0] for row in await store._pool.rows(
        f"SELECT setting FROM pg_settings WHERE name IN {_LIMITS}"
    )}  # fmt: skip


async def test_newer_time_limits_are_replaced(hostile: Hostile) -> None:
    known = await fetched(hostile.owner, f"SELECT name FROM pg_settings WHERE name IN {_LIMITS}")
    for (name,) in known:
        await execute(hostile.owner, f"ALTER ROLE {hostile.role} SET {name} = '30s'")
    async with opened_plain(hostile.dsn) as store:
        assert await _limits(store) <= {"0"}
        async with store._pool.dedicated() as connection:
            assert await connection.fetchval("SHOW statement_timeout") == "0"


@pytest.mark.parametrize("cache", [0, 100])
async def test_all_connections_use_the_same_schema(hostile: Hostile, cache: int) -> None:
    """A change of the defaults does not lead later connections to other tables."""
    await execute(hostile.owner, f"CREATE SCHEMA other AUTHORIZATION {hostile.role}")
    harmless = {} if cache else {"statement_timeout": "60s", "lock_timeout": "60s"}
    for name, value in harmless.items():
        await execute(hostile.owner, f"ALTER ROLE {hostile.role} SET {name} = '{value}'")
    async with opened_plain(hostile.dsn, statement_cache=cache) as store:
        await store.save(draft("before"))
        await execute(hostile.owner, f"ALTER ROLE {hostile.role} SET search_path = other")
        theirs = f"FROM pg_stat_activity WHERE usename = '{hostile.role}'"
        await execute(hostile.owner, f"SELECT pg_terminate_backend(pid) {theirs}")
        while True:
            try:
                await store.save(draft("after"))
                break
            except StorageError:
                await asyncio.sleep(0)
        assert set(await store.batch_get(["before", "after"])) == {"before", "after"}
    ids = await fetched(hostile.owner, "SELECT id FROM public.messages ORDER BY id")
    assert [row[0] for row in ids] == ["after", "before"]


async def test_policy_that_hides_rows_is_an_error(hostile: Hostile) -> None:
    """Row-level security would hide messages without a word."""
    async with opened_plain(hostile.dsn) as store:
        await store.save(draft("m"))
        await execute(hostile.owner, "ALTER TABLE messages ENABLE ROW LEVEL SECURITY")
        await execute(hostile.owner, "ALTER TABLE messages FORCE ROW LEVEL SECURITY")
        with pytest.raises(StorageError):
            await store.batch_get(["m"])


async def test_migration_under_hostile_defaults(tmp_path: Path) -> None:
    async with hostile_schema() as dsn:
        await _migrate(tmp_path / "messages.db", PostgreSQLOptions(dsn, pool_min=1, pool_max=8))


async def _migrate(path: Path, options: PostgreSQLOptions) -> None:
    service = MigratingService(SQLiteSource(path), PostgreSQLTarget(options), Options(1.0))
    backend, control = service.backend, service.control
    try:
        await backend.open()
        old = [draft(f"old-{number}", "text") for number in range(150)]
        await backend.bulk_save(old, OnConflict.REPLACE)
        await walk_to(control, Phase.BACKFILL)
        await asyncio.gather(*(backend.save(draft(f"new-{n}", "text")) for n in range(20)))
        await walk_to(control, Phase.READ_POSTGRES)
        await backend.delete("old-7")
        await unblocked(control)
        await change(control, Phase.POSTGRES_ONLY)
        assert len(await found(backend, "text")) == 169
        assert len((await backend.list_session("s-1", Scan(True, 500))).messages) == 169
    finally:
        await backend.close()
    assert await asyncio.to_thread(Path(f"{path}.archive").exists)


async def test_hostile_defaults_behind_pgbouncer(tmp_path: Path) -> None:
    """There, each transaction sets what it relies on."""
    role = await create_role(POOLED | {"search_path": "pg_catalog, public"})
    name, owner = await new_database()
    await execute(owner, f"GRANT CREATE ON SCHEMA public TO {role}")
    try:
        with pgbouncer_before(server_dsn()) as pooler:
            dsn = as_role(pooler.dsn(name), role)
            options = PostgreSQLOptions(dsn, pool_min=1, pool_max=8, statement_cache=0)
            await _migrate(tmp_path / "messages.db", options)
    except FileNotFoundError:
        pytest.skip("PgBouncer is not installed (apt-get install pgbouncer)")
    finally:
        await drop_role(role, owner)
        await execute(server_dsn(), f"DROP DATABASE {name} WITH (FORCE)")
