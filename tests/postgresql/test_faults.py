"""Faults of PostgreSQL: processes killed under load, and an unavailable database."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from sagastore.v1 import migration_pb2, migration_pb2_grpc, storage_pb2, storage_pb2_grpc
from tests.postgresql.load import Load
from tests.support.messages import message
from tests.support.postgres import PostgresProcess, postgres_process
from tests.support.server_process import ServerProcess
from tests.support.waiting import eventually

PASSWORD = "correct-horse-battery"
DEADLINE = 20
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
QUICK = {"SAGASTORE_POSTGRES_ACQUIRE_TIMEOUT": "2", "SAGASTORE_POSTGRES_STATEMENT_TIMEOUT": "2"}


@pytest.fixture
def postgres() -> Iterator[PostgresProcess]:
    with postgres_process() as process:
        yield process


@pytest.fixture
def server(postgres: PostgresProcess, tmp_path: Path) -> Iterator[ServerProcess]:
    dsn = postgres.dsn.replace("postgres@", f"postgres:{PASSWORD}@")
    process = ServerProcess(tmp_path / "unused.db", "--log-level", "debug", env=QUICK, postgres=dsn)
    try:
        yield process.start()
    finally:
        process.close()
        assert PASSWORD not in "\n".join(process.stderr)


class Saves(Load):
    """Saves from several threads, with a ledger of the acknowledged ones."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(server, 8)
        self.acknowledged: dict[str, str] = {}
        self.refusals: list[grpc.RpcError] = []
        self._saved: list[str] = []

    def wait_for(self, more: int) -> None:
        """Wait until ``more`` saves were acknowledged from now on."""
        # Not by the ledger, which has at most one line for each id.
        target = len(self._saved) + more
        eventually(lambda: len(self._saved) >= target, within=100)

    def call(self, storage: storage_pb2_grpc.StorageServiceStub, thread: int, number: int) -> None:
        one = message(id=f"{thread}-{number % 50}", content=f"text {number}")
        try:
            storage.Save(storage_pb2.SaveRequest(message=one), timeout=DEADLINE)
        except grpc.RpcError as error:
            self.refusals.append(error)
            # Whether it was stored is unknown.
            self.acknowledged.pop(one.id, None)
        else:
            self.acknowledged[one.id] = one.content
            self._saved.append(one.id)


def stored(server: ServerProcess) -> dict[str, str]:
    with server.channel() as channel:
        stub = storage_pb2_grpc.StorageServiceStub(channel)
        batches = stub.Export(storage_pb2.ExportRequest(), timeout=60, wait_for_ready=True)
        return {one.id: one.content for batch in batches for one in batch.messages}


def missing(load: Saves, server: ServerProcess) -> dict[str, str]:
    found = stored(server)
    return {key: text for key, text in load.acknowledged.items() if found.get(key) != text}


def details(error: grpc.RpcError) -> list[str]:
    """Return the kinds of details in an error."""
    trailers: dict[str, str | bytes] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    return [detail.type_url.rpartition(".")[2] for detail in status.details]


def readiness(server: ServerProcess) -> int:
    with server.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
        return int(answer.status)


def test_server_kill_loses_no_acknowledged_write(server: ServerProcess) -> None:
    for _ in range(3):
        load = Saves(server)
        with load:
            load.wait_for(100)
            server.kill9()
            eventually(lambda: len(load.refusals) >= 8)  # noqa: B023 - used within the turn
        server.start()
        assert missing(load, server) == {}


def test_postgresql_kill_loses_no_acknowledged_write(
    server: ServerProcess, postgres: PostgresProcess
) -> None:
    with Saves(server) as load:
        for _ in range(2):
            load.wait_for(100)
            postgres.kill9()
            refused = len(load.refusals)
            eventually(lambda: len(load.refusals) >= refused + 30)  # noqa: B023 - used within the turn
            postgres.start()
            load.wait_for(100)
    assert missing(load, server) == {}
    codes = {error.code() for error in load.refusals}
    assert codes == {grpc.StatusCode.UNAVAILABLE}
    for error in load.refusals:
        assert set(details(error)) == {"ErrorInfo", "RequestInfo", "RetryInfo"}
        assert "postgres@" not in str(error)


def test_readiness_follows_database_state(server: ServerProcess, postgres: PostgresProcess) -> None:
    assert readiness(server) == SERVING
    postgres.kill9()
    reason = server.wait_for_event("not ready")
    assert reason["reason"] == "the PostgreSQL store cannot be reached; try again"
    assert readiness(server) == NOT_SERVING
    with server.channel() as channel:
        stub = migration_pb2_grpc.MigrationServiceStub(channel)
        found = stub.GetMigration(migration_pb2.GetMigrationRequest(), timeout=DEADLINE).migration
    assert found.phase == migration_pb2.PHASE_POSTGRES_ONLY
    assert not found.stores[0].healthy
    assert found.stores[0].detail
    postgres.start()
    server.wait_for_event("ready again")
    assert readiness(server) == SERVING


def _family(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, text=True, check=True
    )
    return [pid, *map(int, listed.stdout.split())]


def test_unresponsive_database_fails_calls_in_time(
    server: ServerProcess, postgres: PostgresProcess
) -> None:
    """The database runs but does not answer: calls must end before their deadline."""
    family = _family(postgres.pid)
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    try:
        with server.channel() as channel:
            stub = storage_pb2_grpc.StorageServiceStub(channel)
            calls: list[Any] = [
                stub.Save.future(storage_pb2.SaveRequest(message=message()), timeout=DEADLINE)
                for _ in range(20)
            ]
            calls += [
                stub.Get.future(storage_pb2.GetRequest(id="x"), timeout=DEADLINE) for _ in range(20)
            ]
            for call in calls:
                error = call.exception()
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error
                assert "RetryInfo" in details(error)
        server.wait_for_event("not ready")
    finally:
        for pid in family:
            os.kill(pid, signal.SIGCONT)
    server.wait_for_event("ready again")
    with server.channel() as channel:
        stub = storage_pb2_grpc.StorageServiceStub(channel)
        stub.Save(storage_pb2.SaveRequest(message=message()), timeout=DEADLINE)


@pytest.mark.parametrize(
    ("dsn", "line"),
    [
        (f"postgresql://me:{PASSWORD}@127.0.0.1:1/saga", "cannot connect to PostgreSQL at 127"),
        (f"postgresql://me:{PASSWORD}@:not-a-port/saga", "connection string"),
        (f"mysql://me:{PASSWORD}@host/saga", "must be like postgresql://"),
        (f"127.0.0.1 password={PASSWORD}", "must be like postgresql://"),
        (f"host=127.0.0.1 port=1 password={PASSWORD}", "cannot connect to PostgreSQL at 127"),
        (f"postgresql://me:{PASSWORD}@127.0.0.1/saga?sslmode={PASSWORD}", "connection string"),
    ],
)
def test_startup_fails_without_database(tmp_path: Path, dsn: str, line: str) -> None:
    server = ServerProcess(tmp_path / "unused.db", "--log-level", "debug", postgres=dsn)
    server.spawn()
    assert server.wait() == 1
    told = "\n".join(server.stderr)
    assert line in told
    assert "Traceback" not in told
    assert PASSWORD not in told


def test_startup_reports_missing_database(postgres: PostgresProcess, tmp_path: Path) -> None:
    dsn = postgres.dsn.replace("/postgres?", "/nowhere?")
    server = ServerProcess(tmp_path / "unused.db", postgres=dsn)
    server.spawn()
    assert server.wait() == 1
    assert "the database does not exist; create it first" in "\n".join(server.stderr)


def test_restart_keeps_all_messages(server: ServerProcess) -> None:
    with Saves(server) as load:
        load.wait_for(50)
    before = stored(server)
    server.restart()
    assert stored(server) == before
