"""Rare behaviour of the models: crashes, lost answers, late commits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from sagastore_server.storage.errors import (
    CannotOpenError,
    FencedError,
    StorageError,
    StorageFullError,
    TargetSetBackError,
    UnavailableError,
)
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import MigrationState
from tests.simulation.models.postgres import PostgresServer
from tests.simulation.models.process import PROCESS, Process, ProcessDeadError
from tests.simulation.models.source import ModelSource
from tests.simulation.models.source_disk import SourceDisk
from tests.simulation.models.target import ModelTarget
from tests.simulation.models.transaction import Read
from tests.support.drafts import draft
from tests.support.migration_backends import now, opened
from tests.support.migration_values import (
    LEASE,
    SOURCE,
    SUCCESSOR,
    content_of,
    message,
    record_of,
    saved,
)

DUAL_WRITE = MigrationState(Phase.DUAL_WRITE, epoch=2)
BATCH = [saved(message(f"m-{n}", n + 1)) for n in range(3)]

# ------------------------------------------------------------------ the source


def _source(disk: SourceDisk) -> ModelSource:
    return ModelSource(disk, Process("server"), now)


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_writes_are_durable_before_acknowledgement() -> None:
    disk = SourceDisk(Random(1), scale=0)
    source = _source(disk)
    await source.open()
    save = asyncio.create_task(source.save(draft("a")))
    while not disk.messages:
        await asyncio.sleep(0)
    assert not save.done()
    assert source.committed == 0
    assert (await source.get("a")).revision == 1
    await save
    assert source.committed == 1
    await source.close()


async def test_crash_loses_answer_but_keeps_write() -> None:
    disk = SourceDisk(Random(1), scale=0)
    source = _source(disk)
    await source.open()
    save = asyncio.create_task(source.save(draft("a")))
    while not disk.messages:
        await asyncio.sleep(0)
    source.process.dead = True
    with pytest.raises(ProcessDeadError):
        await source.get("a")
    async with opened(_source(disk)) as successor:
        assert (await successor.get("a")).revision == 1
        assert (await successor.save(draft("b"))).revision == 2
    save.cancel()


async def test_file_is_locked_until_process_ends() -> None:
    disk = SourceDisk(Random(1), scale=0)
    source, other = _source(disk), _source(disk)
    await source.open()
    with pytest.raises(CannotOpenError):
        await other.open()
    source.process.dead = True
    async with opened(other):
        await other.save(draft("a"))


async def test_full_disk_stores_nothing() -> None:
    disk = SourceDisk(Random(1), scale=0)
    async with opened(_source(disk)) as source:
        disk.fault, disk.fault_rate = "full", 1.0
        for call in (source.save(draft("a")), source.set_state(DUAL_WRITE)):
            with pytest.raises(StorageFullError):
                await call
        assert (disk.messages, disk.state) == ({}, MigrationState())
        assert await source.flush() == 0
        disk.fault = None
        assert (await source.save(draft("a"))).revision == 1


async def test_write_with_io_error_may_be_durable() -> None:
    """Flush covers it: data that a read has returned is committed by then, or flush fails."""
    stored, flushed = Counter[bool](), Counter[bool]()
    for seed in range(60):
        disk = SourceDisk(Random(seed), scale=0)
        async with opened(_source(disk)) as source:
            await source.set_state(DUAL_WRITE)
            disk.fault, disk.fault_rate = "eio", 0.7
            try:
                await source.save(draft("a"))
            except UnavailableError:
                stored[bool(disk.messages)] += 1
            seen = await source.batch_get(["a"])
            try:
                assert await source.flush() >= max(
                    (one.revision for one in seen.values()), default=0
                )
                flushed[True] += 1
            except UnavailableError:
                flushed[False] += 1
            disk.fault = None
            assert await source.flush() == disk.revision == source.committed
            assert [one.id for one in await source.journal(0, 9)] == list(seen)
    assert min(stored[True], stored[False], flushed[True], flushed[False]) > 3


async def test_busy_readers_and_slow_disk_only_delay() -> None:
    disk = SourceDisk(Random(1), scale=0.001)
    disk.busy_readers, disk.slow = 1.0, 10.0
    async with opened(_source(disk)) as source:
        await source.save(draft("a"))
        assert (await source.get("a")).revision == 1


# ------------------------------------------------------------------ the target


def _target(server: PostgresServer) -> ModelTarget:
    return ModelTarget(server, Process("server"), now)


@asynccontextmanager
async def _claimed(server: PostgresServer) -> AsyncIterator[ModelTarget]:
    async with opened(_target(server)) as target:
        await target.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
        yield target


async def _interrupted(seed: int, turns: int, how: str) -> str:
    """Apply a batch, inject a fault after some turns, and return the outcome.

    The outcome has the caller's answer, the number of rows stored then, and at the end.
    """
    server = PostgresServer(Random(seed), scale=0)
    async with _claimed(server) as target:
        applying = asyncio.create_task(target.apply(LEASE, BATCH))
        await _turns(turns)
        if how == "cancel":
            applying.cancel()
        elif how == "crash":
            server.crash()
            await _turns(3)
            server.start()
        else:
            server.cut()
        stored = len(server.rows)
        await asyncio.wait({applying})
        failed = applying.cancelled() or applying.exception() is not None
        # A transaction without a waiting client locks the record until it ends.
        await target.renew(LEASE)
        later = await content_of(target)
        assert len(later) in {0, 3}
        assert (await record_of(target)).applied == len(later)
        assert failed or len(later) == 3
        return f"{'failed' if failed else 'done'}, {stored}, {len(later)}"


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("cut", {"failed, 0, 0", "failed, 0, 3", "failed, 3, 3", "done, 3, 3"}),
        ("cancel", {"failed, 0, 0", "failed, 0, 3", "failed, 3, 3", "done, 3, 3"}),
        # Nothing commits late after a crash.
        ("crash", {"failed, 0, 0", "failed, 3, 3", "done, 3, 3"}),
    ],
)
async def test_interrupted_transaction_is_atomic(how: str, expected: set[str]) -> None:
    found = {await _interrupted(seed, turns, how) for seed in range(8) for turns in range(1, 20)}
    # A fault before the request is sent has no effect on it.
    assert found - {"done, 0, 3"} == expected


async def test_half_open_connection_delivers_nothing() -> None:
    server = PostgresServer(Random(1), scale=0)
    async with _claimed(server) as target:
        for lose in (False, True):
            server.hold()
            calls = [
                asyncio.create_task(target.apply(LEASE, BATCH)),
                asyncio.create_task(target.renew(LEASE)),
                asyncio.create_task(target.count()),
            ]
            await _turns(50)
            assert not any(call.done() for call in calls)
            server.release(lose)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            lost = [isinstance(one, UnavailableError) for one in outcomes]
            assert lost == [lose] * 3
        assert await target.count() == 3


async def test_claim_waits_for_hanging_transaction() -> None:
    server = PostgresServer(Random(1), scale=0)
    async with _claimed(server) as target, opened(_target(server)) as successor:
        applying = asyncio.create_task(target.apply(LEASE, BATCH))
        while not server.lock("\0record").locked():
            await asyncio.sleep(0)
        server.hold()
        await _turns(5)
        server.release(lose=False)
        claim = successor.claim(SUCCESSOR, SOURCE, Phase.DUAL_WRITE, 2, steal=True)
        record, _ = await asyncio.gather(claim, applying)
        assert (record.session, record.applied) == (SUCCESSOR.session, 3)
        with pytest.raises(FencedError):
            await target.apply(LEASE, BATCH)


async def test_restored_database_is_detected_by_comparison() -> None:
    server = PostgresServer(Random(1), scale=0)
    async with _claimed(server) as target:
        await target.apply(LEASE, BATCH[:1])
        backup = server.snapshot()
        await target.apply(LEASE, BATCH[1:], 1)
        server.restore(backup)
        assert (await target.renew(LEASE)).applied == 1
        with pytest.raises(TargetSetBackError):
            await target.apply(LEASE, [saved(message("m-9", 9))], 3)
        assert list(await content_of(target)) == ["m-0"]
        # Later changes do not modify the backup.
        await target.apply(LEASE, BATCH[1:], 1)
        assert list(backup.rows) == ["m-0"]


@pytest.mark.parametrize("noticed", [True, False])
async def test_restore_rolls_back_transactions_in_progress(noticed: bool) -> None:
    outcomes = Counter[bool]()
    for turns in range(1, 12):
        server = PostgresServer(Random(turns), scale=0)
        async with _claimed(server) as target:
            backup = server.snapshot()
            applying = asyncio.create_task(target.apply(LEASE, BATCH))
            await _turns(turns)
            server.restore(backup, noticed=noticed)
            await asyncio.wait({applying})
            failed = applying.exception() is not None
            outcomes[failed] += 1
            if failed:
                assert await content_of(target) == {}
    assert outcomes[True]
    # Requests in transit are executed on the earlier state.
    assert noticed or outcomes[False]


async def test_read_failures_do_not_affect_writes() -> None:
    server = PostgresServer(Random(1), scale=0)
    async with _claimed(server) as target:
        server.read_failures = 1.0
        await target.apply(LEASE, BATCH)
        assert (await record_of(target)).applied == 3
        assert await target.count() == 3
        for call in (target.get("m-1"), target.last_id(), target.scan_ids("", "z", 9)):
            with pytest.raises(UnavailableError):
                await call
        server.read_failures = 0.0
        assert await content_of(target) == {one.id: one.message for one in BATCH}


async def test_full_postgresql_disk_rejects_writes_only() -> None:
    server = PostgresServer(Random(1), scale=0)
    async with _claimed(server) as target:
        server.fault = "full"
        failed = 0
        for _ in range(30):
            try:
                await target.apply(LEASE, BATCH)
            except StorageFullError:
                failed += 1
        assert 5 < failed < 30
        assert await target.count() in {0, 3}


async def test_stopped_database_keeps_committed_rows() -> None:
    server = PostgresServer(Random(1), scale=0)
    async with _claimed(server) as target:
        await target.apply(LEASE, BATCH)
        server.crash()
        for call in (target.count(), target.renew(LEASE), target.save(draft("a"))):
            with pytest.raises(UnavailableError):
                await call
        with pytest.raises(CannotOpenError):
            await _target(server).open()
        server.start()
        assert await target.count() == 3
        await target.renew(LEASE)


async def test_callbacks_of_a_model_belong_to_its_process() -> None:
    """The tasks of the writer and of PostgreSQL included, so that a simulation can drop them."""
    seen: set[str] = set()

    class Watched(ModelSource):
        def _grow(self, revision: int) -> None:
            process = PROCESS.get()
            seen.add(process.name if process else "none")
            super()._grow(revision)

    server = PostgresServer(Random(1), Process("postgres"), scale=0)
    source = Watched(SourceDisk(Random(1), scale=0), Process("server"), now)
    async with opened(source), _claimed(server) as target:
        await source.save(draft("a"))
        assert await target._ask(Read(PROCESS.get)) is server.process
    assert seen == {"server"}


async def test_model_raises_contract_errors() -> None:
    server = PostgresServer(Random(1), scale=0)
    async with opened(_target(server)) as target:
        with pytest.raises(StorageError):
            await target.renew(LEASE)
