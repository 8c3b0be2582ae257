"""Claims of a target: leases, fencing, and the end of a migration."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from sagastore_server.storage.errors import (
    FencedError,
    NotFoundError,
    PreconditionError,
    TargetSetBackError,
    UnavailableError,
)
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.model import OnConflict, QuarantinedRow
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    AuxiliaryRows,
    BackfillMark,
    IndexState,
    Lease,
    MigrationTarget,
    TargetState,
)
from tests.support.drafts import draft
from tests.support.migration_backends import TargetPlace, opened
from tests.support.migration_values import (
    LEASE,
    MARK,
    OTHER_LEASE,
    SOURCE,
    SUCCESSOR,
    content_of,
    deleted,
    finish,
    message,
    record_of,
    saved,
)

ROW = QuarantinedRow(1, "messages/rowid=1", "because", "id", b"{}")


async def _refused(target: MigrationTarget, lease: Lease, source: str = SOURCE) -> str:
    """Return the single reason why a claim is refused."""
    with pytest.raises(PreconditionError) as caught:
        await target.claim(lease, source, Phase.DUAL_WRITE, 2)
    (blocker,) = caught.value.blockers
    assert blocker.detail
    return blocker.reason


# ------------------------------------------------------------------ looking and claiming


async def test_opening_and_inspecting_change_nothing(target_place: TargetPlace) -> None:
    for _ in range(2):
        async with opened(target_place.make()) as target:
            await target.open()
            assert await target.inspect() == TargetState(0, True, None)
            health = await target.health()
            assert (health.healthy, health.messages, health.schema_version) == (True, 0, 0)
            assert target.place


async def test_claim_creates_schema_without_late_indexes(target_place: TargetPlace) -> None:
    async with opened(target_place.make()) as target:
        record = await target.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
        assert record[:5] == (SOURCE, Phase.DUAL_WRITE, 2, *LEASE)
        assert 5 < record.lease_seconds <= 10
        assert (record.applied, record.backfill) == (0, BackfillMark())
        indexes = await target.indexes()
        assert indexes
        assert not any(one.valid for one in indexes)
        found = await target.inspect()
        assert found.schema_version > 0
        assert found.empty
        assert found.record is not None
        assert found.record[:5] == record[:5]
        health = await target.health()
        assert (health.messages, health.schema_version) == (0, found.schema_version)


async def test_claim_by_the_holder_keeps_the_record(target: MigrationTarget) -> None:
    await target.set_phase(LEASE, Phase.BACKFILL, 3, 40)
    await target.copy(LEASE, [message()], MARK)
    record = await target.claim(LEASE, SOURCE, Phase.READ_POSTGRES, 9)
    assert record[:3] == (SOURCE, Phase.BACKFILL, 3)
    assert (record.applied, record.backfill) == (40, MARK)
    assert await content_of(target) == {"m-1": message()}


@pytest.mark.parametrize("stored", [True, False])
async def test_database_with_content_is_refused(target_place: TargetPlace, stored: bool) -> None:
    """Tombstones do not count as content; the next migration ignores them."""
    await target_place.use_before(["m-1"] if stored else [], ["m-2"])
    async with opened(target_place.make()) as target:
        before = await target.inspect()
        assert (before.empty, before.record) == (not stored, None)
        assert all(one.valid for one in await target.indexes())
        if stored:
            assert await _refused(target, LEASE) == "TARGET_NOT_EMPTY"
            assert await target.inspect() == before
            assert all(one.valid for one in await target.indexes())
        else:
            await target.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
            await target.copy(LEASE, [message("m-2", 1)], MARK)
            assert (await target.get("m-2")).revision == 1
            assert not any(one.valid for one in await target.indexes())


async def test_other_migration_is_refused(target: MigrationTarget) -> None:
    before = await record_of(target)
    assert await _refused(target, LEASE, "another source") == "OTHER_MIGRATION"
    await target.release(LEASE)
    assert await _refused(target, OTHER_LEASE, "another source") == "OTHER_MIGRATION"
    assert (await record_of(target)).source == before.source


async def test_concurrent_claims_create_one_record(target_place: TargetPlace) -> None:
    async with opened(target_place.make()) as one, opened(target_place.make()) as other:
        results = await asyncio.gather(
            one.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2),
            other.claim(OTHER_LEASE, SOURCE, Phase.DUAL_WRITE, 2),
            return_exceptions=True,
        )
        (refusal,) = [result for result in results if isinstance(result, BaseException)]
        assert isinstance(refusal, PreconditionError)
        assert refusal.blockers[0].reason == "LEASE_HELD"


# ------------------------------------------------------------------ leases


async def test_lease_blocks_others_until_it_expires(
    target_place: TargetPlace, target: MigrationTarget
) -> None:
    assert await _refused(target, OTHER_LEASE) == "LEASE_HELD"
    with pytest.raises(PreconditionError, match=r"server on here .* for another (9|10) s"):
        await target.claim(OTHER_LEASE, SOURCE, Phase.DUAL_WRITE, 2, steal=True)
    await target_place.expire_lease()
    record = await target.claim(OTHER_LEASE, SOURCE, Phase.DUAL_WRITE, 2)
    assert (record.holder, record.session) == OTHER_LEASE
    with pytest.raises(FencedError):
        await target.renew(LEASE)


async def test_expired_lease_is_kept_until_taken(
    target_place: TargetPlace, target: MigrationTarget
) -> None:
    await target_place.expire_lease()
    assert (await record_of(target)).lease_seconds < 0
    assert (await target.renew(LEASE)).lease_seconds > 5
    assert (await record_of(target)).lease_seconds > 5
    assert await _refused(target, OTHER_LEASE) == "LEASE_HELD"


async def test_writing_extends_the_lease(
    target_place: TargetPlace, target: MigrationTarget
) -> None:
    await target_place.expire_lease()
    await target.apply(LEASE, [saved(message())])
    assert (await record_of(target)).lease_seconds > 5


async def test_successor_of_the_same_name_takes_over_at_once(target: MigrationTarget) -> None:
    assert await _refused(target, SUCCESSOR) == "LEASE_HELD"
    record = await target.claim(SUCCESSOR, SOURCE, Phase.BACKFILL, 3, steal=True)
    # What the record says of the phase is changed by set_phase alone.
    assert (record.session, record.phase, record.epoch) == ("session-2", Phase.DUAL_WRITE, 2)


async def test_released_lease_is_free(target: MigrationTarget) -> None:
    await target.release(OTHER_LEASE)
    await target.renew(LEASE)
    await target.release(LEASE)
    await target.release(LEASE)
    record = await record_of(target)
    # The name of the last holder stays.
    assert (record.holder, record.session) == (LEASE.holder, "")
    assert record.lease_seconds <= 0
    with pytest.raises(FencedError):
        await target.renew(LEASE)
    await target.claim(OTHER_LEASE, SOURCE, Phase.DUAL_WRITE, 2)


# ------------------------------------------------------------------ fencing

WRITES: dict[str, Callable[[MigrationTarget, Lease], Awaitable[object]]] = {
    "apply": lambda target, lease: target.apply(lease, [saved(message("m-1", 9))]),
    "apply a deletion": lambda target, lease: target.apply(lease, [deleted("m-1", 9)]),
    # The lease is looked at first.
    "apply elsewhere": lambda target, lease: target.apply(lease, [deleted("m-1", 9)], 77),
    "copy": lambda target, lease: target.copy(lease, [message("m-2", 1)], MARK),
    "copy elsewhere": lambda target, lease: target.copy(lease, [message("m-2")], MARK, MARK),
    "carry": lambda target, lease: target.carry(
        lease, AuxiliaryRows(quarantine=[ROW]), MARK, first=True
    ),
    "set_phase": lambda target, lease: target.set_phase(lease, Phase.BACKFILL, 3, 100),
    "renew": lambda target, lease: target.renew(lease),
    "finish": lambda target, lease: target.finish(lease, 5, 1000),
}


@pytest.mark.parametrize("name", WRITES)
async def test_stale_holder_changes_nothing(target: MigrationTarget, name: str) -> None:
    await target.apply(LEASE, [saved(message("m-1", 3))])
    await target.claim(SUCCESSOR, SOURCE, Phase.DUAL_WRITE, 2, steal=True)
    before = await record_of(target)
    for lease in (LEASE, OTHER_LEASE, Lease("", ""), Lease(SUCCESSOR.holder, "")):
        with pytest.raises(FencedError):
            await WRITES[name](target, lease)
    after = await record_of(target)
    assert before._replace(lease_seconds=0) == after._replace(lease_seconds=0)
    assert await content_of(target) == {"m-1": message("m-1", 3)}
    assert await target.quarantine_count() == 0


async def test_released_target_accepts_no_writes(target: MigrationTarget) -> None:
    await target.release(LEASE)
    for lease in (LEASE, Lease("", "")):
        with pytest.raises(FencedError):
            await target.apply(lease, [saved(message())])


async def test_only_lease_holder_writes_until_finish(
    target_place: TargetPlace, target: MigrationTarget
) -> None:
    await target.apply(LEASE, [saved(message("m-1", 1))])
    async with opened(target_place.make()) as other:
        for store in (target, other):
            for write in (
                store.save(draft("m-2")),
                store.save(draft("m-1", "changed")),
                store.delete("m-1"),
                store.bulk_save([draft(f"m-{n}") for n in range(300)], OnConflict.REPLACE),
            ):
                with pytest.raises(FencedError):
                    await write
        assert await content_of(other) == {"m-1": message("m-1", 1)}
        await target.release(LEASE)
        with pytest.raises(FencedError):
            await other.save(draft("m-2"))


# ------------------------------------------------------------------ compare-and-set


async def test_apply_compares_the_position(target: MigrationTarget) -> None:
    await target.apply(LEASE, [saved(message("m-1", 3))], 0)
    before = await record_of(target)
    for after in (0, 2, 4):
        with pytest.raises(TargetSetBackError):
            await target.apply(LEASE, [saved(message("m-1", 5)), deleted("m-2", 6)], after)
    assert (await record_of(target)).applied == before.applied == 3
    assert await content_of(target) == {"m-1": message("m-1", 3)}
    await target.apply(LEASE, [saved(message("m-1", 5))], 3)
    await target.apply(LEASE, [saved(message("m-1", 5))])
    assert (await record_of(target)).applied == 5
    # Entries that were applied before leave the position where it is.
    await target.apply(LEASE, [saved(message("m-1", 3))], 5)
    assert (await record_of(target)).applied == 5


async def test_copy_compares_the_mark(target: MigrationTarget) -> None:
    first = BackfillMark(BackfillState.RUNNING, True, "a", "z", 1, 9)
    second = first._replace(cursor="b", copied=2)
    assert await target.copy(LEASE, [message("a")], first, BackfillMark()) == first
    for before in (BackfillMark(), second, first._replace(total=8)):
        with pytest.raises(TargetSetBackError):
            await target.copy(LEASE, [message("b")], second, before)
    assert (await record_of(target)).backfill == first
    assert list(await content_of(target)) == ["a"]
    prepared = await target.prepare([message("b")])
    assert await target.copy(LEASE, prepared, second, first) == second
    assert await target.copy(LEASE, [], first) == first
    assert (await record_of(target)).backfill == first
    assert list(await content_of(target)) == ["a", "b"]


async def test_copy_compares_the_least_position(target: MigrationTarget) -> None:
    await target.apply(LEASE, [saved(message("m-1", 3))])
    before = (await record_of(target)).backfill
    with pytest.raises(TargetSetBackError):
        await target.copy(LEASE, [message("a")], MARK, before, least=4)
    assert (await record_of(target)).backfill == before
    assert list(await content_of(target)) == ["m-1"]
    for least in (3, 2):
        assert await target.copy(LEASE, [message("a")], MARK, least=least) == MARK


# ------------------------------------------------------------------ phases and the end


async def test_set_phase_raises_the_position(target: MigrationTarget) -> None:
    record = await target.set_phase(LEASE, Phase.BACKFILL, 3, 50)
    assert (record.phase, record.epoch, record.applied) == (Phase.BACKFILL, 3, 50)
    assert (await target.set_phase(LEASE, Phase.READ_POSTGRES, 4, 20)).applied == 50
    found = await record_of(target)
    assert (found.phase, found.epoch, found.applied) == (Phase.READ_POSTGRES, 4, 50)


async def test_finish_allows_other_writers(
    target_place: TargetPlace, target: MigrationTarget
) -> None:
    await target.carry(LEASE, AuxiliaryRows(quarantine=[ROW]), MARK, first=True)
    await target.apply(LEASE, [saved(message("m-1", 500)), deleted("m-2", 501)])
    async with opened(target_place.make()) as other:
        await finish(target, 777)
        record = await record_of(other)
        assert record[:5] == (SOURCE, Phase.POSTGRES_ONLY, 5, "", "")
        first = (await other.save(draft("m-2"))).revision
        second = (await target.save(draft("m-1", "changed"))).revision
        assert 777 < first < second
        assert [(await target.get(key)).sequence for key in ("m-2", "m-1")] == [first, 500]
        await other.delete("m-1")
        with pytest.raises(NotFoundError):
            await target.get("m-1")
        assert await target.quarantine(0, 10) == [ROW]
    for write in WRITES.values():
        with pytest.raises(FencedError):
            await write(target, LEASE)
    assert await _refused(target, LEASE) == "MIGRATION_FINISHED"


async def test_revisions_after_finish_exceed_earlier_ones(
    target_place: TargetPlace,
) -> None:
    await target_place.use_before([], ["a", "b", "c"])
    earlier = max((await target_place.tombstones()).values())
    async with target_place.claimed() as target:
        await finish(target, 2)
        first = await target.save(draft("d"))
        assert first.revision > earlier > 2


async def test_everything_survives_reopening(target_place: TargetPlace) -> None:
    async with target_place.claimed() as target:
        await target.apply(LEASE, [saved(message("m-1", 3)), deleted("m-2", 4)])
        await target.copy(LEASE, [message("m-3", 1)], MARK)
        await target.carry(LEASE, AuxiliaryRows(quarantine=[ROW]), MARK, first=True)
        name = (await target.indexes())[0].name
        await target.build_index(name, lambda share: None)
        before = await record_of(target)
        content, carried = await content_of(target), await target.carried()
    async with opened(target_place.make()) as target:
        found = await record_of(target)
        assert found._replace(lease_seconds=0) == before._replace(lease_seconds=0)
        assert (await content_of(target), await target.carried()) == (content, carried)
        assert await target_place.tombstones() == {"m-2": 4}
        assert (await target.indexes())[0] == IndexState(name, True)
        await target.renew(LEASE)
        await finish(target)
    async with opened(target_place.make()) as target:
        assert (await record_of(target)).phase is Phase.POSTGRES_ONLY
        assert await content_of(target) == content
        await target.save(draft("m-4"))


# ------------------------------------------------------------------ lost connections


async def _read_at_last(target: MigrationTarget) -> int:
    """Return a revision from the first live connection; each lost one may cost a retry."""
    for _ in range(10):
        with contextlib.suppress(UnavailableError):
            return (await target.get("m-1")).revision
    raise AssertionError("no new connection is made")


async def test_connection_loss_is_reported_before_next_answer(
    target_place: TargetPlace, target: MigrationTarget
) -> None:
    heard: list[str] = []
    target.on_connection_loss(lambda: heard.append("first"))
    target.on_connection_loss(lambda: heard.append("second"))
    await target.apply(LEASE, [saved(message("m-1", 3))])
    await target.get("m-1")
    assert heard == []
    for turn in (1, 2):
        await target_place.cut()
        assert await _read_at_last(target) == 3
        assert heard.count("first") == heard.count("second") >= turn


# ------------------------------------------------------------------ closed


def _with_lease(
    write: Callable[[MigrationTarget, Lease], Awaitable[object]], target: MigrationTarget
) -> Awaitable[object]:
    return write(target, LEASE)


CALLS: dict[str, Callable[[MigrationTarget], Awaitable[object]]] = {
    "inspect": lambda target: target.inspect(),
    "claim": lambda target: target.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2),
    "release": lambda target: target.release(LEASE),
    "count": lambda target: target.count(),
    "carried": lambda target: target.carried(),
    "indexes": lambda target: target.indexes(),
    "refresh_statistics": lambda target: target.refresh_statistics(),
    **{name: partial(_with_lease, write) for name, write in WRITES.items()},
}


@pytest.mark.parametrize("name", CALLS)
async def test_closed_target_is_unavailable(target_place: TargetPlace, name: str) -> None:
    with pytest.raises(UnavailableError):
        await CALLS[name](target_place.make())
    async with target_place.claimed() as target:
        pass
    with pytest.raises(UnavailableError):
        await CALLS[name](target)
    assert not (await target.health()).healthy


async def test_target_that_was_set_back_cannot_finish(
    target: MigrationTarget,
) -> None:
    await target.apply(LEASE, [saved(message("a", revision=3))])
    for after, before in ((2, None), (3, BackfillMark(BackfillState.DONE))):
        with pytest.raises(TargetSetBackError):
            await target.finish(LEASE, 5, 3, after, before)
    assert (await record_of(target)).phase is not Phase.POSTGRES_ONLY
    await target.finish(LEASE, 5, 3, 3, (await record_of(target)).backfill)
    assert (await record_of(target)).phase is Phase.POSTGRES_ONLY
