"""Health, reflection and MigrationService of a server with one store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]
    reflection_pb2,
    reflection_pb2_grpc,
)

from sagastore.v1 import migration_pb2, storage_pb2
from sagastore.v1.migration_pb2_grpc import MigrationServiceStub
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.conftest import ServerFactory
from tests.support.legacy_db import PLAIN, legacy_db
from tests.support.messages import message, new_id
from tests.support.rpc_errors import refused
from tests.support.server_process import ServerProcess

SERVICES = [f"sagastore.v1.{name}Service" for name in ("Storage", "Session", "File", "Migration")]


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health_is_serving(shared_channel: grpc.Channel, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(shared_channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_unknown_service_is_not_found(shared_channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(shared_channel)
    with refused(grpc.StatusCode.NOT_FOUND):
        stub.Check(health_pb2.HealthCheckRequest(service="nothing"))


class Reflection:
    """A client without generated code, which uses reflection."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        self._files: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def services(self) -> list[str]:
        (answer,) = self._ask(list_services="")
        return [service.name for service in answer.list_services_response.service]

    def pool_with(self, symbol: str) -> descriptor_pool.DescriptorPool:
        self._collect(file_containing_symbol=symbol)
        pool = descriptor_pool.DescriptorPool()
        added: set[str] = set()

        def add(name: str) -> None:
            if name not in added:
                added.add(name)
                for needed in self._files[name].dependency:
                    add(needed)
                pool.Add(self._files[name])

        for name in self._files:
            add(name)
        return pool

    def _collect(self, **question: str) -> None:
        for answer in self._ask(**question):
            for serialized in answer.file_descriptor_response.file_descriptor_proto:
                file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
                self._files[file.name] = file
                for needed in file.dependency:
                    if needed not in self._files:
                        self._collect(file_by_filename=needed)

    def _ask(self, **question: str) -> list[reflection_pb2.ServerReflectionResponse]:
        request = reflection_pb2.ServerReflectionRequest(**question)
        return list(self._stub.ServerReflectionInfo(iter([request])))


def test_reflection_lists_the_services(shared_channel: grpc.Channel) -> None:
    assert set(Reflection(shared_channel).services()) == {
        *SERVICES,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


def test_reflection_serves_a_client_without_generated_code(shared_channel: grpc.Channel) -> None:
    pool = Reflection(shared_channel).pool_with("sagastore.v1.StorageService")
    service = pool.FindServiceByName("sagastore.v1.StorageService")

    def call(method_name: str, request: dict[str, object]) -> dict[str, object]:
        method = service.methods_by_name[method_name]
        request_class = message_factory.GetMessageClass(method.input_type)
        answered = message_factory.GetMessageClass(method.output_type)
        invoke: grpc.UnaryUnaryMultiCallable[object, object] = shared_channel.unary_unary(
            f"/{service.full_name}/{method_name}",
            request_serializer=request_class.SerializeToString,  # type: ignore[arg-type]
            response_deserializer=answered.FromString,
        )
        answer = invoke(json_format.ParseDict(request, request_class()))
        return json_format.MessageToDict(answer)  # type: ignore[arg-type]

    message_id = new_id()
    sent = {"id": message_id, "provider": "groq", "role": "tool", "content": "by reflection"}
    assert call("Save", {"message": sent})["created"] is True
    found = call("Get", {"id": message_id})["message"]
    assert isinstance(found, dict)
    assert sent.items() <= found.items()


def test_get_migration_of_a_new_file_is_sqlite_only(
    running_storage: StorageServiceStub, channel: grpc.Channel
) -> None:
    running_storage.Save(storage_pb2.SaveRequest(message=message()))
    stub = MigrationServiceStub(channel)
    found = stub.GetMigration(migration_pb2.GetMigrationRequest()).migration
    assert found.phase == migration_pb2.PHASE_SQLITE_ONLY
    assert found.epoch == 1
    assert found.backfill.state == migration_pb2.Backfill.STATE_PENDING
    assert found.journal_rows == found.quarantined == 0
    assert not found.HasField("last_verification")
    assert [blocker.reason for blocker in found.blockers_to_next] == ["POSTGRES_NOT_CONFIGURED"]
    (store,) = found.stores
    assert store.store == storage_pb2.STORE_SQLITE
    assert store.healthy
    assert store.messages == 1
    assert store.schema_version > 0


def test_change_phase_with_one_store_is_refused(migration: MigrationServiceStub) -> None:
    calls: list[Callable[[], object]] = [
        lambda: migration.ChangePhase(
            migration_pb2.ChangePhaseRequest(phase=migration_pb2.PHASE_DUAL_WRITE)
        ),
        lambda: migration.ControlBackfill(migration_pb2.ControlBackfillRequest(paused=True)),
        lambda: next(iter(migration.Verify(migration_pb2.VerifyRequest()))),
    ]
    for call in calls:
        with refused(grpc.StatusCode.FAILED_PRECONDITION) as caught:
            call()
        assert caught.refusal.reason == "BLOCKED"


def test_change_to_the_current_phase_succeeds(migration: MigrationServiceStub) -> None:
    request = migration_pb2.ChangePhaseRequest(phase=migration_pb2.PHASE_SQLITE_ONLY)
    assert migration.ChangePhase(request).migration.phase == migration_pb2.PHASE_SQLITE_ONLY


def test_watch_migration_sends_every_second_until_the_drain(
    running_server: ServerProcess, channel: grpc.Channel
) -> None:
    watch = MigrationServiceStub(channel).WatchMigration(migration_pb2.WatchMigrationRequest())
    for _ in range(3):
        assert next(watch).migration.phase == migration_pb2.PHASE_SQLITE_ONLY
    running_server.ask_to_stop()
    with refused(grpc.StatusCode.UNAVAILABLE) as caught:
        list(watch)
    assert caught.refusal.reason == "SERVER_DRAINING"
    assert running_server.wait() == 0


def test_legacy_file_is_served_with_its_quarantine(
    server_process: ServerFactory, tmp_path: Path
) -> None:
    file = tmp_path / "memory.db"
    good = [{**PLAIN, "id": f"good-{n}"} for n in range(5)]
    bad = [{**PLAIN, "id": f"bad-{n:03}", "metadata": '{"x": NaN}'} for n in range(120)]
    legacy_db(file, [*good, *bad])
    server = server_process(sqlite=file).start()
    with server.channel() as channel:
        storage, stub = StorageServiceStub(channel), MigrationServiceStub(channel)
        listed = storage.List(storage_pb2.ListRequest(session_id="s"))
        assert [found.id for found in listed.messages] == [one["id"] for one in good]
        state = stub.GetMigration(migration_pb2.GetMigrationRequest()).migration
        assert state.quarantined == 120
        request = migration_pb2.ListQuarantineRequest(page_size=50)
        keys: list[str] = []
        sizes: list[int] = []
        while True:
            page = stub.ListQuarantine(request)
            sizes.append(len(page.rows))
            keys += [row.source_key for row in page.rows]
            request.page_token = page.next_page_token
            if not request.page_token:
                break
    assert sizes == [50, 50, 20]
    assert len(set(keys)) == 120
    assert page.rows[0].field == "metadata"
    assert b"NaN" in page.rows[0].row
