"""PgBouncer in transaction mode, where the session changes between calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import asyncpg
import grpc
import pytest

from sagastore.v1 import message_pb2, storage_pb2, storage_pb2_grpc
from sagastore_server.migration.migrating_service import MigratingService, Options
from sagastore_server.postgresql import session
from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.errors import CannotOpenError, UnavailableError
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.phase import Phase
from tests.postgresql.load import Load
from tests.postgresql.pgbouncer import PgBouncer, pgbouncer_before
from tests.support.backends import opened
from tests.support.calls import as_call, at_least
from tests.support.drafts import draft, found
from tests.support.messages import message
from tests.support.migrating_service import change, eventually_current, unblocked, walk_to
from tests.support.postgres import execute, new_database, server_dsn, with_parameter
from tests.support.server_process import ServerProcess

DEADLINE = 20
NO_SESSIONS = {"SAGASTORE_POSTGRES_STATEMENT_CACHE": "0"}


@pytest.fixture
async def database() -> AsyncIterator[str]:
    """Create a separate database, because PgBouncer does not pass a search path."""
    name, _ = await new_database()
    yield name
    await execute(server_dsn(), f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def pooler() -> Iterator[PgBouncer]:
    try:
        with pgbouncer_before(server_dsn()) as running:
            yield running
    except FileNotFoundError:
        pytest.skip("PgBouncer is not installed (apt-get install pgbouncer)")


def options(dsn: str, cache: int = 0) -> PostgreSQLOptions:
    return PostgreSQLOptions(dsn, pool_min=1, pool_max=8, statement_cache=cache)


# ------------------------------------------------------------------ a service on PostgreSQL alone


class CheckedCalls(Load):
    """Saves, reads and searches from many threads, each checking its own writes."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(server, 12)
        self.acknowledged: dict[str, str] = {}
        self.refusals: list[grpc.StatusCode] = []
        self._more = threading.Condition()

    def wait_for(self, more: int) -> None:
        """Wait until ``more`` saves were acknowledged from now on."""
        with self._more:
            target = len(self.acknowledged) + more
            assert self._more.wait_for(lambda: len(self.acknowledged) >= target, 60)

    def call(self, storage: storage_pb2_grpc.StorageServiceStub, thread: int, number: int) -> None:
        one = message(id=f"{thread}-{number}", content=f"word{thread} text {number}")
        try:
            self._once(storage, one)
        except grpc.RpcError as exc:
            self.refusals.append(exc.code())
            self.stopping.wait(0.05)

    def _once(self, storage: storage_pb2_grpc.StorageServiceStub, one: message_pb2.Message) -> None:
        storage.Save(storage_pb2.SaveRequest(message=one), timeout=DEADLINE)
        id = one.id
        with self._more:
            self.acknowledged[id] = one.content
            self._more.notify_all()
        request = storage_pb2.SearchRequest(
            query=f"word{id.partition('-')[0]}", order=storage_pb2.ORDER_NEWEST, page_size=500
        )
        seen = storage.Search(request, timeout=DEADLINE).results
        assert id in {result.message.id for result in seen}
        assert storage.Get(storage_pb2.GetRequest(id=id), timeout=DEADLINE).message.id == id


def test_load_survives_pgbouncer_restart(pooler: PgBouncer, database: str, tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "unused.db", env=NO_SESSIONS, postgres=pooler.dsn(database))
    try:
        server.start()
        with CheckedCalls(server) as load:
            load.wait_for(150)
            assert load.refusals == []
            pooler.stop()
            pooler.start()
            load.wait_for(150)
        # Calls in progress may fail with UNAVAILABLE, which is safe to retry.
        assert set(load.refusals) <= {grpc.StatusCode.UNAVAILABLE}
        with server.channel() as channel:
            storage = storage_pb2_grpc.StorageServiceStub(channel)
            exported = {
                one.id: one.content
                for answer in storage.Export(storage_pb2.ExportRequest(), timeout=DEADLINE)
                for one in answer.messages
            }
        assert load.acknowledged.items() <= exported.items()
        assert server.terminate() == 0
        assert "internal error" not in "".join(server.stderr)
    finally:
        server.close()


async def test_four_hundred_concurrent_calls(pooler: PgBouncer, database: str) -> None:
    async with opened(lambda: PostgreSQLStorage(options(pooler.dsn(database)))) as store:
        ids = [f"m-{number:03}" for number in range(400)]
        saved = await asyncio.gather(*(store.save(draft(id, f"text {id}")) for id in ids))
        assert all(result.created for result in saved)
        reads = await asyncio.gather(*(store.get(id) for id in ids))
        assert [one.id for one in reads] == ids
        searches = await asyncio.gather(*(found(store, "text") for _ in range(40)))
        assert all(set(ids) == set(search) for search in searches)


async def test_positions_behind_pgbouncer(pooler: PgBouncer, database: str) -> None:
    """The server that has committed tells them, in a transaction that does not stay open."""
    async with opened(lambda: PostgreSQLStorage(options(pooler.dsn(database)))) as store:
        ids = [f"m-{number:02}" for number in range(40)]
        saved = await asyncio.gather(*(as_call(partial(store.save, draft(id))) for id in ids))
        for id, one in zip(ids, saved, strict=True):
            assert one.position is not None
            seen = await as_call(partial(store.get, id), at_least(one.position))
            assert seen.position is not None
            assert seen.position >= one.position
        assert seen.position is not None
        ahead = seen.position._replace(lsn=seen.position.lsn + (1 << 40))
        with pytest.raises(UnavailableError):
            await as_call(partial(store.get, ids[0]), at_least(ahead))
        connection = await asyncpg.connect(server_dsn())
        open_ones = f"datname = '{database}' AND state = 'idle in transaction'"
        try:
            assert not await connection.fetch(f"SELECT FROM pg_stat_activity WHERE {open_ones}")
        finally:
            await connection.close()


# ------------------------------------------------------------------ what is refused at the start


async def refusal(dsn: str, cache: int) -> str:
    storage = PostgreSQLStorage(options(dsn, cache))
    with pytest.raises(CannotOpenError) as caught:
        await storage.open()
    await storage.close()
    return str(caught.value)


async def test_prepared_statements_fail_at_startup(pooler: PgBouncer, database: str) -> None:
    line = await refusal(pooler.dsn(database), 100)
    assert "as PgBouncer does; set postgres_statement_cache to 0" in line
    line = await refusal(with_parameter(pooler.dsn(database), "search_path", "public"), 0)
    assert "remove search_path from the connection string" in line


async def test_pooler_that_drops_settings_is_detected(pooler: PgBouncer, database: str) -> None:
    """The pooler accepts the connection, but some calls would fail later."""
    dropped = ",".join(session.session_settings(1))
    with pgbouncer_before(server_dsn(), f"ignore_startup_parameters = {dropped}") as lenient:
        line = await refusal(lenient.dsn(database), 100)
        assert line.endswith("session settings of this server; set postgres_statement_cache to 0")


# ------------------------------------------------------------------ the migration


async def test_complete_migration_behind_pgbouncer(
    pooler: PgBouncer, database: str, tmp_path: Path
) -> None:
    path = tmp_path / "messages.db"
    service = MigratingService(
        SQLiteSource(path), PostgreSQLTarget(options(pooler.dsn(database))), Options(1.0)
    )
    backend, control = service.backend, service.control
    try:
        await backend.open()
        for number in range(50):
            await backend.save(draft(f"old-{number}", "text"))
        await walk_to(control, Phase.BACKFILL)
        await asyncio.gather(*(backend.save(draft(f"new-{n}", "text")) for n in range(50)))
        # The pooler ends in the middle, and every connection with it.
        pooler.stop()
        await backend.save(draft("while-away", "text"))
        pooler.start()
        await walk_to(control, Phase.READ_POSTGRES)
        await eventually_current(control)
        await backend.delete("old-7")
        await backend.save(draft("late", "text"))
        # Guards hold behind it as well.
        outsider = PostgreSQLStorage(options(pooler.dsn(database)))
        with pytest.raises(CannotOpenError, match="is the target of a migration"):
            await outsider.open()
        await unblocked(control)
        await change(control, Phase.POSTGRES_ONLY)
        status = await control.status()
        assert (status.phase, status.backfill.state) == (Phase.POSTGRES_ONLY, BackfillState.DONE)
        expected = {f"old-{n}" for n in range(50)} | {f"new-{n}" for n in range(50)}
        expected = expected - {"old-7"} | {"late", "while-away"}
        assert set(await found(backend, "text")) == expected
    finally:
        await backend.close()
    assert (tmp_path / "messages.db.archive").exists()
