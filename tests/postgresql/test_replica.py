"""The target of a migration: claiming, leases, faults."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from sagastore_server.analysts import Analysts
from sagastore_server.postgresql import follow
from sagastore_server.postgresql.replica import PostgreSQLReplica
from sagastore_server.postgresql.schema import SCHEMA_VERSION, STEPS
from sagastore_server.storage.errors import (
    CannotOpenError,
    FencedError,
    PreconditionError,
    UnavailableError,
)
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.model import QuarantinedRow
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import BackfillMark, Carried, TargetState
from tests.postgresql.targets import (
    LEASE,
    SOURCE,
    STRANGER,
    SUCCESSOR,
    claimed,
    content_of,
    deleted,
    fetched,
    message,
    opened_plain,
    opened_replica,
    replica_on,
    saved,
    until_one_waits,
)
from tests.sight.ops import free_port
from tests.support.drafts import draft
from tests.support.postgres import execute, postgres_process


@pytest.fixture(params=[100, 0])
def cache(request: pytest.FixtureRequest) -> int:
    """How many statements are kept; 0 is for PgBouncer."""
    size: int = request.param
    return size


# ------------------------------------------------------------------ looking and claiming


async def test_some_that_open_at_once_do_not_close_what_is_the_others(dsn: str) -> None:
    replica = replica_on(dsn)
    try:
        # Who is given up closes what it has opened, while another one opens.
        given_up = asyncio.create_task(replica.open())
        await asyncio.sleep(0)
        others = [asyncio.create_task(replica.open()) for _ in range(3)]
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(*others)
        assert await replica.inspect() == TargetState(0, True, None)
    finally:
        await replica.close()


async def test_some_that_cannot_open_at_once_are_all_told_why() -> None:
    replica = replica_on(f"postgresql://postgres@127.0.0.1:{free_port()}/none")
    outcomes = await asyncio.gather(*[replica.open() for _ in range(3)], return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [CannotOpenError] * 3


async def test_opening_and_looking_change_nothing(dsn: str) -> None:
    async with opened_replica(dsn) as replica:
        assert await replica.inspect() == TargetState(0, True, None)
        health = await replica.health()
        assert (health.healthy, health.messages, health.schema_version) == (True, 0, 0)
        assert (
            await fetched(
                dsn, "SELECT FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
            )
            == []
        )


async def test_a_claim_makes_a_schema_without_the_late_indexes(dsn: str) -> None:
    async with opened_replica(dsn) as replica:
        record = await replica.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
        assert record[:5] == (SOURCE, Phase.DUAL_WRITE, 2, *LEASE)
        assert 5 < record.lease_seconds <= 10
        assert (record.applied, record.backfill) == (0, BackfillMark())
        assert [one.valid for one in await replica.indexes()] == [False] * 5
        found = await replica.inspect()
        assert (found.schema_version, found.empty) == (SCHEMA_VERSION, True)
        assert found.record is not None
        assert found.record[:5] == record[:5]
        assert (await replica.health()).messages == 0


async def test_somebody_elses_tables_are_refused(dsn: str) -> None:
    await execute(dsn, "CREATE TABLE messages (id INTEGER)")
    async with opened_replica(dsn) as replica:
        with pytest.raises(CannotOpenError, match=r"did not make \(messages\)"):
            await replica.inspect()
        with pytest.raises(CannotOpenError, match=r"did not make \(messages\)"):
            await replica.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
    assert await fetched(dsn, "SELECT to_regclass('sagastore_schema')::text") == [(None,)]


async def test_a_newer_schema_is_refused_or_used(dsn: str) -> None:
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
    """Make the schema as the first version did."""
    await execute(dsn, STEPS[0].sql)
    await execute(dsn, "INSERT INTO sagastore_schema VALUES (1, 1)")


async def test_an_older_schema_is_upgraded_with_its_data(dsn: str) -> None:
    await make_version_1(dsn)
    await execute(
        dsn,
        "INSERT INTO messages VALUES ('m-1', 'openai', 'user', 'An old fox', '[\"t\"]', now(), "
        "'{}', 's-1', now(), 7, ' old ', '')",
    )
    await execute(
        dsn, "INSERT INTO files VALUES ('f', 'n', 'p', 't', NULL, NULL, 3, 'u', NULL, NULL)"
    )
    await execute(dsn, "SELECT setval('message_revisions', 7)")
    async with opened_replica(dsn) as replica:
        found = await replica.inspect()
        assert (found.schema_version, found.empty, found.record) == (1, False, None)
        with pytest.raises(PreconditionError, match="holds messages and files already"):
            await replica.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
        assert (await replica.inspect()).schema_version == 1
    async with opened_plain(dsn) as backend:
        assert (await backend.health()).schema_version == 2
        # There was no note of the analysis, so the terms were made anew.
        assert (await backend.get("m-1")).content == "An old fox"
        assert (await backend.save(draft("m-2"))).revision == 8
    assert await fetched(dsn, "SELECT extra FROM files") == [("{}",)]
    rows = await fetched(dsn, "SELECT version, compatible_from FROM sagastore_schema ORDER BY 1")
    assert rows == [(1, 1), (2, 2)]


async def test_an_older_empty_schema_is_claimed(dsn: str) -> None:
    await make_version_1(dsn)
    async with claimed(dsn) as replica:
        assert [one.valid for one in await replica.indexes()] == [False] * 5
        await replica.apply(LEASE, [saved(message())])


async def test_a_target_with_messages_is_refused_and_untouched(dsn: str) -> None:
    async with opened_plain(dsn) as backend, opened_replica(dsn) as replica:
        await backend.save(draft("m-1"))
        with pytest.raises(PreconditionError) as caught:
            await replica.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
        (blocker,) = caught.value.blockers
        assert blocker.reason == "TARGET_NOT_EMPTY"
        assert "holds messages already" in blocker.detail
        assert all(one.valid for one in await replica.indexes())
        await backend.save(draft("m-2"))


async def test_tombstones_of_an_earlier_use_mean_nothing(dsn: str) -> None:
    async with opened_plain(dsn) as backend:
        for _ in range(3):
            await backend.save(draft("m-1"))
            await backend.delete("m-1")
    async with claimed(dsn) as replica:
        await replica.copy(LEASE, [message("m-1", 1)], BackfillMark(BackfillState.RUNNING))
        assert (await replica.get("m-1")).revision == 1


async def test_another_migration_is_refused(dsn: str) -> None:
    async with claimed(dsn) as replica:
        with pytest.raises(PreconditionError) as caught:
            await replica.claim(LEASE, "another source", Phase.DUAL_WRITE, 2)
        assert [one.reason for one in caught.value.blockers] == ["OTHER_MIGRATION"]


async def test_servers_that_claim_together_make_one_record(dsn: str) -> None:
    async with opened_replica(dsn) as one, opened_replica(dsn) as other:
        results = await asyncio.gather(
            one.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2),
            other.claim(STRANGER, SOURCE, Phase.DUAL_WRITE, 2),
            return_exceptions=True,
        )
        (refusal,) = [result for result in results if isinstance(result, BaseException)]
        assert isinstance(refusal, PreconditionError)
        assert refusal.blockers[0].reason == "LEASE_HELD"


# ------------------------------------------------------------------ leases


async def test_a_lease_keeps_others_out_until_it_is_over(dsn: str) -> None:
    async with claimed(dsn) as replica:
        with pytest.raises(
            PreconditionError, match=r"server on here .* for another (9|10) s"
        ) as caught:
            await replica.claim(STRANGER, SOURCE, Phase.DUAL_WRITE, 2)
        assert caught.value.blockers[0].reason == "LEASE_HELD"
        with pytest.raises(PreconditionError, match="server on here"):
            await replica.claim(STRANGER, SOURCE, Phase.DUAL_WRITE, 2, steal=True)
        await _expire(dsn)
        record = await replica.claim(STRANGER, SOURCE, Phase.DUAL_WRITE, 2)
        assert (record.holder, record.session) == STRANGER
        with pytest.raises(FencedError):
            await replica.renew(LEASE)


async def _expire(dsn: str) -> None:
    await execute(dsn, "UPDATE migration SET lease_until = now() - interval '1 second'")


async def test_a_lease_that_ran_out_is_still_held_while_nobody_takes_it(dsn: str) -> None:
    async with claimed(dsn) as replica:
        await _expire(dsn)
        assert (await replica.inspect()).record.lease_seconds < 0  # type: ignore[union-attr]
        assert (await replica.renew(LEASE)).lease_seconds > 5


async def test_a_successor_of_the_same_name_takes_over_at_once(dsn: str) -> None:
    async with claimed(dsn) as replica:
        with pytest.raises(PreconditionError, match="server on here"):
            await replica.claim(SUCCESSOR, SOURCE, Phase.DUAL_WRITE, 2)
        record = await replica.claim(SUCCESSOR, SOURCE, Phase.BACKFILL, 3, steal=True)
        # What the record says of the phase is changed by set_phase alone.
        assert (record.session, record.phase, record.epoch) == ("session-2", Phase.DUAL_WRITE, 2)


async def test_a_lease_that_was_released_is_free(dsn: str) -> None:
    async with claimed(dsn) as replica:
        await replica.release(STRANGER)
        await replica.renew(LEASE)
        await replica.release(LEASE)
        await replica.release(LEASE)
        with pytest.raises(FencedError):
            await replica.renew(LEASE)
        await replica.claim(STRANGER, SOURCE, Phase.DUAL_WRITE, 2)


async def test_a_stale_holder_changes_nothing(dsn: str, cache: int) -> None:
    async with claimed(dsn, statement_cache=cache) as replica:
        await replica.apply(LEASE, [saved(message("m-1", 3))])
        await replica.claim(SUCCESSOR, SOURCE, Phase.DUAL_WRITE, 2, steal=True)
        before = (await replica.inspect()).record
        mark = BackfillMark(BackfillState.DONE, True, "z", "z", 9, 9)
        row = QuarantinedRow(1, "messages/rowid=1", "because", "id", b"{}")
        for attempt in (
            lambda: replica.apply(LEASE, [saved(message("m-1", 9))]),
            lambda: replica.apply(LEASE, [deleted("m-1", 9)]),
            lambda: replica.copy(LEASE, [message("m-2", 1)], mark),
            lambda: replica.carry(LEASE, Carried(quarantine=[row]), first=True),
            lambda: replica.set_phase(LEASE, Phase.BACKFILL, 3, 100),
            lambda: replica.renew(LEASE),
            lambda: replica.finish(LEASE, 5, 1000),
        ):
            with pytest.raises(FencedError, match="taken over"):
                await attempt()
        after = (await replica.inspect()).record
        assert before is not None
        assert after is not None
        assert before._replace(lease_seconds=0) == after._replace(lease_seconds=0)
        assert await content_of(replica) == {"m-1": message("m-1", 3)}
        assert await replica.quarantine_count() == 0


async def test_a_transaction_that_hangs_is_not_overtaken(dsn: str) -> None:
    """The former holder is in the middle of it when a successor claims."""
    async with claimed(dsn) as replica:
        steps = await follow.steps_of([saved(message("m-1", 3))], Analysts())
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def slow(connection: Any) -> None:
            await follow.run(connection, steps)
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


# ------------------------------------------------------------------ what hurts


async def test_opening_may_be_tried_again() -> None:
    with postgres_process() as process:
        replica = replica_on(process.dsn, acquire_timeout=5)
        try:
            process.stop()
            with pytest.raises(CannotOpenError, match="is it running"):
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


async def test_a_postmaster_killed_while_entries_are_applied() -> None:
    """What is there is what was noted, batch by batch, and all that was confirmed."""
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
    replica: PostgreSQLReplica, numbers: Iterator[int], confirmed: list[int], enough: asyncio.Event
) -> None:
    """Change ten messages at a time, on and on; ``enough`` is set after some turns."""
    for turn, number in enumerate(numbers):
        await replica.apply(LEASE, [saved(message(f"m-{n}", number * 10 + n)) for n in range(10)])
        confirmed[0] = number * 10 + 9
        if turn == 30:
            enough.set()
