"""PostgreSQL as a migration target: claims, leases, faults."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from sagastore_server.postgresql import journal_apply
from sagastore_server.postgresql.schema import SCHEMA_VERSION, STEPS
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.runtime.worker_pool import WorkerPool
from sagastore_server.storage.errors import (
    CannotOpenError,
    FencedError,
    PreconditionError,
    UnavailableError,
)
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import TargetState
from tests.postgresql.targets import (
    claimed,
    fetched,
    opened_plain,
    opened_target,
    target_on,
    until_one_waits,
)
from tests.support.drafts import draft
from tests.support.migration_values import (
    LEASE,
    SOURCE,
    SUCCESSOR,
    content_of,
    message,
    saved,
)
from tests.support.ports import reserved_port
from tests.support.postgres import execute, postgres_process

# ------------------------------------------------------------------ looking and claiming


async def test_concurrent_open_shares_pool(dsn: str) -> None:
    replica = target_on(dsn)
    try:
        # A cancelled open closes its connections while another one opens.
        given_up = asyncio.create_task(replica.open())
        await asyncio.sleep(0)
        others = [asyncio.create_task(replica.open()) for _ in range(3)]
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(*others)
        assert await replica.inspect() == TargetState(0, True, None)
    finally:
        await replica.close()


async def test_concurrent_failed_open_reports_to_all() -> None:
    with reserved_port() as port:
        replica = target_on(f"postgresql://postgres@127.0.0.1:{port}/none")
        outcomes = await asyncio.gather(*[replica.open() for _ in range(3)], return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [CannotOpenError] * 3


async def test_opening_and_inspecting_create_nothing(dsn: str) -> None:
    async with opened_target(dsn) as replica:
        await replica.inspect()
        await replica.health()
        here = "SELECT FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
        assert await fetched(dsn, here) == []


async def test_foreign_tables_are_refused(dsn: str) -> None:
    await execute(dsn, "CREATE TABLE messages (id INTEGER)")
    async with opened_target(dsn) as replica:
        with pytest.raises(CannotOpenError, match=r"did not create \(messages\)"):
            await replica.inspect()
        with pytest.raises(CannotOpenError, match=r"did not create \(messages\)"):
            await replica.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
    assert await fetched(dsn, "SELECT to_regclass('sagastore_schema')::text") == [(None,)]


async def test_newer_schema_is_refused_or_used(dsn: str) -> None:
    async with claimed(dsn) as replica:
        await execute(dsn, "INSERT INTO sagastore_schema VALUES (98, 1)")
        assert (await replica.inspect()).schema_version == 98
        assert (await replica.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)).source == SOURCE
        await execute(dsn, "INSERT INTO sagastore_schema VALUES (99, 99)")
        with pytest.raises(CannotOpenError, match="run a newer server"):
            await replica.inspect()
        with pytest.raises(CannotOpenError, match="run a newer server"):
            await replica.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)


async def make_version_1(dsn: str) -> None:
    """Create the schema of the first version."""
    await execute(dsn, STEPS[0].sql)
    await execute(dsn, "INSERT INTO sagastore_schema VALUES (1, 1)")


async def test_older_schema_is_upgraded_with_data(dsn: str) -> None:
    await make_version_1(dsn)
    await execute(
        dsn,
        "INSERT INTO messages VALUES ('m-1', 'openai', 'user', 'An old fox', '[\"t\"]', now(), "
        "'{}', 's-1', now(), 7, ' old ', '')",
    )
    await execute(
        dsn,
        "INSERT INTO files VALUES ('f', 'n', 'p', 't', NULL, NULL, 3, '2025-04-01', NULL, NULL)",
    )
    await execute(dsn, "SELECT setval('message_revisions', 7)")
    async with opened_target(dsn) as replica:
        found = await replica.inspect()
        assert (found.schema_version, found.empty, found.record) == (1, False, None)
        with pytest.raises(
            PreconditionError, match="already contains messages and sessions and files"
        ):
            await replica.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
        assert (await replica.inspect()).schema_version == 1
    async with opened_plain(dsn) as backend:
        assert (await backend.health()).schema_version == SCHEMA_VERSION
        # The version of the analysis was missing, so the terms were rebuilt.
        before = await backend.get("m-1")
        assert (before.content, before.sequence) == ("An old fox", 7)
        after = await backend.save(draft("m-2"))
        assert after.revision == (await backend.get("m-2")).sequence > 7
        file = await backend.get_file("f")
        assert (file.file_size, file.extracted_text, file.extra) == (3, "", "{}")
        assert file.revision > 7
    rows = await fetched(dsn, "SELECT version, compatible_from FROM sagastore_schema ORDER BY 1")
    assert rows == [(number, number) for number in range(1, SCHEMA_VERSION + 1)]


async def test_older_empty_schema_is_claimed(dsn: str) -> None:
    await make_version_1(dsn)
    async with claimed(dsn) as replica:
        assert not any(one.valid for one in await replica.indexes())
        await replica.apply(LEASE, [saved(message())])


# ------------------------------------------------------------------ leases


async def test_claim_waits_for_hanging_transaction(dsn: str) -> None:
    """The former holder's transaction is in progress when a successor claims."""
    async with claimed(dsn) as replica:
        steps = await journal_apply.steps_of([saved(message("m-1", 3))], WorkerPool())
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def slow(connection: Any) -> None:
            await journal_apply.run(connection, steps)
            inside.set()
            await go_on.wait()

        hanging = asyncio.create_task(replica._holding(LEASE, slow))
        await inside.wait()
        claim = asyncio.create_task(
            replica.claim(SUCCESSOR, SOURCE, Phase.DUAL_WRITE, 2, steal=True)
        )
        await until_one_waits(dsn)
        assert not claim.done()
        go_on.set()
        await hanging
        assert (await claim).session == SUCCESSOR.session
        assert (await replica.get("m-1")).revision == 3
        with pytest.raises(FencedError):
            await replica.apply(LEASE, [saved(message("m-1", 4))])


# ------------------------------------------------------------------ faults


async def test_failed_open_can_be_retried() -> None:
    with postgres_process() as process:
        replica = target_on(process.dsn, acquire_timeout=5)
        try:
            process.stop()
            with pytest.raises(CannotOpenError, match="check that it is running"):
                await replica.open()
            with pytest.raises(UnavailableError):
                await replica.inspect()
            process.start()
            await replica.open()
            await replica.open()
            await replica.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
            await replica.apply(LEASE, [saved(message())])
        finally:
            await replica.close()


async def test_postmaster_kill_during_apply_is_consistent() -> None:
    """Stored rows match the recorded position and include all confirmed changes."""
    with postgres_process() as process:
        async with claimed(process.dsn) as replica:
            numbers = itertools.count(1)
            for _ in range(3):
                confirmed, enough = [0], asyncio.Event()
                following = asyncio.create_task(_follow(replica, numbers, confirmed, enough))
                await enough.wait()
                await asyncio.to_thread(process.kill9)
                with pytest.raises(UnavailableError):
                    await following
                process.start()
                record = (await replica.inspect()).record
                assert record is not None
                assert record.applied >= confirmed[0]
                found = await content_of(replica)
                assert {one.revision // 10 for one in found.values()} == {record.applied // 10}


async def _follow(
    replica: PostgreSQLTarget, numbers: Iterator[int], confirmed: list[int], enough: asyncio.Event
) -> None:
    """Apply batches of ten changes repeatedly; ``enough`` is set after some iterations."""
    for turn, number in enumerate(numbers):
        await replica.apply(LEASE, [saved(message(f"m-{n}", number * 10 + n)) for n in range(10)])
        confirmed[0] = number * 10 + 9
        if turn == 30:
            enough.set()
