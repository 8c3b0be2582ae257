"""Read replicas: a real standby of PostgreSQL answers reads, never older than they require."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from sagastore_server.interfaces.consistency import Consistency, Level
from sagastore_server.migration.migrating_service import MigratingService, Options
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.errors import UnavailableError
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Criteria, Scan
from tests.postgresql.replicated import (
    ANY,
    Counted,
    ReplicatedStore,
    another_server,
    at_least,
    replicated_store,
)
from tests.support.drafts import lone
from tests.support.migrating_service import walk_to
from tests.support.postgres import PostgresProcess, execute, with_parameter
from tests.support.standby import ReplicatedPostgres, replicated_postgres
from tests.support.waiting import WITHIN, until, until_async

LONG = 60.0
"""Seconds to wait for a replica, in tests in which it comes."""

_SLEEP = (
    "SELECT 'found', CASE WHEN pg_is_in_recovery() THEN pg_sleep(300) END FROM store_state LIMIT 1"
)
"""A statement that lasts on a standby only."""

_SLEEPING = "SELECT max(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"


@pytest.fixture(scope="module")
def postgres() -> Iterator[ReplicatedPostgres]:
    with replicated_postgres() as both:
        asyncio.run(_prepare(both))
        yield both


async def _prepare(postgres: ReplicatedPostgres) -> None:
    await postgres.start()
    # Tests suspend the standby, and commits must not wait for it.
    await postgres.configure(synchronous_standby_names="")


@pytest.fixture
def elsewhere() -> Iterator[PostgresProcess]:
    with another_server() as server:
        yield server


@asynccontextmanager
async def paused(postgres: ReplicatedPostgres) -> AsyncIterator[None]:
    """Pause the replay of the standby, which still receives changes."""
    await postgres.value("SELECT pg_wal_replay_pause()", standby=True)
    try:
        yield
    finally:
        await postgres.value("SELECT pg_wal_replay_resume()", standby=True)


async def scans(postgres: ReplicatedPostgres, *, standby: bool) -> int:
    """Return how often statements have looked for messages."""
    return int(
        await postgres.value(
            "SELECT coalesce(sum(seq_scan + coalesce(idx_scan, 0)), 0)::bigint "
            "FROM pg_stat_user_tables WHERE relname = 'messages'",
            standby=standby,
        )
    )


@pytest.mark.parametrize("cache", [100, 0], ids=["session", "pgbouncer"])
async def test_replica_answers_every_kind_of_read(postgres: ReplicatedPostgres, cache: int) -> None:
    name = f"kinds-{cache}"
    async with replicated_store(postgres, statement_cache=cache, replica_wait=LONG) as store:
        await store.until("")
        backend = store.backend
        draft = lone(name)._replace(session_id=name, content=name)
        _, position = await store.call(lambda: backend.save(draft))
        need = at_least(position)
        scan = Scan(limit=5, newest_first=False)
        for run in (
            lambda: backend.get(name),
            lambda: backend.batch_get([name, "absent"]),
            lambda: backend.list_session(name, scan),
            lambda: backend.search(Criteria(session_id=name), scan),
            lambda: backend.get_session(name),
            backend.last_sequence,
        ):
            found, seen = await store.call(run, need)
            assert found
            assert seen is not None
            assert position is not None
            assert seen >= position
        assert set(store.counted.reads) == {"1/at_least"}
        reads = store.counted.reads["1/at_least"]
        await store.content(name, ANY)
        await store.content(name)
        assert store.counted.reads == {
            "1/at_least": reads,
            "1/any_replica": 1,
            "primary/latest": 1,
        }
        assert not store.counted.fallbacks


async def test_own_writes_are_seen_while_the_replica_lags(postgres: ReplicatedPostgres) -> None:
    async with replicated_store(postgres) as store:
        await store.until("")
        before = await store.save("lagging", "old")
        await until_async(lambda: store.has_replayed(before))
        async with paused(postgres):
            position = await store.save("lagging", "new")
            # After the wait, the primary answers.
            content, seen = await store.content("lagging", at_least(position))
            assert content == "new"
            assert seen is not None
            assert seen >= position
            assert store.counted.fallbacks == {"behind": 1}
            assert len(store.counted.waits) == 1
            # The next page is not older than this one.
            need = Consistency(Level.ANY_REPLICA, seen=seen)
            assert (await store.content("lagging", need))[0] == "new"
            # A read without a position may be older.
            content, seen = await store.content("lagging", ANY)
            assert content == "old"
            assert seen is not None
            assert seen >= before
        await until_async(lambda: store.has_replayed(position))
        store.counted.reads.clear()
        content, _ = await store.content("lagging", at_least(position))
        assert content == "new"
        assert store.counted.reads == {"1/at_least": 1}


async def test_concurrent_writers_see_their_writes(postgres: ReplicatedPostgres) -> None:
    """Reads share statements, each with a different position."""

    async def turn(number: int) -> None:
        id, replaced = f"shared-{number % 4}", set[str]()
        for step in range(10):
            content = f"{number}/{step}"
            position = await store.save(id, content)
            found, seen = await store.content(id, at_least(position))
            again, _ = await store.content(id, at_least(seen))
            # Another writer may have replaced it; but what this one has replaced is gone.
            assert not {found, again} & replaced
            replaced.add(content)

    async with replicated_store(postgres, replica_wait=LONG) as store:
        await store.until("")
        await asyncio.gather(*(turn(number) for number in range(8)))
        assert store.counted.reads == {"1/at_least": 160}


async def test_reads_of_a_replica_do_not_load_the_primary(postgres: ReplicatedPostgres) -> None:
    counts = 50
    async with replicated_store(postgres, replica_wait=LONG) as store:
        position = await store.save("statistics")
    await until_async(lambda: _has_no_server(postgres))
    before = await scans(postgres, standby=False)
    on_standby = await scans(postgres, standby=True)
    async with replicated_store(postgres, replica_wait=LONG, pool_min=0) as store:
        await store.until("")
        for _ in range(counts):
            await store.content("statistics", at_least(position))
    # PostgreSQL counts the scans of a connection at its end at the latest.
    await until_async(lambda: _has_no_server(postgres))
    assert await scans(postgres, standby=True) >= on_standby + counts
    replicated = await scans(postgres, standby=False) - before
    async with replicated_store(postgres, pool_min=0) as store:
        for _ in range(counts):
            await store.content("statistics")
    await until_async(lambda: _has_no_server(postgres))
    alone = await scans(postgres, standby=False) - before - replicated
    assert alone >= replicated + counts


async def _has_no_server(postgres: ReplicatedPostgres) -> bool:
    """Return whether no server of SagaStore is connected to either PostgreSQL."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sagastore'"
    return not any([await postgres.value(query, standby=standby) for standby in (False, True)])


async def test_replica_that_lags_too_much_leaves_and_returns(postgres: ReplicatedPostgres) -> None:
    async with replicated_store(postgres, replica_max_lag=1) as store:
        await store.until("")
        await store.save("too old", "old")
        async with paused(postgres):
            position = await store.save("too old", "new")
            await store.until("LAG")
            (replica,) = store.replicas
            assert replica.lag_seconds > 1
            assert replica.lag_bytes > 0
            store.counted.fallbacks.clear()
            assert (await store.content("too old", ANY))[0] == "new"
            assert (await store.content("too old", at_least(position)))[0] == "new"
            assert store.counted.fallbacks == {"no_replica": 2}
        await store.until("")


async def test_frozen_receiver(postgres: ReplicatedPostgres) -> None:
    async with replicated_store(postgres) as store:
        await store.until("")
        async with postgres.frozen_standby():
            position = await store.save("receiver")
            assert (await store.content("receiver", at_least(position)))[0]
            assert not store.counted.reads["1/at_least"]
            await store.until("RECEIVER")
        await store.until("")


async def test_frozen_replica_loses_its_reads_to_the_primary(postgres: ReplicatedPostgres) -> None:
    async with replicated_store(postgres, statement_timeout=300) as store:
        await store.until("")
        position = await store.save("frozen")
        await until_async(lambda: store.has_replayed(position))
        with postgres.standby.frozen():
            for need in (at_least(position), ANY):
                assert (await store.content("frozen", need))[0]
            assert not store.counted.reads["1/at_least"]
            await store.until("UNREACHABLE")
            assert "no answer within 1 s" in store.replicas[0].detail
        await store.until("")
        store.counted.reads.clear()
        await store.content("frozen", at_least(position))
        assert store.counted.reads == {"1/at_least": 1}


async def sleeping(postgres: ReplicatedPostgres) -> bool:
    return bool(await postgres.value(_SLEEPING, standby=True))


@pytest.mark.parametrize("statement", ["pg_cancel_backend", "pg_terminate_backend", "lock"])
async def test_cancelled_read_runs_on_the_primary(
    postgres: ReplicatedPostgres, statement: str
) -> None:
    async with replicated_store(postgres, statement_timeout=300) as store:
        await store.until("")
        reading = asyncio.create_task(store.call(lambda: store.backend._reads.value(_SLEEP), ANY))
        await until_async(lambda: sleeping(postgres))
        if statement == "lock":
            # The standby must end what reads the table before it can replay the lock.
            await execute(postgres.standby.dsn, "ALTER SYSTEM SET max_standby_streaming_delay = 0")
            await execute(postgres.standby.dsn, "SELECT pg_reload_conf()")
            await execute(postgres.primary.dsn, "BEGIN; LOCK TABLE store_state; COMMIT")
        else:
            await postgres.value(f"SELECT {statement}(({_SLEEPING}))", standby=True)
        assert (await reading)[0] == "found"
        ended = "failed" if statement == "pg_terminate_backend" else "conflict"
        assert store.counted.fallbacks == {ended: 1}
        assert store.counted.reads == {"primary/any_replica": 1}
        await store.until("")


async def test_time_limit_of_a_statement_on_a_replica(postgres: ReplicatedPostgres) -> None:
    async with replicated_store(postgres, statement_timeout=0.5) as store:
        await store.until("")
        with pytest.raises(UnavailableError, match="did not answer in time"):
            await store.call(lambda: store.backend._reads.value(_SLEEP), ANY)
        assert not store.counted.reads


async def test_replica_that_restarts_returns(postgres: ReplicatedPostgres) -> None:
    """It may be behind what it had replayed before, so its old watermark is not trusted."""
    async with replicated_store(postgres) as store:
        await store.until("")
        positions = [await store.save(f"restart-{number}") for number in range(20)]
        postgres.standby.kill9()
        for number, position in enumerate(positions[:3]):
            assert (await store.content(f"restart-{number}", at_least(position)))[0]
        await store.until("UNREACHABLE")
        postgres.standby.start()
        await store.until("")

        async def answers() -> bool:
            assert (await store.content("restart-19", at_least(positions[-1])))[0]
            return store.counted.reads["1/at_least"] > 0

        store.counted.reads.clear()
        await until_async(answers)


async def test_start_while_the_replica_is_down(postgres: ReplicatedPostgres) -> None:
    postgres.standby.stop()
    try:
        async with replicated_store(postgres) as store:
            position = await store.save("down")
            await store.until("UNREACHABLE")
            assert "check that it is running" in store.replicas[0].detail
            assert (await store.content("down", at_least(position)))[0]
            postgres.standby.start()
            await store.until("")
    finally:
        postgres.standby.start_again()


async def test_role_without_the_privilege(postgres: ReplicatedPostgres) -> None:
    await execute(
        postgres.primary.dsn,
        "CREATE ROLE reader LOGIN; CREATE SCHEMA reader AUTHORIZATION reader",
    )
    dsns = (postgres.primary.dsn, postgres.standby.dsn)
    primary, standby = (dsn.replace("postgres@", "reader@") for dsn in dsns)
    async with replicated_store(postgres, dsn=primary, replicas=(standby,)) as store:
        position = await store.save("privilege")
        await store.until("PRIVILEGE")
        assert "GRANT pg_read_all_stats" in store.replicas[0].detail
        assert (await store.content("privilege", at_least(position)))[0]
        await execute(postgres.primary.dsn, "GRANT pg_read_all_stats TO reader")
        await store.until("")


async def test_role_that_may_not_see_positions(postgres: ReplicatedPostgres) -> None:
    await execute(
        postgres.primary.dsn,
        "CREATE ROLE blind LOGIN; CREATE SCHEMA blind AUTHORIZATION blind;"
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC",
    )
    try:
        dsn = postgres.primary.dsn.replace("postgres@", "blind@")
        async with replicated_store(postgres, dsn=dsn) as store:
            await store.until("NO_POSITIONS")
            assert "GRANT EXECUTE ON FUNCTION pg_control_system()" in store.replicas[0].detail
            assert await store.call(lambda: store.backend.batch_get(["none"]), ANY) == ({}, None)
    finally:
        await execute(
            postgres.primary.dsn, "GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC"
        )


async def test_wrong_servers_are_reported_and_not_read(
    postgres: ReplicatedPostgres, elsewhere: PostgresProcess, caplog: pytest.LogCaptureFixture
) -> None:
    await execute(postgres.primary.dsn, "CREATE DATABASE other")
    other = postgres.standby.dsn.replace("/postgres?", "/other?")
    elsewhere.initialize()
    elsewhere.start()
    wrong = (postgres.primary.dsn, elsewhere.dsn, other)
    with caplog.at_level(logging.WARNING):
        async with replicated_store(postgres, replicas=wrong) as store:
            position = await store.save("wrong servers")
            await store.until("PRIMARY", "OTHER_DATA", "OTHER_DATA")
            for need in (at_least(position), ANY):
                assert (await store.content("wrong servers", need))[0]
            assert set(store.counted.reads) == {"primary/at_least", "primary/any_replica"}
            details = [one.detail for one in store.replicas]
    assert "is the primary" in details[0]
    assert "another cluster" in details[1]
    assert "hush" not in caplog.text


async def test_copy_of_the_cluster_is_no_replica(
    postgres: ReplicatedPostgres, elsewhere: PostgresProcess
) -> None:
    """A standby of a copy, for example of a disk snapshot, has the same system identifier."""
    with another_server() as standby:
        await asyncio.to_thread(elsewhere.follow, postgres.primary, "copy", WITHIN)
        (elsewhere.data / "standby.signal").unlink()
        await asyncio.to_thread(elsewhere.start)
        await asyncio.to_thread(standby.follow, elsewhere, "standby", WITHIN)
        await asyncio.to_thread(standby.start)
        await execute(elsewhere.dsn, "CREATE TABLE more AS SELECT generate_series(1, 100000)")
        async with replicated_store(postgres, replicas=(standby.dsn,)) as store:
            position = await store.save("copied")
            await store.until("OTHER_DATA")
            assert (await store.content("copied", at_least(position)))[0]
            assert set(store.counted.reads) == {"primary/at_least"}


async def test_load_balancer_is_reported(postgres: ReplicatedPostgres, tmp_path: Path) -> None:
    """It leads each connection to another server."""
    turns = 0

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turns
        turns += 1
        process = (postgres.primary, postgres.standby)[turns % 2]
        path = process.data.parent / ".s.PGSQL.5432"
        there = await asyncio.open_unix_connection(path)
        await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))

    async with await asyncio.start_server(connect, "127.0.0.1") as balancer:
        port = balancer.sockets[0].getsockname()[1]
        dsn = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        async with replicated_store(postgres, replicas=(dsn,)) as store:
            position = await store.save("balanced")
            await store.until("BALANCER")
            assert "name a server, not a load balancer" in store.replicas[0].detail
            assert (await store.content("balanced", at_least(position)))[0]
            assert set(store.counted.reads) == {"primary/at_least"}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def test_positions_that_no_replica_can_reach_do_not_wait(
    postgres: ReplicatedPostgres,
) -> None:
    async with replicated_store(postgres, replica_wait=LONG) as store:
        await store.until("")
        position = await store.save("positions")
        later = position._replace(timeline=position.timeline + 1)
        with pytest.raises(UnavailableError, match="the required position is of timeline"):
            await store.content("positions", at_least(later))
        assert not store.counted.waits


async def test_replicas_of_a_migration_are_used_from_postgres_only(
    postgres: ReplicatedPostgres, tmp_path: Path
) -> None:
    await execute(postgres.primary.dsn, "CREATE SCHEMA moving")
    dsn = with_parameter(postgres.primary.dsn, "search_path", "moving")
    values = PostgreSQLOptions(dsn, pool_min=1, pool_max=8, replicas=(postgres.standby.dsn,))
    counted = Counted()
    target = PostgreSQLTarget(values, instruments=counted)
    service = MigratingService(SQLiteSource(tmp_path / "moving.db"), target, Options())
    await service.backend.open()
    try:
        await service.backend.save(lone("moved"))
        await walk_to(service.control, Phase.READ_POSTGRES)
        assert [one.out for one in target.loads()[0].replicas] == ["UNKNOWN"]
        await walk_to(service.control, Phase.POSTGRES_ONLY)
        await until(lambda: [one.out for one in target.loads()[0].replicas] == [""])
        store = ReplicatedStore(target, counted)
        assert (await store.content("moved", ANY))[0]
        assert counted.reads == {"1/any_replica": 1}
    finally:
        await service.backend.close()


async def test_replica_that_lacks_the_schema(postgres: ReplicatedPostgres) -> None:
    """It has not replayed the statements that create it."""
    await execute(postgres.primary.dsn, "CREATE SCHEMA late")
    dsn = with_parameter(postgres.primary.dsn, "search_path", "late")
    async with paused(postgres), replicated_store(postgres, dsn=dsn) as store:
        position = await store.save("late")
        await store.until("SCHEMA")
        assert (await store.content("late", ANY))[0]
        await postgres.value("SELECT pg_wal_replay_resume()", standby=True)
        await store.until("")
        await until_async(lambda: store.has_replayed(position))
        await store.content("late", ANY)
        assert store.counted.reads["1/any_replica"] == 1


async def test_lost_connection_of_the_reader(postgres: ReplicatedPostgres) -> None:
    """All connections to the replica end, at any time; every read is answered."""
    async with replicated_store(postgres) as store:
        await store.until("")
        position = await store.save("ended")
        await until_async(lambda: store.has_replayed(position))
        connection = await asyncpg.connect(postgres.standby.dsn)
        try:
            for _ in range(3):
                await connection.fetch(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'sagastore'"
                )
                assert (await store.content("ended", at_least(position)))[0]
        finally:
            await connection.close()
        await store.until("")
