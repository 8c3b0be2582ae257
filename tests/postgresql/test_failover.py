"""Failover: the primary is lost or silent, and its standby is promoted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.config.connection import Address
from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.errors import is_connection_loss, is_demotion
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.pool import Pool
from sagastore_server.postgresql.primary import NotThePrimaryError, Primary, Role, role_of
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.storage.errors import CannotOpenError, StorageError, UnavailableError
from sagastore_server.storage.model import SaveResult
from tests.support.backends import opened
from tests.support.drafts import lone
from tests.support.postgres import execute
from tests.support.standby import ReplicatedPostgres, replicated_postgres

WITHIN = 50
"""Seconds for a failover on a busy machine. The time limit of a statement is longer."""


@pytest.fixture
async def postgres() -> AsyncIterator[ReplicatedPostgres]:
    with replicated_postgres() as both:
        await both.start()
        yield both


@pytest.fixture(scope="module")
def steady() -> Iterator[ReplicatedPostgres]:
    """Return a pair for tests that leave the roles as they are."""
    with replicated_postgres() as both:
        asyncio.run(both.start())
        yield both


@asynccontextmanager
async def store(dsn: str) -> AsyncIterator[PostgreSQLStorage]:
    values = PostgreSQLOptions(dsn, pool_min=1, pool_max=4, statement_timeout=100)
    async with opened(lambda: PostgreSQLStorage(values)) as backend:
        assert isinstance(backend, PostgreSQLStorage)
        yield backend


async def saved(backend: PostgreSQLStorage, id: str) -> SaveResult:
    """Save as a client does, which repeats a call that failed because a store was unavailable."""
    async with asyncio.timeout(WITHIN):
        while True:
            try:
                return await backend.save(lone(id))
            except UnavailableError:
                await asyncio.sleep(0.05)


async def ids_on(dsn: str) -> set[str]:
    connection = await asyncpg.connect(dsn)
    try:
        return {row[0] for row in await connection.fetch("SELECT id FROM messages")}
    finally:
        await connection.close()


async def test_killed_primary(postgres: ReplicatedPostgres) -> None:
    """Every acknowledged message is on the new primary, and revisions continue to grow."""
    async with store(postgres.dsn) as backend:
        before = [await saved(backend, f"before-{number}") for number in range(5)]
        postgres.primary.kill9()
        with pytest.raises(StorageError):
            await backend.save(lone("in between"))
        await asyncio.to_thread(postgres.standby.promote)
        after = await saved(backend, "after")
        assert after.revision > max(result.revision for result in before)
        assert [(await backend.get(f"before-{n}")).id for n in range(5)] == [
            f"before-{n}" for n in range(5)
        ]
    assert {"after", "before-4"} <= await ids_on(postgres.standby.dsn)


async def test_silent_primary_is_left_and_never_used_again(postgres: ReplicatedPostgres) -> None:
    """No connection ends, and the call that waits has a longer time limit than the test."""
    async with store(postgres.dsn) as backend:
        await saved(backend, "before")
        with postgres.primary.frozen():
            waiting = asyncio.create_task(backend.save(lone("waiting")))
            await asyncio.to_thread(postgres.standby.promote)
            # Its transaction had not begun, so it is repeated on the new primary.
            async with asyncio.timeout(WITHIN):
                assert (await waiting).created
            await saved(backend, "during")
        # The former primary runs again, and does not know that it is not the primary any more.
        await execute(postgres.primary.dsn, "ALTER SYSTEM SET synchronous_standby_names = ''")
        await execute(postgres.primary.dsn, "SELECT pg_reload_conf()")
        for number in range(8):
            await saved(backend, f"after-{number}")
        assert backend._pool.connector is not None
        backend._pool.connector.primary.address = None  # Tries the hosts in their order again.
        await asyncio.gather(*(saved(backend, f"together-{number}") for number in range(8)))
    new, old = await ids_on(postgres.standby.dsn), await ids_on(postgres.primary.dsn)
    assert {"waiting", "during", *(f"after-{number}" for number in range(8))} <= new
    assert not {id for id in old if id.startswith(("waiting", "during", "after", "together"))}


async def test_start_while_the_first_host_is_silent(postgres: ReplicatedPostgres) -> None:
    async with store(postgres.dsn) as backend:
        await saved(backend, "before")
    with postgres.primary.frozen():
        await asyncio.to_thread(postgres.standby.promote)
        async with asyncio.timeout(WITHIN), store(postgres.dsn) as backend:
            assert (await backend.get("before")).id == "before"
            await saved(backend, "after")


async def test_start_while_an_old_primary_accepts_writes(
    postgres: ReplicatedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes first in the connection string, and the server knows no timeline yet."""
    await postgres.configure(synchronous_standby_names="")
    async with store(postgres.dsn) as backend:
        await saved(backend, "before")
    await asyncio.to_thread(postgres.standby.promote)
    assert await postgres.value("SELECT pg_is_in_recovery()") is False
    async with store(postgres.dsn) as backend:
        await asyncio.gather(*(saved(backend, f"after-{number}") for number in range(8)))
    target = PostgreSQLTarget(PostgreSQLOptions(postgres.dsn, pool_min=1, pool_max=4))
    async with opened(lambda: target), target._pool.dedicated() as connection:
        assert connection.timeline == 2
    assert {f"after-{number}" for number in range(8)} <= await ids_on(postgres.standby.dsn)
    assert await ids_on(postgres.primary.dsn) == {"before"}
    assert "is an old primary (timeline 1; " in caplog.text


@pytest.mark.parametrize("unusable", ["silent", "refusing"])
async def test_start_with_an_unusable_host(steady: ReplicatedPostgres, unusable: str) -> None:
    """It is asked for its role as well, for a limited time, and is not needed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if unusable == "refusing":
            server.close()
        hosts = f"{steady.primary.data.parent},127.0.0.1"
        dsn = f"postgresql://postgres@/postgres?host={hosts}&port=5432,{port}"
        async with asyncio.timeout(WITHIN), store(dsn) as backend:
            assert backend._pool.connector is not None
            assert backend._pool.connector.timeout <= 1
            await saved(backend, unusable)


async def test_no_revision_is_given_out_twice_if_writes_are_lost(
    postgres: ReplicatedPostgres,
) -> None:
    """An asynchronous standby lacks the last writes, and so do its sequences."""
    await postgres.configure(synchronous_standby_names="")
    async with store(postgres.dsn) as backend:
        await saved(backend, "kept")
        async with postgres.frozen_standby():
            lost = [await saved(backend, f"lost-{number}") for number in range(40)]
            postgres.primary.kill9()
        await asyncio.to_thread(postgres.standby.promote)
        results = [await saved(backend, f"after-{number}") for number in range(3)]
        assert min(one.revision for one in results) > max(one.revision for one in lost)
        assert results[-1].revision - results[0].revision < 10_000
    # A start on the same timeline skips nothing.
    async with store(postgres.dsn) as backend:
        again = await saved(backend, "after the restart")
        assert again.revision - results[-1].revision < 10_000


async def test_standby_alone_is_refused_by_name(steady: ReplicatedPostgres) -> None:
    with pytest.raises(CannotOpenError, match="is a standby; connect to the primary"):
        async with store(steady.standby.dsn):
            pass


async def test_refusals_of_a_standby_are_lost_connections(steady: ReplicatedPostgres) -> None:
    """A pooler or a virtual address may lead an open connection to a standby."""
    await execute(steady.primary.dsn, "CREATE SEQUENCE numbers; CREATE TABLE t (n int)")
    primary = await asyncpg.connect(steady.primary.dsn)
    standby = await asyncpg.connect(steady.standby.dsn)
    try:
        position = await primary.fetchval("SELECT pg_current_wal_lsn()::text")
        reached = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn"
        async with asyncio.timeout(WITHIN):
            while not await standby.fetchval(reached, position):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
        for statement in (
            "BEGIN READ WRITE",
            "SELECT nextval('numbers')",
            "INSERT INTO t VALUES (1)",
        ):
            with pytest.raises(asyncpg.PostgresError) as caught:
                await standby.execute(statement)
            assert is_demotion(caught.value), statement
            assert is_connection_loss(caught.value), statement
    finally:
        await primary.close()
        await standby.close()


async def test_read_begins_as_postgresql_ends_the_connection(steady: ReplicatedPostgres) -> None:
    """The driver has received the reason, and not the end of the connection yet."""
    ended, closed_connections = asyncio.Event(), asyncio.Semaphore(0)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = steady.primary.data.parent / ".s.PGSQL.5432"
        answers, requests = await asyncio.open_unix_connection(server)
        async with asyncio.TaskGroup() as both:
            both.create_task(forward(reader, requests))
            await forward(answers, writer)
            ended.set()  # The side of the client stays open until the client closes it.
        for side in (requests, writer):
            side.close()
            with contextlib.suppress(ConnectionError):
                await side.wait_closed()
        closed_connections.release()

    lost: list[str] = []
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        proxy = await asyncio.start_unix_server(connected, Path(folder) / ".s.PGSQL.5432")
        dsn = f"postgresql://postgres@/postgres?host={folder}"
        pool = Pool(PostgreSQLOptions(dsn, pool_min=1, pool_max=1))
        pool.on_loss.append(lambda: lost.append("lost"))
        await pool.open()
        try:
            pid = await pool.value("SELECT pg_backend_pid()")
            await execute(steady.primary.dsn, f"SELECT pg_terminate_backend({pid})")
            await ended.wait()
            assert await pool.value("SELECT pg_backend_pid()") != pid
            assert lost == ["lost"]
        finally:
            await pool.close()
            for _ in range(2):
                await closed_connections.acquire()
            proxy.close()
            await proxy.wait_closed()


async def test_role_without_access_to_wal_functions(steady: ReplicatedPostgres) -> None:
    await execute(
        steady.primary.dsn,
        "CREATE ROLE service LOGIN; CREATE SCHEMA service AUTHORIZATION service;"
        "REVOKE EXECUTE ON FUNCTION pg_walfile_name(pg_lsn), pg_control_system() FROM PUBLIC",
    )
    dsn = steady.primary.dsn.replace("postgres@", "service@")
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            assert await role_of(connection) == Role(is_standby=False, timeline=0)
    finally:
        await connection.close()
    async with store(dsn) as backend:
        assert (await saved(backend, "one")).created


ROLES = st.builds(Role, st.booleans(), st.integers(min_value=0, max_value=5))


@given(st.lists(ROLES, min_size=1, max_size=4))
def test_highest_timeline_of_all_hosts_is_chosen(roles: list[Role]) -> None:
    """Only primaries count, and no choice is a promotion."""
    promotions: list[int] = []
    primary = Primary(lambda: promotions.append(primary.timeline))
    hosts = [(Address(f"host{number}", 5432), role) for number, role in enumerate(roles)]
    primary.choose(hosts)
    timelines = [role.timeline for role in roles if not role.is_standby]
    assert primary.is_known == bool(timelines)
    assert primary.timeline == max(timelines, default=0)
    if timelines:
        assert primary.address is not None
        assert dict(hosts)[primary.address] == Role(is_standby=False, timeline=primary.timeline)
    assert promotions == []


def test_lower_timeline_is_refused() -> None:
    promotions: list[int] = []
    primary = Primary(lambda: promotions.append(primary.timeline))
    one, two = Address("a", 5432), Address("b", 5432)
    primary.accept(one, Role(is_standby=False, timeline=3))
    assert promotions == []
    with pytest.raises(NotThePrimaryError, match="is a standby"):
        primary.accept(two, Role(is_standby=True, timeline=0))
    assert primary.first([two, one]) == [one, two]
    primary.accept(two, Role(is_standby=False, timeline=4))
    assert promotions == [4]
    assert primary.first([one, two]) == [two, one]
    with pytest.raises(NotThePrimaryError, match=r"old primary \(timeline 3, the current one is 4"):
        primary.accept(one, Role(is_standby=False, timeline=3))
