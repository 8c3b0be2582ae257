"""Readiness and liveness: /readyz, /livez and the command ``status``."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from typer.testing import CliRunner, Result

from sagastore.v1 import storage_pb2, storage_pb2_grpc
from sagastore_server.cli.main import cli
from sagastore_server.runtime.supervisor import Failure, Policy
from sagastore_server.storage.errors import Blocker
from sagastore_server.storage.load import Load, ReplicaLoad
from sagastore_server.storage.migration import BackfillState, BackfillStatus, StatusSnapshot
from sagastore_server.storage.model import Store, StoreHealth
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.reanalysis import Reanalysis
from sagastore_server.telemetry.readiness import LIVE_WITHIN, STALLED_AFTER, Readiness
from tests.support.legacy_db import legacy_db, numbered
from tests.support.ports import reserved_port
from tests.support.postgres import postgres_process
from tests.support.server_process import ServerProcess
from tests.support.waiting import eventually
from tests.telemetry.ops import ON, Answered, get, ops_of

ServerFactory = Callable[..., ServerProcess]

SERVICES = ("", "StorageService", "MigrationService")
SNAPSHOT = StatusSnapshot(Phase.READ_POSTGRES, 4, BackfillStatus(BackfillState.DONE))


def status(*options: str, env: dict[str, str] | None = None) -> Result:
    """Run the command in this process, because starting one takes a second."""
    ours = {name: None for name in os.environ if name.startswith("SAGASTORE_")}
    return CliRunner().invoke(cli, ["status", *options], env={**ours, **(env or {})})


def healths(server: ServerProcess) -> dict[str, bool]:
    """Return the services that are SERVING according to ``grpc.health.v1``."""
    with server.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        names = {name: f"sagastore.v1.{name}" if name else "" for name in SERVICES}
        return {
            name: stub.Check(health_pb2.HealthCheckRequest(service=full)).status
            == health_pb2.HealthCheckResponse.SERVING
            for name, full in names.items()
        }


# ------------------------------------------------------------------ the class Readiness


class Clock:
    """A clock that tests set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def reasons(readiness: Readiness) -> list[str]:
    return [finding.reason for finding in readiness.reasons()]


def warnings(readiness: Readiness) -> list[str]:
    return [finding.reason for finding in readiness.warnings()]


def test_start_reports_its_progress() -> None:
    readiness = Readiness()
    assert reasons(readiness) == ["STARTING"]
    readiness.progress("taking over", 1200, 3000)
    document = readiness.document()
    assert document["progress"] == {"work": "taking over", "done": 1200, "total": 3000}
    assert "taking over: 1,200 of 3,000" in document["reasons"][0]["detail"]
    readiness.opened()
    readiness.progress("a late report", 1, 1)
    assert readiness.document() == {
        "ready": True,
        "phase": None,
        "reasons": [],
        "warnings": [],
        "progress": None,
    }


def test_hung_event_loop_is_not_ready() -> None:
    clock = Clock()
    readiness = Readiness(clock)
    readiness.opened()
    clock.now += LIVE_WITHIN
    assert reasons(readiness) == []
    clock.now += 0.1
    assert reasons(readiness) == ["UNRESPONSIVE"]
    readiness.beat()
    assert reasons(readiness) == []


def test_drain_reports_the_remaining_time() -> None:
    clock = Clock()
    readiness = Readiness(clock)
    readiness.draining(30.0, lambda: 7)
    clock.now += 4
    (finding,) = readiness.reasons()[-1:]
    assert finding.reason == "DRAINING"
    assert "7 calls in progress have up to 26 s" in finding.detail


def test_server_that_lost_the_migration_is_not_ready() -> None:
    readiness = Readiness()
    readiness.opened()
    readiness.snapshot(SNAPSHOT._replace(taken_over=True, reads_from_fallback=True))
    readiness.store(StoreHealth(Store.SQLITE, False, "taken over", -1, 0))
    assert reasons(readiness) == ["NOT_THE_HOLDER"]
    assert warnings(readiness) == []


def test_warnings_leave_the_server_ready() -> None:
    readiness = Readiness()
    readiness.opened()
    readiness.snapshot(
        SNAPSHOT._replace(
            reads_from_fallback=True,
            trouble=Blocker("POSTGRES_UNAVAILABLE", "PostgreSQL is unavailable"),
            backfill=BackfillStatus(BackfillState.RUNNING, error="the disk is full"),
        )
    )
    readiness.disk(1000)
    assert reasons(readiness) == []
    assert warnings(readiness) == ["DISK_FULL", "FALLBACK", "NOT_FOLLOWING", "BACKFILL_FAILING"]
    readiness.disk(None)
    readiness.snapshot(SNAPSHOT)
    assert warnings(readiness) == []


def test_reanalysis_is_a_warning_with_its_progress() -> None:
    readiness = Readiness()
    readiness.opened()
    load = Load(Store.SQLITE, 0, 0, 0, 0, 0)
    readiness.loads([load, load._replace(reanalysis=Reanalysis(1200, 5000))])
    assert reasons(readiness) == []
    (finding,) = readiness.warnings()
    assert finding.reason == "REANALYSIS"
    assert "SQLite" in finding.detail
    assert "1,200 of 5,000" in finding.detail
    readiness.loads([load])
    assert warnings(readiness) == []


def failure(task: str, policy: Policy, failures: int = 1) -> Failure:
    return Failure(task, policy, "OSError: disk full", failures)


def test_restarted_task_is_a_warning() -> None:
    readiness = Readiness()
    readiness.opened()
    failing = [failure("access-watcher", Policy.RESTART, 3)]
    readiness.watch_tasks(lambda: failing)
    assert reasons(readiness) == []
    (warning,) = readiness.warnings()
    assert warning.reason == "TASK_FAILING"
    assert "access-watcher has failed 3 times" in warning.detail
    assert "OSError: disk full" in warning.detail
    assert "restarts automatically" in warning.remedy
    failing.clear()
    assert readiness.document()["warnings"] == []


def test_failed_fatal_task_is_a_reason() -> None:
    readiness = Readiness()
    readiness.opened()
    readiness.watch_tasks(lambda: (failure("sqlite-writer", Policy.FATAL),))
    assert warnings(readiness) == []
    (reason,) = readiness.reasons()
    assert reason.reason == "TASK_FAILED"
    assert "sqlite-writer has failed" in reason.detail
    assert "OSError: disk full" in reason.detail
    assert not readiness.document()["ready"]


def on_postgresql(**values: Any) -> Load:
    return Load(Store.POSTGRESQL, 0, 1, 1, 20, 0)._replace(**values)


def test_stalled_commit_is_a_reason_if_writes_depend_on_postgresql() -> None:
    readiness = Readiness()
    readiness.opened()
    readiness.loads([on_postgresql(commit_seconds=STALLED_AFTER + 0.1)])
    readiness.snapshot(SNAPSHOT)
    assert reasons(readiness) == []
    readiness.snapshot(SNAPSHOT._replace(phase=Phase.POSTGRES_ONLY))
    (reason,) = readiness.reasons()
    assert reason.reason == "WRITES_STALLED"
    assert "has not ended for 3 s" in reason.detail
    readiness.loads([on_postgresql(commit_seconds=STALLED_AFTER)])
    assert reasons(readiness) == []


def test_outdated_server_is_not_ready_if_postgresql_is_the_only_store() -> None:
    readiness = Readiness()
    readiness.opened()
    readiness.loads([on_postgresql(is_outdated=True)])
    readiness.snapshot(SNAPSHOT)
    assert reasons(readiness) == []
    readiness.snapshot(SNAPSHOT._replace(phase=Phase.POSTGRES_ONLY))
    readiness.store(StoreHealth(Store.POSTGRESQL, False, "outdated", -1, 0))
    (reason,) = readiness.reasons()
    assert reason.reason == "SERVER_OUTDATED"
    assert "a newer server has upgraded the schema" in reason.detail
    readiness.loads([on_postgresql()])
    assert reasons(readiness) == ["STORE_DOWN"]


def replica(number: int, out: str, detail: str = "it is stopped; start it") -> ReplicaLoad:
    return ReplicaLoad(number, f"db{number}/saga", out, detail, 0, 0, 1, 0, 0, 4)


@pytest.mark.parametrize(
    ("states", "missing"),
    [
        (("", ""), []),
        (("", "LAG"), [2]),
        (("UNREACHABLE", "LAG"), [1, 2]),
        (("UNKNOWN", ""), []),
        # The setting names all servers of the cluster, and one is the primary.
        (("PRIMARY", ""), []),
        (("PRIMARY",), [1]),
    ],
)
def test_replica_out_of_rotation_is_a_warning(states: tuple[str, ...], missing: list[int]) -> None:
    readiness = Readiness()
    readiness.opened()
    replicas = tuple(replica(number, out) for number, out in enumerate(states, start=1))
    readiness.loads([on_postgresql(replicas=replicas)])
    assert reasons(readiness) == []
    found = readiness.warnings()
    assert {one.reason for one in found} <= {"REPLICA_OUT"}
    assert [one.detail.split(",")[0] for one in found] == [
        f"replica {number} of PostgreSQL" for number in missing
    ]
    assert all(one.remedy == "start it" for one in found)


def test_refused_unreplicated_write_is_a_warning() -> None:
    readiness = Readiness()
    readiness.opened()
    readiness.loads([on_postgresql(is_unreplicated=True)])
    assert reasons(readiness) == []
    assert warnings(readiness) == ["NOT_REPLICATED"]
    readiness.loads([on_postgresql()])
    assert warnings(readiness) == []


# ------------------------------------------------------------------ real servers


def test_running_server_is_live_and_ready(watched: ServerProcess) -> None:
    ops = ops_of(watched)
    assert get(ops, "/livez").document["live"]
    answered = get(ops, "/readyz")
    assert (answered.status, answered.document["phase"]) == (200, "sqlite-only")
    result = status("--ops", ops)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"ready ({ops}, phase sqlite-only)\n"
    as_json = status("--json", env={"SAGASTORE_OPS_LISTEN": ops})
    assert as_json.exit_code == 0
    assert json.loads(as_json.stdout) == answered.document


def test_legacy_import_reports_its_progress(tmp_path: Path, server_process: ServerFactory) -> None:
    file = legacy_db(tmp_path / "memory.db", numbered(20_000))
    seen: list[Answered] = []
    with reserved_port() as port:
        server = server_process("--ops-listen", f"127.0.0.1:{port}", sqlite=file)
        server.spawn()

        def ready() -> bool:
            try:
                seen.append(get(f"127.0.0.1:{port}", "/readyz"))
            except OSError:
                return False
            return seen[-1].status == 200

        eventually(ready, every=0.02)
    starting = [answer for answer in seen if answer.status == 503]
    assert {tuple(answer.reasons) for answer in starting} == {("STARTING",)}
    progress = [answer.document["progress"] for answer in starting]
    assert any(step["total"] >= 20_000 and step["done"] > 0 for step in progress)


def test_stopping_server_is_draining(server_process: ServerFactory) -> None:
    server = server_process(env=ON).start()
    ops = ops_of(server)
    end = threading.Event()
    with server.channel() as channel:
        call = storage_pb2_grpc.StorageServiceStub(channel).BulkSave(_blocked(end))
        eventually(lambda: b"sagastore_streams_open 1" in get(ops, "/metrics").body)
        server.ask_to_stop()
        eventually(lambda: get(ops, "/readyz").status == 503)
        answered = get(ops, "/readyz")
        assert answered.reasons == ["DRAINING"]
        assert "1 calls in progress" in answered.document["reasons"][0]["detail"]
        assert get(ops, "/livez").status == 200
        end.set()
        assert list(call) == []
    assert server.wait() == 0


def test_unavailable_postgresql_makes_the_server_not_ready(tmp_path: Path) -> None:
    with postgres_process() as postgres:
        server = ServerProcess(tmp_path / "unused", env=ON, postgres=postgres.dsn)
        try:
            ops = ops_of(server.start())
            assert get(ops, "/readyz").status == 200
            postgres.stop()
            eventually(lambda: get(ops, "/readyz").reasons == ["STORE_DOWN"])
            # The health service follows within a moment.
            down = {"": False, "StorageService": False, "MigrationService": True}
            eventually(lambda: healths(server) == down)
            result = status("--ops", ops)
            assert result.exit_code == 1
            # Warnings may follow: of a background task that needs the store, for example.
            first, second, third, *_ = result.stdout.splitlines()
            assert first == f"not ready ({ops}, phase postgres-only)"
            assert second.startswith("  STORE_DOWN: PostgreSQL does not answer: ")
            assert third.startswith("    to do: check that it runs")
            assert get(ops, "/livez").status == 200
            up = b'sagastore_store_up{store="postgresql"} 0.0'
            eventually(lambda: up in get(ops, "/metrics").body)
            postgres.start()
            eventually(lambda: get(ops, "/readyz").status == 200)
            eventually(lambda: all(healths(server).values()))
        finally:
            server.close()


def test_hung_server_reports_unresponsive(tmp_path: Path) -> None:
    server = StuckServer(tmp_path / "sagastore.db", env=ON)
    try:
        ops = ops_of(server.start())
        # Its limit is short: on a busy machine it can be over for a moment.
        eventually(lambda: get(ops, "/livez").status == 200)
        os.kill(server.pid, signal.SIGUSR1)
        eventually(lambda: get(ops, "/livez").status == 503)
        assert "the limit is 0.7 s" in get(ops, "/livez").document["detail"]
        assert get(ops, "/readyz").reasons == ["UNRESPONSIVE"]
        assert b"sagastore_ready 0.0" in get(ops, "/metrics").body
        assert status("--ops", ops).exit_code == 1
    finally:
        server.close()


# ------------------------------------------------------------------ the command without a server


def test_status_without_a_server_fails() -> None:
    with reserved_port() as port:
        result = status("--ops", f"127.0.0.1:{port}")
    assert (result.exit_code, result.stdout) == (4, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("sagastore-server: no server answers on 127.0.0.1:")


def test_status_of_another_program_fails(watched: ServerProcess) -> None:
    result = status("--ops", watched.address)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert "is not a SagaStore server" in line


def test_status_with_ops_port_off_fails() -> None:
    result = status(env={"SAGASTORE_OPS_LISTEN": "off"})
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "ops_listen is off" in result.stderr


def test_status_rejects_an_invalid_address() -> None:
    assert status("--ops", "127.0.0.1:99999").exit_code == 2


def test_status_of_a_wildcard_address_uses_loopback(
    server_process: ServerFactory,
) -> None:
    every = "0.0.0.0"  # noqa: S104 - the address under test
    server = server_process("--ops-listen", f"{every}:0", "--allow-insecure").start()
    port = ops_of(server).rpartition(":")[2]
    assert status(env={"SAGASTORE_OPS_LISTEN": f"{every}:{port}"}).exit_code == 0


class StuckServer(ServerProcess):
    """A server that a signal makes hang."""

    def command(self, *options: str) -> list[str]:
        """See the base."""
        return [sys.executable, "-m", "tests.telemetry.stuck_server", "serve", *options]


def _blocked(end: threading.Event) -> Iterator[storage_pb2.BulkSaveRequest]:
    end.wait()
    yield from ()
