"""Migration calls against a server with scripted failures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2

from sagastore import (
    AsyncClient,
    Backfill,
    BackfillState,
    Blocker,
    FailedPreconditionError,
    InvalidArgumentError,
    Migration,
    Mismatch,
    MismatchKind,
    PermissionDeniedError,
    Phase,
    ShadowDifference,
    ShadowReads,
    Store,
    StoreHealth,
    UnavailableError,
    Verification,
    VerifyProgress,
)
from sagastore.v1 import migration_pb2 as pb
from sagastore.v1 import storage_pb2
from tests.client.failing.scripted import (
    QUICK,
    Script,
    answer,
    at_phase,
    refuse,
    streaming,
    unavailable,
)

WIRE = pb.Migration(
    phase=pb.PHASE_BACKFILL,
    epoch=3,
    backfill=pb.Backfill(
        state=pb.Backfill.STATE_RUNNING,
        copied=5,
        total=9,
        rows_per_second=1.5,
        eta_seconds=2.5,
        error="e",
        step="copying rows",
    ),
    journal_rows=7,
    journal_lag_seconds=0.5,
    quarantined=2,
    last_verification=pb.Verification(
        started_at=Timestamp(seconds=1, nanos=1000), compared=4, mismatch_count=1, repaired=1
    ),
    blockers_to_next=[pb.Blocker(reason="R", detail="d")],
    stores=[
        pb.StoreHealth(store=storage_pb2.STORE_SQLITE, healthy=True, messages=5, schema_version=1),
        pb.StoreHealth(store=storage_pb2.STORE_POSTGRESQL, detail="down", messages=-1),
    ],
    shadow=pb.ShadowReads(
        compared=8,
        skipped=2,
        different=1,
        differences=[
            pb.ShadowDifference(time=Timestamp(seconds=2), read="Get", sqlite="a@1", postgresql="")
        ],
    ),
    reads_from_fallback=True,
    verifying=pb.VerifyResponse(compared=3, total=9, mismatch_count=1),
)
OURS = Migration(
    phase=Phase.BACKFILL,
    epoch=3,
    backfill=Backfill(BackfillState.RUNNING, 5, 9, 1.5, 2.5, "e", "copying rows"),
    journal_rows=7,
    journal_lag_seconds=0.5,
    quarantined=2,
    last_verification=Verification(datetime(1970, 1, 1, 0, 0, 1, 1, UTC), None, 4, 1, 1),
    blockers_to_next=(Blocker("R", "d"),),
    stores=(
        StoreHealth(Store.SQLITE, True, "", 5, 1),
        StoreHealth(Store.POSTGRESQL, False, "down", None, None),
    ),
    shadow=ShadowReads(
        8, 2, 1, (ShadowDifference(datetime(1970, 1, 1, 0, 0, 2, 0, UTC), "Get", "a@1", ""),)
    ),
    reads_from_fallback=True,
    verifying=VerifyProgress(3, 9, (), False, 1, 0),
)


async def test_migration_fields_are_converted(script: Script, client: AsyncClient) -> None:
    script.play("GetMigration", answer(pb.GetMigrationResponse(migration=WIRE)))
    assert await client.migration.get() == OURS


async def test_migration_without_values_is_converted(script: Script, client: AsyncClient) -> None:
    script.play("GetMigration", answer(pb.GetMigrationResponse()))
    now = await client.migration.get()
    assert now.phase is Phase.UNKNOWN
    assert now.last_verification is None
    assert now.verifying is None
    assert now.reads_from is Store.UNKNOWN


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.UNKNOWN])
def test_reads_from_depends_on_phase_and_fallback(phase: Phase, fallback: bool) -> None:
    fallback = fallback and phase is Phase.READ_POSTGRES
    postgresql = phase in {Phase.READ_POSTGRES, Phase.POSTGRES_ONLY} and not fallback
    state = replace(OURS, phase=phase, reads_from_fallback=fallback)
    assert state.reads_from is (Store.POSTGRESQL if postgresql else Store.SQLITE)


async def test_failed_precondition_has_every_blocker(script: Script, client: AsyncClient) -> None:
    failure = error_details_pb2.PreconditionFailure()
    for number in (1, 2):
        failure.violations.add(type=f"R{number}", subject="migration", description=f"d{number}")
    refused = refuse(grpc.StatusCode.FAILED_PRECONDITION, "d1; d2", failure)
    script.play("ChangePhase", refused)
    with pytest.raises(FailedPreconditionError) as caught:
        await client.migration.change_phase(Phase.BACKFILL)
    assert caught.value.blockers == (Blocker("R1", "d1"), Blocker("R2", "d2"))
    assert str(caught.value) == "d1; d2"
    assert len(script.requests) == 1


async def test_control_backfill_sends_only_given_values(
    script: Script, client: AsyncClient
) -> None:
    script.play("ControlBackfill", answer(pb.ControlBackfillResponse(migration=WIRE)))
    assert await client.migration.control_backfill(paused=False, batch_size=5) == OURS
    (request,) = script.requests
    assert request.HasField("paused")
    assert not request.HasField("max_rows_per_second")
    with pytest.raises(InvalidArgumentError):
        await client.migration.control_backfill(batch_size=2**40)


async def test_dry_run_is_sent(script: Script, client: AsyncClient) -> None:
    refused = refuse(grpc.StatusCode.FAILED_PRECONDITION, "not now")
    script.play("ChangePhase", unavailable(), refused)
    with pytest.raises(FailedPreconditionError):
        await client.migration.change_phase(Phase.BACKFILL, dry_run=True, accept_quarantine=True)
    asked = script.requests[-1]
    assert (asked.phase, asked.dry_run, asked.accept_quarantine) == (3, True, True)


async def test_watch_continues_after_a_restart(script: Script, client: AsyncClient) -> None:
    async def once(request: Any, context: Any) -> AsyncIterator[Any]:
        yield pb.WatchMigrationResponse(migration=at_phase(len(script.requests)))
        await unavailable()(request, context)

    script.play("WatchMigration", streaming(once))
    seen: list[Phase] = []
    async with aclosing(client.migration.watch()) as states:
        async for state in states:
            seen.append(state.phase)
            if len(seen) == 3:
                break
    assert seen == [Phase.SQLITE_ONLY, Phase.DUAL_WRITE, Phase.BACKFILL]


async def test_watch_continues_when_the_server_ends_the_stream(
    script: Script, client: AsyncClient
) -> None:
    async def end(_: Any, __: Any) -> AsyncIterator[Any]:
        yield pb.WatchMigrationResponse(migration=at_phase(len(script.requests)))

    script.play("WatchMigration", streaming(end), *[unavailable()] * 20, streaming(end))
    async with aclosing(client.migration.watch()) as states:
        assert (await anext(states)).phase is Phase.SQLITE_ONLY
        # More failures than a policy allows before the first news.
        await anext(states)
    assert len(script.requests) == 22


async def test_watch_ends_after_its_timeout(script: Script, client: AsyncClient) -> None:
    script.play("WatchMigration", unavailable())
    with pytest.raises(UnavailableError):
        await anext(client.migration.watch())
    assert len(script.requests) == QUICK.max_attempts

    async def once(_: Any, __: Any) -> AsyncIterator[Any]:
        yield pb.WatchMigrationResponse()

    script.play("WatchMigration", streaming(once), unavailable())
    async with aclosing(client.migration.watch(timeout=1)) as states:
        await anext(states)
        with pytest.raises(UnavailableError):
            await anext(states)

    refused = refuse(grpc.StatusCode.PERMISSION_DENIED, "not for you")
    script.play("WatchMigration", streaming(once), refused)
    async with aclosing(client.migration.watch()) as states:
        await anext(states)
        with pytest.raises(PermissionDeniedError):
            await anext(states)


async def test_verification_progress_is_yielded(script: Script, client: AsyncClient) -> None:
    async def compare(_: Any, __: Any) -> AsyncIterator[Any]:
        missing = pb.Mismatch(id="x", kind="MISSING")
        different = pb.Mismatch(id="y", kind="DIFFERENT", fields=["tags"])
        yield pb.VerifyResponse(compared=1, total=2, mismatches=[missing, different])
        yield pb.VerifyResponse(compared=2, total=2, done=True, mismatch_count=2, repaired=2)

    script.play("Verify", streaming(compare))
    assert [progress async for progress in client.migration.verify(repair=True)] == [
        VerifyProgress(
            1,
            2,
            (
                Mismatch("x", MismatchKind.MISSING, ()),
                Mismatch("y", MismatchKind.DIFFERENT, ("tags",)),
            ),
            False,
            0,
            0,
        ),
        VerifyProgress(2, 2, (), True, 2, 2),
    ]
    assert script.requests[0].repair


async def test_quarantine_is_paged(script: Script, client: AsyncClient) -> None:
    row = pb.QuarantinedRow(
        source_key="messages/rowid=5", reason="r", field="id", row=b'{"id": null, "n": 1.5}'
    )
    pages = {
        "": pb.ListQuarantineResponse(rows=[row], next_page_token="t"),
        "t": pb.ListQuarantineResponse(rows=[row, row]),
    }

    async def page(request: pb.ListQuarantineRequest, _: Any) -> pb.ListQuarantineResponse:
        return pages[request.page_token]

    script.play("ListQuarantine", page)
    rows = [row async for row in client.migration.quarantine(page_size=2)]
    assert len(rows) == 3
    assert rows[0].columns() == {"id": None, "n": 1.5}
    assert [r.page_size for r in script.requests] == [2, 2]
