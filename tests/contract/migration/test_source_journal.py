"""Journal of a source: contains every change in order, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.model import OnConflict
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    Entry,
    JournalStatus,
    MigrationSource,
    MigrationState,
)
from tests.support.drafts import lone
from tests.support.migration_backends import SourcePlace, now, opened

DUAL_WRITE = MigrationState(Phase.DUAL_WRITE, epoch=2)
SQLITE_ONLY = MigrationState(Phase.SQLITE_ONLY, epoch=3)
MIB = 1024 * 1024


async def _told(source: MigrationSource, after: int = 0) -> list[tuple[int, str, bool]]:
    """Return sequence, id and forced flag of every entry."""
    return [(one.sequence, one.id, one.forced) for one in await source.journal(after, 10_000)]


async def _waiting(source: MigrationSource) -> tuple[int, int]:
    """Return the number of entries and the pruned position."""
    status = await source.journal_status(0)
    return status.rows, status.pruned


# ------------------------------------------------------------------ on and off


@pytest.mark.parametrize("phase", [one for one in Phase if one.writes_sqlite])
async def test_changes_are_journalled_by_phase(source: MigrationSource, phase: Phase) -> None:
    await source.set_state(MigrationState(phase, epoch=4))
    await source.save(lone("a"))
    await source.bulk_save([lone("b"), lone("a", "other")], OnConflict.REPLACE)
    await source.delete("b")
    found = await _told(source)
    if phase.journals:
        assert [key for _, key, _ in found][-1] == "b"
        assert {key for _, key, _ in found} == {"a", "b"}
    else:
        assert found == []


async def test_leaving_and_entering_dual_write(source_place: SourcePlace) -> None:
    async with opened(source_place.make()) as source:
        await source.save(lone("before"))
        await source.set_state(DUAL_WRITE)
        await source.save(lone("during"))
    async with opened(source_place.make()) as source:
        assert await source.state() == DUAL_WRITE
        await source.save(lone("after a restart"))
        assert [one.id for one in await source.journal(0, 9)] == ["during", "after a restart"]
        await source.set_state(SQLITE_ONLY)
        assert await source.journal(0, 9) == []
        await source.save(lone("unheard"))
        assert await source.journal(0, 9) == []
    async with opened(source_place.make()) as source:
        await source.save(lone("unheard as well"))
        await source.set_state(DUAL_WRITE, rejournal_after=2)
        found = [one.id for one in await source.journal(0, 9)]
        assert found == ["after a restart", "unheard", "unheard as well"]


async def test_pruned_is_last_revision_when_journalling_begins(source: MigrationSource) -> None:
    await source.save(lone("a"))
    await source.save(lone("b"))
    await source.set_state(DUAL_WRITE)
    assert await _waiting(source) == (0, 2)
    await source.save(lone("c"))
    await source.set_state(DUAL_WRITE._replace(paused=True))
    assert await _waiting(source) == (1, 2)
    await source.set_state(SQLITE_ONLY)
    await source.save(lone("d"))
    await source.set_state(DUAL_WRITE)
    assert await _waiting(source) == (0, 4)


# ------------------------------------------------------------------ entries


async def test_entries_contain_current_rows(source: MigrationSource) -> None:
    await source.set_state(DUAL_WRITE)
    began = now()
    await source.save(lone("a", "one"))
    await source.save(lone("b"))
    await source.save(lone("a", "two"))
    await source.delete("b")
    stored = await source.get("a")
    ended = now()
    entries = await source.journal(0, 10)
    assert [(one.sequence, one.id) for one in entries] == [(1, "a"), (2, "b"), (3, "a"), (4, "b")]
    assert [one.message for one in entries] == [stored, None, stored, None]
    assert [one.buried for one in entries] == [0, 4, 0, 4]
    assert not any(one.forced for one in entries)
    written = [one.written_at for one in entries]
    assert began <= written[0]
    assert written == sorted(written)
    assert written[-1] <= ended
    await source.save(lone("b", "again"))
    (last,) = await source.journal(4, 10)
    assert (last.sequence, last.message, last.buried) == (5, await source.get("b"), 4)


async def test_refused_and_empty_writes_leave_no_entry(source: MigrationSource) -> None:
    await source.save(lone("a"))
    await source.set_state(DUAL_WRITE)
    await source.save(lone("a"))
    await source.bulk_save([lone("a", "other")], OnConflict.SKIP)
    for write in (source.save(lone("a", "x"), 9), source.delete("none"), source.delete("a", 9)):
        with pytest.raises(StorageError):
            await write
    assert await source.journal(0, 9) == []
    assert (await source.save(lone("b"))).revision == 2


async def test_concurrent_writes_leave_one_latest_entry_per_id(source: MigrationSource) -> None:
    """Regardless of how they share transactions."""
    await source.set_state(DUAL_WRITE)
    writes = []
    for n in range(120):
        key = f"m{n % 7}"
        writes.append(source.delete(key) if n % 5 == 3 else source.save(lone(key, f"text {n}")))
    await asyncio.gather(*writes, return_exceptions=True)
    entries = await source.journal(0, 1000)
    sequences = [one.sequence for one in entries]
    assert sequences == sorted(set(sequences))
    assert sequences[-1] == source.committed
    latest = {one.id: one for one in entries}
    stored = await source.batch_get(list(latest))
    for key, entry in latest.items():
        found = stored.get(key)
        assert entry.message == found
        assert entry.sequence == (found.revision if found else entry.buried)


async def test_journal_reads_are_bounded(source: MigrationSource) -> None:
    await source.set_state(DUAL_WRITE)
    large = "ß" * 100_000
    await source.bulk_save([lone(f"m{n:02}", large) for n in range(40)], OnConflict.REPLACE)
    pieces: list[list[Entry]] = []
    after = 0
    while entries := await source.journal(after, 1000):
        pieces.append(entries)
        after = entries[-1].sequence
    assert [entry.id for piece in pieces for entry in piece] == [f"m{n:02}" for n in range(40)]
    assert len(pieces) > 1
    assert max(map(len, pieces)) * len(large.encode()) <= 4 * MIB
    assert [entry.id for entry in await source.journal(0, 3)] == ["m00", "m01", "m02"]
    assert [entry.id for entry in await source.journal(38, 1)] == ["m38"]


async def test_status_counts_from_a_position(source: MigrationSource) -> None:
    await source.set_state(DUAL_WRITE)
    for n in range(5):
        await source.save(lone(f"m{n}"))
    entries = await source.journal(0, 10)
    for after in range(6):
        status = await source.journal_status(after)
        oldest = entries[after].written_at if after < 5 else None
        assert status == JournalStatus(5 - after, oldest, 0)


# ------------------------------------------------------------------ pruning


async def test_prune_removes_up_to_a_sequence(source: MigrationSource) -> None:
    await source.set_state(DUAL_WRITE)
    for n in range(6):
        await source.save(lone(f"m{n}"))
    await source.prune(0)
    assert await _waiting(source) == (6, 0)
    await source.prune(2)
    assert await _told(source) == [(n + 1, f"m{n}", False) for n in range(2, 6)]
    assert await _waiting(source) == (4, 2)
    await source.prune(1)
    assert await _waiting(source) == (4, 2)
    # What is not there was never confirmed.
    await source.prune(100)
    assert await _waiting(source) == (0, 6)
    await source.save(lone("m6"))
    assert await _told(source) == [(7, "m6", False)]


async def test_pruned_position_survives_reopening(source_place: SourcePlace) -> None:
    async with opened(source_place.make()) as source:
        await source.set_state(DUAL_WRITE)
        for n in range(4):
            await source.save(lone(f"m{n}"))
        await source.prune(3)
    async with opened(source_place.make()) as source:
        assert await _told(source) == [(4, "m3", False)]
        assert await _waiting(source) == (1, 3)


async def test_pruning_many_entries_interleaves_writes(source: MigrationSource) -> None:
    await source.set_state(DUAL_WRITE)
    for start in range(12):
        drafts = [lone(f"m{start:02}-{n:03}", "x") for n in range(1000)]
        await source.bulk_save(drafts, OnConflict.REPLACE)
    order: list[str] = []

    async def prune() -> None:
        await source.prune(11_000)
        order.append("pruned")

    async def save() -> None:
        await source.save(lone("new"))
        order.append("saved")

    await asyncio.gather(prune(), save())
    assert order == ["saved", "pruned"]
    assert await _waiting(source) == (1001, 11_000)


# ------------------------------------------------------------------ rejournalling


async def test_rejournalling_adds_later_messages_and_tombstones(source: MigrationSource) -> None:
    for key in ("a", "b", "c", "d"):
        await source.save(lone(key))
    await source.delete("b")
    await source.save(lone("c", "changed"))
    assert await source.set_state(DUAL_WRITE, rejournal_after=3) == 6
    assert await _told(source) == [(4, "d", False), (5, "b", False), (6, "c", False)]
    assert await _waiting(source) == (3, 3)
    entries = {one.id: one for one in await source.journal(0, 9)}
    assert (entries["b"].message, entries["b"].buried) == (None, 5)
    assert entries["c"].message == await source.get("c")


async def test_rejournalling_keeps_pending_entries(source: MigrationSource) -> None:
    await source.set_state(DUAL_WRITE)
    for key in ("a", "b", "c"):
        await source.save(lone(key))
    await source.requeue(["a"])
    await source.prune(2)
    waiting = await source.journal(0, 9)
    await source.set_state(DUAL_WRITE, rejournal_after=0)
    assert await _told(source) == [
        (1, "a", False),
        (2, "b", False),
        (3, "c", False),
        (4, "a", True),
    ]
    assert (await source.journal(2, 9)) == waiting
    assert await _waiting(source) == (4, 0)
    await source.set_state(DUAL_WRITE, rejournal_after=99)
    assert await _waiting(source) == (4, 99)


async def test_rejournalling_without_a_journal_adds_nothing(source: MigrationSource) -> None:
    await source.save(lone("a"))
    await source.set_state(SQLITE_ONLY, rejournal_after=0)
    assert await _told(source) == []


async def test_pruning_stops_when_entries_return(source: MigrationSource) -> None:
    """A target that lost confirmed changes gets them again despite concurrent pruning."""
    await source.set_state(DUAL_WRITE)
    for start in range(6):
        drafts = [lone(f"m{start:02}-{n:03}", "x") for n in range(1000)]
        await source.bulk_save(drafts, OnConflict.REPLACE)
    pruning = asyncio.create_task(source.prune(6000))
    await asyncio.sleep(0)
    await source.set_state(DUAL_WRITE, rejournal_after=0)
    await pruning
    assert await _waiting(source) == (6000, 0)


# ------------------------------------------------------------------ repairs


async def test_requeued_ids_are_forced_under_new_sequences(source: MigrationSource) -> None:
    await source.set_state(DUAL_WRITE)
    stored = await source.save(lone("a"))
    await source.save(lone("gone"))
    await source.delete("gone")
    await source.prune(3)
    assert await source.requeue(["gone", "a", "never"]) == 6
    entries = await source.journal(0, 9)
    assert [one[:2] for one in entries] == [(4, "gone"), (5, "a"), (6, "never")]
    assert all(one.forced for one in entries)
    assert [one.buried for one in entries] == [3, 0, 0]
    assert [one.message and one.message.revision for one in entries] == [
        None,
        stored.revision,
        None,
    ]
    assert source.committed == 6
    assert (await source.save(lone("b"))).revision == 7


async def test_requeueing_nothing_changes_nothing(source: MigrationSource) -> None:
    await source.set_state(DUAL_WRITE)
    await source.save(lone("a"))
    assert await source.requeue([]) == 1
    assert await _told(source) == [(1, "a", False)]


async def test_forced_entries_survive_reopening(source_place: SourcePlace) -> None:
    async with opened(source_place.make()) as source:
        await source.set_state(DUAL_WRITE)
        await source.save(lone("a"))
        await source.requeue(["a"])
        before = await source.journal(0, 9)
    async with opened(source_place.make()) as source:
        assert await source.journal(0, 9) == before
        assert [one.forced for one in before] == [False, True]


async def test_many_ids_are_requeued(source: MigrationSource) -> None:
    await source.set_state(DUAL_WRITE)
    ids = [f"m-{n}" for n in range(12_000)]
    assert await source.requeue(ids) == 12_000
    assert [key for _, key, _ in await _told(source, 11_990)] == ids[11_990:]
