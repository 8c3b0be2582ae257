"""MigrationService over gRPC, with a scripted `MigrationControl`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from sagastore.v1 import migration_pb2, storage_pb2
from sagastore_server.rpc.lifecycle import LifecycleState
from sagastore_server.rpc.migration_convert import PHASES
from sagastore_server.storage.errors import (
    Blocker,
    FencedError,
    PreconditionError,
    StorageError,
    UnavailableError,
)
from sagastore_server.storage.phase import Phase
from tests.e2e.scripted import EVERYTHING, NOTHING, Served
from tests.support.messages import message
from tests.support.rpc_errors import Refusal, refusal_of
from tests.support.waiting import until


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    await served.start()
    yield served
    await served.close()


async def refused(call: Awaitable[Any]) -> tuple[Refusal, aio.AioRpcError]:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return refusal_of(caught.value), caught.value


async def read_all(call: Any) -> None:
    while await call.read() is not aio.EOF:
        pass


def preconditions(error: aio.AioRpcError) -> list[tuple[str, str, str]]:
    """Return type, subject and description of each violation of the PreconditionFailure."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    failure = error_details_pb2.PreconditionFailure()
    assert any(detail.Unpack(failure) for detail in status.details)
    return [(found.type, found.subject, found.description) for found in failure.violations]


def test_phase_values_match_the_protocol() -> None:
    assert {phase.value: int(number) for phase, number in PHASES.items()} == {
        number: number for number in migration_pb2.Phase.values() if number
    }


async def test_get_migration_returns_every_field(served: Served) -> None:
    answer = await served.migration.GetMigration(migration_pb2.GetMigrationRequest())
    found = answer.migration
    assert (found.phase, found.epoch) == (migration_pb2.PHASE_BACKFILL, 7)
    copy = found.backfill
    assert copy.state == migration_pb2.Backfill.STATE_PAUSED
    assert (copy.step, copy.copied, copy.total) == ("building idx_messages_tags 40 %", 11, 22)
    assert (copy.rows_per_second, copy.eta_seconds, copy.error) == (3.5, 4.5, "retried")
    assert (found.journal_rows, found.journal_lag_seconds, found.quarantined) == (33, 0.25, 44)
    last = found.last_verification
    assert last.started_at.ToMicroseconds() == 1_000_000
    assert last.finished_at.ToMicroseconds() == 2_500_001
    assert (last.compared, last.mismatch_count, last.repaired) == (55, 2, 1)
    (blocker,) = found.blockers_to_next
    assert (blocker.reason, blocker.detail) == ("BACKFILL_NOT_DONE", "wait until it is")
    sqlite, postgresql = found.stores
    assert (sqlite.store, sqlite.healthy, sqlite.messages) == (storage_pb2.STORE_SQLITE, True, 66)
    assert (postgresql.store, postgresql.healthy) == (storage_pb2.STORE_POSTGRESQL, False)
    assert (postgresql.detail, postgresql.messages) == ("it does not answer", -1)
    assert (sqlite.schema_version, postgresql.schema_version) == (2, 0)
    shadow = found.shadow
    assert (shadow.compared, shadow.skipped, shadow.different) == (77, 8, 9)
    (difference,) = shadow.differences
    assert difference.time.ToMicroseconds() == 3_000_002
    assert (difference.read, difference.sqlite) == ("Get", "1 message")
    assert difference.postgresql == "not found"
    assert found.reads_from_fallback
    assert (found.verifying.compared, found.verifying.total) == (500, 1000)
    assert found.verifying.mismatches[0].fields == ["content"]
    names = {field.name for field, _ in found.ListFields()}
    assert names == set(migration_pb2.Migration.DESCRIPTOR.fields_by_name), "none was forgotten"


async def test_get_migration_leaves_absent_values_unset(served: Served) -> None:
    served.control.answer = NOTHING
    answer = await served.migration.GetMigration(migration_pb2.GetMigrationRequest())
    assert answer.migration.phase == migration_pb2.PHASE_SQLITE_ONLY
    assert not answer.migration.HasField("last_verification")
    assert not answer.migration.HasField("verifying")


async def test_lone_surrogates_in_details_are_replaced(served: Served) -> None:
    served.control.answer = NOTHING._replace(
        blockers_to_next=(Blocker("SOMETHING", "see caf\udce9.db"),)
    )
    answer = await served.migration.GetMigration(migration_pb2.GetMigrationRequest())
    assert answer.migration.blockers_to_next[0].detail == "see caf?.db"
    served.control.error = PreconditionError((Blocker("SOMETHING", "see caf\udce9.db"),))
    refusal, _ = await refused(
        served.migration.GetMigration(migration_pb2.GetMigrationRequest())
    )  # fmt: skip
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.message == "see caf?.db"


@pytest.mark.parametrize("phase", list(Phase))
async def test_change_phase_passes_its_request(served: Served, phase: Phase) -> None:
    request = migration_pb2.ChangePhaseRequest(phase=PHASES[phase], accept_quarantine=True)
    answer = await served.migration.ChangePhase(request)
    assert answer.migration.epoch == 7
    request = migration_pb2.ChangePhaseRequest(phase=PHASES[phase], dry_run=True)
    await served.migration.ChangePhase(request)
    assert served.control.arguments == [(phase, False, True), (phase, True, False)]


@pytest.mark.parametrize(("number", "reason"), [(0, "is required"), (6, "is 6, not a known value")])
async def test_change_phase_rejects_unknown_phase(served: Served, number: int, reason: str) -> None:
    request = migration_pb2.ChangePhaseRequest()
    request.phase = number  # type: ignore[assignment]  # a newer client's number
    refusal, _ = await refused(served.migration.ChangePhase(request))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.fields == {"phase": reason}
    assert not served.control.arguments


async def test_blocked_change_phase_reports_every_blocker(served: Served) -> None:
    blockers = Blocker("JOURNAL_BEHIND", "3 changes wait"), Blocker("NOT_VERIFIED", "verify first")
    served.control.error = PreconditionError(blockers)
    request = migration_pb2.ChangePhaseRequest(phase=migration_pb2.PHASE_READ_POSTGRES)
    refusal, error = await refused(served.migration.ChangePhase(request))
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (refusal.reason, refusal.metadata) == ("BLOCKED", {"blockers": "2"})
    assert refusal.message == "3 changes wait; verify first"
    assert preconditions(error) == [
        ("JOURNAL_BEHIND", "migration", "3 changes wait"),
        ("NOT_VERIFIED", "migration", "verify first"),
    ]


async def test_blockers_are_truncated_to_fit_a_response(served: Served) -> None:
    blockers = tuple(Blocker(f"REASON_{number}", "ä" * 5000) for number in range(500))
    served.control.error = PreconditionError(blockers)
    request = migration_pb2.ChangePhaseRequest(phase=migration_pb2.PHASE_READ_POSTGRES)
    refusal, error = await refused(served.migration.ChangePhase(request))
    assert refusal.metadata == {"blockers": "500"}
    found = preconditions(error)
    assert 5 < len(found) < 50
    assert found[-1][2] == f"and {500 - len(found) + 1} more"


@pytest.mark.parametrize(
    ("error", "retry_after"),
    [
        (UnavailableError("PostgreSQL is unavailable", retry_after=2.0), 2.0),
        (FencedError("another server holds the migration"), 1.0),
    ],
)
async def test_outage_returns_unavailable_and_retry_after(
    served: Served, error: StorageError, retry_after: float
) -> None:
    served.control.error = error
    request = migration_pb2.ChangePhaseRequest(phase=migration_pb2.PHASE_READ_POSTGRES)
    refusal, _ = await refused(served.migration.ChangePhase(request))
    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert (refusal.reason, refusal.retry_after) == (error.reason, retry_after)


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({}, (None, None, None)),
        ({"paused": True}, (True, None, None)),
        ({"paused": False, "batch_size": 1}, (False, 1, None)),
        ({"batch_size": 10_000, "max_rows_per_second": 0}, (None, 10_000, 0)),
        ({"max_rows_per_second": 2_000_000_000}, (None, None, 2_000_000_000)),
    ],
)
async def test_control_backfill_passes_its_request(
    served: Served, fields: dict[str, Any], arguments: tuple[object, ...]
) -> None:
    request = migration_pb2.ControlBackfillRequest(**fields)
    answer = await served.migration.ControlBackfill(request)
    assert answer.migration.epoch == 7
    assert served.control.arguments == [arguments]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"batch_size": 0}, ["batch_size"]),
        ({"batch_size": 10_001}, ["batch_size"]),
        ({"max_rows_per_second": -1}, ["max_rows_per_second"]),
        ({"batch_size": -5, "max_rows_per_second": -1}, ["batch_size", "max_rows_per_second"]),
    ],
)
async def test_control_backfill_rejects_values_beyond_limits(
    served: Served, fields: dict[str, int], wrong: list[str]
) -> None:
    request = migration_pb2.ControlBackfillRequest(paused=True, **fields)
    refusal, _ = await refused(served.migration.ControlBackfill(request))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(refusal.fields) == wrong
    assert not served.control.arguments


async def test_verify_streams_progress(served: Served) -> None:
    served.control.more.set()
    call = served.migration.Verify(migration_pb2.VerifyRequest(repair=True))
    first, last = [answer async for answer in call]
    assert (first.compared, first.total, first.done) == (500, 1000, False)
    (mismatch,) = first.mismatches
    assert (mismatch.id, mismatch.kind) == ("m-1", "DIFFERENT")
    assert mismatch.fields == ["content"]
    assert (last.compared, last.mismatch_count, last.done) == (1000, 1, True)
    assert not last.mismatches
    assert served.control.arguments == [(True,)]
    assert served.control.ended == 1


async def test_verify_fails_with_the_error_of_its_control(served: Served) -> None:
    served.control.error = PreconditionError((Blocker("ONE_STORE", "there is one store"),))
    call = served.migration.Verify(migration_pb2.VerifyRequest())
    refusal, error = await refused(call.read())
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert preconditions(error) == [("ONE_STORE", "migration", "there is one store")]


async def test_cancelled_verify_ends(served: Served) -> None:
    call = served.migration.Verify(migration_pb2.VerifyRequest())
    await call.read()
    await served.control.watched.wait()
    call.cancel()
    await until(lambda: served.control.ended == 1)
    await until(lambda: not served.server.calls_in_progress)


async def test_drain_ends_verify(served: Served) -> None:
    call = served.migration.Verify(migration_pb2.VerifyRequest())
    await call.read()
    await served.control.watched.wait()
    drain = asyncio.create_task(served.server.drain(0.2))
    refusal, _ = await refused(call.read())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
    assert await drain
    assert served.control.ended == 1


async def test_watch_migration_streams_every_change(served: Served) -> None:
    call = served.migration.WatchMigration(migration_pb2.WatchMigrationRequest())
    for epoch in range(7, 12):
        answer = await call.read()
        assert isinstance(answer, migration_pb2.WatchMigrationResponse)
        assert answer.migration.epoch == epoch
        served.control.answer = EVERYTHING._replace(epoch=epoch + 1)
        served.control.more.set()
    call.cancel()
    await until(lambda: served.control.ended == 1)


async def test_drain_does_not_wait_for_watchers(served: Served) -> None:
    calls = [
        served.migration.WatchMigration(migration_pb2.WatchMigrationRequest()) for _ in range(3)
    ]
    for call in calls:
        await call.read()
    assert await served.server.drain(3600)
    for call in calls:
        refusal, _ = await refused(call.read())
        assert refusal.code is grpc.StatusCode.UNAVAILABLE
        assert refusal.reason == "SERVER_DRAINING"
        assert refusal.retry_after is not None
    await until(lambda: served.control.ended == 3)
    late = served.migration.WatchMigration(migration_pb2.WatchMigrationRequest())
    refusal, _ = await refused(late.read())
    assert refusal.reason == "SERVER_DRAINING"


@pytest.mark.parametrize("turns", range(12))
async def test_stream_ended_during_first_response_reports_its_status(
    served: Served, turns: int
) -> None:
    """The stream ends ``turns`` iterations of the loop after gRPC received the response."""
    loop = asyncio.get_running_loop()

    def drain_after(turns: int) -> None:
        if turns:
            loop.call_soon(drain_after, turns - 1)
        else:
            drains.append(loop.create_task(served.server.drain(3600)))

    drains: list[asyncio.Task[bool]] = []
    served.control.before_item = lambda: drain_after(turns)
    call = served.migration.WatchMigration(migration_pb2.WatchMigrationRequest())
    refusal, _ = await refused(read_all(call))
    assert refusal.reason == "SERVER_DRAINING"
    assert await drains[0]


async def test_drain_does_not_wait_for_stalled_watcher(served: Served) -> None:
    # Enough to fill the flow control window.
    text = "x" * 200_000
    served.control.answer = EVERYTHING._replace(
        blockers_to_next=tuple(Blocker("LONG", text) for _ in range(15))
    )
    served.migration.WatchMigration(migration_pb2.WatchMigrationRequest())
    await served.control.watched.wait()
    for _ in range(100):
        served.control.more.set()
        await asyncio.sleep(0)
    assert await served.server.drain(3600)


async def test_watch_migration_fails_with_the_error_of_its_control(served: Served) -> None:
    served.control.error = UnavailableError("the journal cannot be read")
    call = served.migration.WatchMigration(migration_pb2.WatchMigrationRequest())
    refusal, _ = await refused(call.read())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")


@pytest.mark.parametrize(
    "durability", [storage_pb2.DURABILITY_UNSPECIFIED, storage_pb2.DURABILITY_PRIMARY]
)
async def test_save_with_primary_durability_has_no_wait(
    served: Served, durability: storage_pb2.Durability.ValueType
) -> None:
    request = storage_pb2.SaveRequest(message=message(), durability=durability)
    await served.storage.Save(request, timeout=60)
    assert served.backend.within == (None,)


async def test_save_to_both_stores_waits_until_the_deadline(served: Served) -> None:
    request = storage_pb2.SaveRequest(message=message(), durability=storage_pb2.DURABILITY_BOTH)
    # gRPC rounds a timeout of 100 s or more up to whole seconds, and a shorter one to tenths.
    answer = await served.storage.Save(request, timeout=99)
    assert answer.durable_on == [storage_pb2.STORE_SQLITE, storage_pb2.STORE_POSTGRESQL]
    await served.storage.Save(request)
    with_deadline, without = served.backend.within
    assert with_deadline is not None
    assert 50 < with_deadline < 100
    assert without == 30


async def test_save_to_both_stores_fails_while_one_is_unavailable(served: Served) -> None:
    served.backend.error = UnavailableError("it is stored in SQLite, and follows")
    request = storage_pb2.SaveRequest(message=message(), durability=storage_pb2.DURABILITY_BOTH)
    refusal, _ = await refused(served.storage.Save(request, timeout=30))
    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert refusal.message == "it is stored in SQLite, and follows"


async def test_drained_server_refuses_migration_calls(served: Served) -> None:
    assert await served.server.drain(1)
    assert served.server._lifecycle.state is LifecycleState.DRAINING
    call = served.migration.GetMigration(migration_pb2.GetMigrationRequest())
    refusal, _ = await refused(call)
    assert refusal.reason == "SERVER_DRAINING"
