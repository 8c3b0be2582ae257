"""What a server reports about the standby of its PostgreSQL: synchronous, or a read replica."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from sagastore.v1 import message_pb2, storage_pb2, storage_pb2_grpc
from tests.support.messages import message
from tests.support.rpc_errors import refusal_of
from tests.support.server_process import ServerProcess
from tests.support.standby import ReplicatedPostgres, replicated_postgres
from tests.support.waiting import eventually
from tests.telemetry.ops import ON, get, ops_of, scrape

WITHIN = 60


@pytest.fixture(scope="module")
def postgres() -> Iterator[ReplicatedPostgres]:
    with replicated_postgres() as both:
        asyncio.run(both.start())
        yield both


@pytest.fixture(scope="module")
def server(
    postgres: ReplicatedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("standby")
    env = {**ON, "SAGASTORE_POSTGRES_REQUIRE_SYNC": "true"}
    process = ServerProcess(folder / "unused", env=env, postgres=postgres.primary.dsn)
    try:
        yield process.start()
    finally:
        process.close()


def save(channel: grpc.Channel, id: str) -> Any:
    request = storage_pb2.SaveRequest(message=message(id=id))
    return storage_pb2_grpc.StorageServiceStub(channel).Save.future(request, timeout=WITHIN)


def test_frozen_standby_stalls_writes_and_no_acknowledgement_is_early(
    postgres: ReplicatedPostgres, server: ServerProcess
) -> None:
    ops = ops_of(server)

    async def freeze(channel: grpc.Channel) -> Any:
        async with postgres.frozen_standby():
            saving = save(channel, "stalled")
            await asyncio.to_thread(
                eventually, lambda: get(ops, "/readyz").reasons == ["WRITES_STALLED"]
            )
            assert not saving.done()
            assert scrape(ops)["sagastore_commit_running_seconds"] > 3
            return saving

    with server.channel() as channel:
        saving = asyncio.run(freeze(channel))
        assert saving.result().created
    eventually(lambda: get(ops, "/readyz").status == 200)
    assert scrape(ops)["sagastore_commits_unconfirmed_total"] == 0


def test_write_without_a_standby_is_refused_by_name(
    postgres: ReplicatedPostgres, server: ServerProcess
) -> None:
    ops = ops_of(server)
    postgres.standby.stop()
    asyncio.run(postgres.until_synchronous(0))
    with server.channel() as channel:
        refused = save(channel, "refused").exception()
        assert isinstance(refused, grpc.RpcError)
        refusal = refusal_of(refused)
        assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
        assert refusal.reason == "NOT_REPLICATED"
        assert "postgres_require_sync" in refusal.message

        def warned() -> bool:
            found = get(ops, "/readyz").document["warnings"]
            return [warning["reason"] for warning in found] == ["NOT_REPLICATED"]

        eventually(warned)
        postgres.standby.start()
        asyncio.run(postgres.until_synchronous())
        assert save(channel, "refused").result().created
    eventually(lambda: not get(ops, "/readyz").document["warnings"])


def test_replica_that_answers_and_is_lost(
    postgres: ReplicatedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The loss is a warning: the server stays ready, and the primary answers."""
    asyncio.run(postgres.configure(synchronous_standby_names=""))
    folder = tmp_path_factory.mktemp("replica")
    env = {
        **ON,
        "SAGASTORE_POSTGRES_REPLICAS": postgres.standby.dsn,
        "SAGASTORE_POSTGRES_REPLICA_WAIT": "60",
    }
    process = ServerProcess(folder / "unused", env=env, postgres=postgres.primary.dsn)
    try:
        process.start()
        ops = ops_of(process)
        rotation = 'sagastore_replica_in_rotation{replica="1"}'
        eventually(lambda: scrape(ops)[rotation] == 1)
        with process.channel() as channel:
            position = save(channel, "replicated").result().position
            stub = storage_pb2_grpc.StorageServiceStub(channel)
            request = storage_pb2.GetRequest(
                id="replicated", consistency=message_pb2.Consistency(at_least=position)
            )
            assert stub.Get(request, timeout=WITHIN).position >= position
            found = scrape(ops)
            read = 'sagastore_postgres_reads_total{node="%s",requirement="at_least"}'
            assert (found[read % "1"], found[read % "primary"]) == (1, 0)
            postgres.standby.stop()
            eventually(lambda: scrape(ops)[rotation] == 0)
            readyz = get(ops, "/readyz")
            (warning,) = readyz.document["warnings"]
            assert (readyz.status, warning["reason"]) == (200, "REPLICA_OUT")
            assert "answers no reads" in warning["detail"]
            assert stub.Get(request, timeout=WITHIN).message.id == "replicated"
            found = scrape(ops)
            assert found[read % "primary"] == 1
            assert found['sagastore_replica_fallbacks_total{reason="no_replica"}'] == 1
    finally:
        process.close()
