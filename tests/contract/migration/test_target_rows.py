"""Rows from the journal, the backfill and repairs converge to the source's contents."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.search.parser import parse_query
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.model import Message
from sagastore_server.storage.query import Criteria
from sagastore_server.storage.replication import AuxiliaryRows, Entry, MigrationTarget
from tests.support import strategies
from tests.support.drafts import NOW, found
from tests.support.migration_backends import TARGETS, TargetPlace
from tests.support.migration_values import (
    EXTRAS,
    LEASE,
    MARK,
    QUARANTINED,
    content_of,
    deleted,
    message,
    record_of,
    saved,
    tally,
)

IDS = ["a", "\U0001f600"]
"""Few, so that much happens to each."""

assert strategies.QUICK in {True, False}  # The profile is loaded.


async def _applied(target: MigrationTarget) -> int:
    return (await record_of(target)).applied


# ------------------------------------------------------------------ the journal


async def test_entries_are_applied_and_recorded(
    target_place: TargetPlace, target: MigrationTarget
) -> None:
    one = message("m-1", 3, "running quickly", tags=("x", "y"), metadata='{"a": [1]}')
    bare = message("m-2", 4, session_id=None, created_at=None, timestamp=-5)
    await target.apply(LEASE, [saved(one), saved(bare), deleted("m-3", 5)])
    assert await content_of(target) == {"m-1": one, "m-2": bare}
    assert await target_place.tombstones() == {"m-3": 5}
    assert await _applied(target) == 5
    assert await found(target, Criteria(parse_query("run"))) == ["m-1"]
    assert await found(target, Criteria(tags=("y",), metadata='{"a": [1]}')) == ["m-1"]
    await target.apply(LEASE, [])
    await target.apply(LEASE, [deleted("m-1", 6), saved(message("m-2", 7, "other"), buried=2)])
    assert await content_of(target) == {"m-2": message("m-2", 7, "other")}
    assert await target_place.tombstones() == {"m-1": 6, "m-2": 2, "m-3": 5}
    assert await _applied(target) == 7


async def test_last_entry_of_an_id_wins(target: MigrationTarget) -> None:
    entries = [
        saved(message("m-1", 9), sequence=3, forced=True),
        saved(message("m-1", 9), sequence=6),
        deleted("m-2", 8, sequence=4),
        deleted("m-2", 8),
        saved(message("m-1", 9)),
    ]
    await target.apply(LEASE, entries)
    assert await content_of(target) == {"m-1": message("m-1", 9)}
    assert await _applied(target) == 9


async def test_older_values_change_nothing(
    target_place: TargetPlace, target: MigrationTarget
) -> None:
    await target.apply(LEASE, [saved(message("m-1", 10, "new")), deleted("m-2", 11)])
    await target.apply(LEASE, [saved(message("m-1", 9, "old")), saved(message("m-2", 10))])
    await target.copy(LEASE, [message("m-1", 9, "old")], MARK)
    await target.apply(LEASE, [deleted("m-1", 8)])
    await target.apply(LEASE, [deleted("m-1", 7), deleted("m-2", 4)])
    await target.copy(LEASE, [message("m-1", 3, "old"), message("m-2", 4)], MARK)
    assert await content_of(target) == {"m-1": message("m-1", 10, "new")}
    assert await target_place.tombstones() == {"m-1": 8, "m-2": 11}
    assert await _applied(target) == 11


async def test_newer_values_replace_older_ones(
    target_place: TargetPlace, target: MigrationTarget
) -> None:
    await target.apply(LEASE, [saved(message("m-1", 2, "old")), deleted("m-2", 3)])
    await target.copy(LEASE, [message("m-1", 4, "copied"), message("m-2", 5)], MARK)
    assert await content_of(target) == {
        "m-1": message("m-1", 4, "copied"),
        "m-2": message("m-2", 5),
    }
    await target.apply(LEASE, [deleted("m-1", 6), saved(message("m-2", 7, "new"))])
    assert await content_of(target) == {"m-2": message("m-2", 7, "new")}
    assert await target_place.tombstones() == {"m-1": 6, "m-2": 3}


async def test_cancelled_apply_is_atomic(target: MigrationTarget) -> None:
    for turn in range(1, 60):
        batch = [saved(message(f"m-{n}", turn * 50 + n)) for n in range(50)]
        task = asyncio.create_task(target.apply(LEASE, batch))
        for _ in range(turn % 20):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        stored = await content_of(target)
        last = await _applied(target)
        assert {one.revision // 50 for one in stored.values()} <= {last // 50}
        assert len(stored) in {0, 50}


async def test_messages_are_counted_exactly(target: MigrationTarget) -> None:
    for number in range(1, 4):
        await target.apply(LEASE, [saved(message(f"m-{number}", number))])
        assert await target.count() == number


# ------------------------------------------------------------------ the backfill


async def test_large_batch_is_copied_with_its_mark(target: MigrationTarget) -> None:
    rows = [message(f"m-{n:04}", n + 1, f"word{n} running") for n in range(1000)]
    await target.apply(LEASE, [saved(message("m-0007", 2000, "newer")), deleted("m-0008", 2001)])
    await target.apply(LEASE, [saved(rows[9]._replace(revision=1, content="older"))])
    assert await target.copy(LEASE, rows, MARK) == MARK
    assert (await record_of(target)).backfill == MARK
    expected = {one.id: one for one in rows} | {"m-0007": message("m-0007", 2000, "newer")}
    del expected["m-0008"]
    assert await content_of(target) == expected
    assert await found(target, "word999") == ["m-0999"]
    done = MARK._replace(state=BackfillState.DONE)
    assert await target.copy(LEASE, [], done) == done
    assert await target.copy(LEASE, rows, done) == done
    assert await content_of(target) == expected
    assert await _applied(target) == 2001


async def test_newest_row_of_an_id_is_copied(target: MigrationTarget) -> None:
    rows = [message("m", 2, "middle"), message("m", 3, "new"), message("m", 1, "old")]
    await target.copy(LEASE, rows, MARK)
    assert (await target.get("m")).content == "new"


async def test_prepared_rows_are_guarded_when_they_are_copied(target: MigrationTarget) -> None:
    prepared = await target.prepare([message("m-1", 2, "old"), message("m-2", 3)])
    await target.apply(LEASE, [saved(message("m-1", 4, "new")), deleted("m-2", 5)])
    await target.copy(LEASE, prepared, MARK)
    assert await content_of(target) == {"m-1": message("m-1", 4, "new")}


# ------------------------------------------------------------------ any order


class Source:
    """Minimal store with a journal."""

    def __init__(self, before: Sequence[str]) -> None:
        self.state: dict[str, Message] = {}
        self.buried: dict[str, int] = {}
        self.journal: list[str] = []
        self.revision = 0
        for key in before:
            self.save(key)
        self.base = self.revision
        self.journal.clear()
        self.batches: list[list[Entry]] = []
        self.copies: list[list[Message]] = []

    def save(self, key: str) -> None:
        self.revision += 1
        self.state[key] = message(key, self.revision, f"text of {key} at {self.revision}")
        self.journal.append(key)

    def delete(self, key: str) -> None:
        if self.state.pop(key, None) is not None:
            self.revision += 1
            self.buried[key] = self.revision
            self.journal.append(key)

    def entries(self, start: int, size: int) -> list[Entry]:
        """Return entries with their current rows."""
        numbered = list(enumerate(self.journal, self.base + 1))[start : start + size]
        return [self.entry(key, sequence) for sequence, key in numbered]

    def entry(self, key: str, sequence: int, *, forced: bool = False) -> Entry:
        stored, buried = self.state.get(key), self.buried.get(key, 0)
        return Entry(sequence, key, stored, buried, forced, NOW)


keys = st.sampled_from(IDS)
numbers = st.integers(0, 30)
steps = st.one_of(
    st.tuples(st.just("save"), keys),
    st.tuples(st.just("save"), keys),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("read"), numbers, st.integers(1, 20)),
    st.tuples(st.just("apply"), numbers),
    st.tuples(st.just("apply"), numbers),
    st.tuples(st.just("scan"), st.lists(keys, unique=True)),
    st.tuples(st.just("copy"), numbers),
    st.tuples(st.just("repair"), keys),
)


async def _step(target: MigrationTarget, source: Source, step: tuple[Any, ...]) -> None:
    match step:
        case ("save", key):
            source.save(key)
        case ("delete", key):
            source.delete(key)
        case ("read", start, size):
            source.batches.append(source.entries(start % (len(source.journal) + 1), size))
        case ("apply", which) if source.batches:
            await target.apply(LEASE, source.batches[which % len(source.batches)])
        case ("scan", chosen):
            stored = [source.state[key] for key in sorted(chosen) if key in source.state]
            source.copies.append(stored)
        case ("copy", which) if source.copies:
            await target.copy(LEASE, source.copies[which % len(source.copies)], MARK)
        case ("repair", key):
            # As in the journal: applied at its place, with what is there then.
            source.journal.append(key)
            source.revision += 1
            await target.apply(LEASE, [source.entry(key, source.revision, forced=True)])


async def _known(place: TargetPlace, target: MigrationTarget) -> dict[str, int]:
    """Return the revision up to which the target knows each id."""
    known = await place.tombstones()
    for one in (await content_of(target)).values():
        known[one.id] = max(one.revision, known.get(one.id, 0))
    return known


@pytest.mark.parametrize("kind", ["model", "postgresql"])
@given(before=st.lists(keys, max_size=4), plan=st.lists(steps, max_size=25))
async def test_stale_rows_never_return_in_any_order(
    kind: str, before: list[str], plan: list[tuple[Any, ...]]
) -> None:
    """Batches are read at one time and applied at another, repeatedly and out of order."""
    async with TARGETS[kind]() as place, place.claimed() as target:
        source = Source(before)
        rows = list(source.state.values())
        known: dict[str, int] = {}
        for step in plan:
            await _step(target, source, step)
            after = await _known(place, target)
            assert all(after.get(key, 0) >= revision for key, revision in known.items()), step
            known = after
        await target.apply(LEASE, source.entries(0, len(source.journal)))
        assert {**await content_of(target), **_unjournalled(source)} == source.state
        await target.copy(LEASE, rows, MARK)
        for batch in source.batches:
            await target.apply(LEASE, batch)
        assert await content_of(target) == source.state
        assert await _applied(target) == (source.revision if source.journal else 0)


def _unjournalled(source: Source) -> dict[str, Message]:
    return {key: one for key, one in source.state.items() if one.revision <= source.base}


# ------------------------------------------------------------------ repairs

WRONG = {
    "missing": [],
    "same revision, different content": [saved(message("m-1", 5, "changed"))],
    "greater revision": [saved(message("m-1", 99, "x"))],
    "missing, with a tombstone": [deleted("m-1", 99)],
}


@pytest.mark.parametrize("kind", WRONG)
async def test_forced_entry_restores_message(
    target_place: TargetPlace, target: MigrationTarget, kind: str
) -> None:
    wanted = message("m-1", 5)
    await target.apply(LEASE, [*WRONG[kind], saved(message("m-2", 6))])
    if WRONG[kind]:
        await target.apply(LEASE, [saved(wanted, sequence=7)])
        assert (await content_of(target)).get("m-1") != wanted
    await target.apply(LEASE, [saved(wanted, sequence=8, forced=True)])
    assert await content_of(target) == {"m-1": wanted, "m-2": message("m-2", 6)}
    assert await target_place.tombstones() == {}
    assert await found(target, "fox") == ["m-1", "m-2"]


@pytest.mark.parametrize("buried", [0, 3])
async def test_forced_entry_removes_extra_message(
    target_place: TargetPlace, target: MigrationTarget, buried: int
) -> None:
    await target.apply(LEASE, [saved(message("m-2", 2)), saved(message("extra", 99))])
    await target.apply(LEASE, [Entry(100, "extra", None, buried, True, NOW)])
    assert list(await content_of(target)) == ["m-2"]
    assert await target_place.tombstones() == ({"extra": 3} if buried else {})


# ------------------------------------------------------------------ what is carried along


async def test_auxiliary_rows_have_digest_of_source(target: MigrationTarget) -> None:
    rows = AuxiliaryRows(QUARANTINED, EXTRAS)
    assert await target.carried() == tally(AuxiliaryRows())
    await target.carry(LEASE, AuxiliaryRows(), MARK, first=True)
    await target.carry(LEASE, rows, MARK, first=False)
    await target.carry(LEASE, rows, MARK, first=False)
    assert await target.carried() == tally(rows)
    assert await target.quarantine(0, 10) == sorted(QUARANTINED)
    assert await target.quarantine(3, 10) == [QUARANTINED[0]]
    assert await target.quarantine_count() == 2
    fewer = AuxiliaryRows(QUARANTINED[1:], [EXTRAS[0]._replace(value="{}")])
    await target.carry(LEASE, fewer, MARK, first=True)
    assert await target.carried() == tally(fewer)
    # The source gave the row another number.
    renumbered = AuxiliaryRows([QUARANTINED[1]._replace(number=4)])
    await target.carry(LEASE, renumbered, MARK, first=False)
    assert await target.quarantine(0, 10) == renumbered.quarantine


async def test_auxiliary_rows_count_as_content(target: MigrationTarget) -> None:
    assert (await target.inspect()).empty
    await target.carry(LEASE, AuxiliaryRows(extras=EXTRAS), MARK, first=True)
    assert (await target.inspect()).empty
    await target.carry(LEASE, AuxiliaryRows(QUARANTINED), MARK, first=True)
    assert not (await target.inspect()).empty


# ------------------------------------------------------------------ indexes


async def test_late_indexes_are_built_sequentially(target: MigrationTarget) -> None:
    await target.copy(LEASE, [message(f"m-{n:03}", n + 1) for n in range(100)], MARK)
    names = [one.name for one in await target.indexes()]
    for number, name in enumerate(names, 1):
        shares: list[float] = []
        await target.build_index(name, shares.append)
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        states = await target.indexes()
        assert [one.name for one in states] == names
        assert [one.valid for one in states] == [True] * number + [False] * (len(names) - number)
    await target.build_index(names[0], lambda share: None)
    assert all(one.valid for one in await target.indexes())
    await target.refresh_statistics()


async def test_unknown_index_is_not_built(target: MigrationTarget) -> None:
    with pytest.raises(KeyError):
        await target.build_index("messages_pkey", lambda share: None)
