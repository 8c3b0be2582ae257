"""Migration source: persistent state and the write queue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sagastore_server.storage.errors import (
    MovedError,
    NotFoundError,
    RevisionMismatchError,
    UnavailableError,
)
from sagastore_server.storage.migration import Verification
from sagastore_server.storage.model import OnConflict, QuarantinedRow
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Scan
from sagastore_server.storage.replication import (
    AuxiliaryRows,
    ExtraValue,
    JournalStatus,
    MigrationSource,
    MigrationState,
)
from tests.support.drafts import lone
from tests.support.migration_backends import SourcePlace, opened
from tests.support.migration_values import content_of, tally

DUAL_WRITE = MigrationState(Phase.DUAL_WRITE, epoch=2)
READY = MigrationState(Phase.READ_POSTGRES, epoch=5, completing=True)

# ------------------------------------------------------------------ identity and state


async def test_new_source_is_empty(source_place: SourcePlace) -> None:
    source = source_place.make()
    news = [source.is_new]
    async with opened(source):
        news.append(source.is_new)
        assert source.committed == 0
        assert await source.state() == MigrationState()
        assert await source.journal(0, 10) == []
        assert await source.journal_status(0) == JournalStatus(0, None, 0)
        assert await source.count() == 0
        assert source.place
        assert source.holder.count(":") == 2
    assert [*news, source_place.make().is_new] == [True, False, False]


async def test_identity_survives_reopening(source_place: SourcePlace) -> None:
    async with opened(source_place.make()) as source:
        before = source.store_id, source.holder, source.place
    async with opened(source_place.make()) as source:
        assert (source.store_id, source.holder, source.place) == before


async def test_state_survives_reopening(source_place: SourcePlace) -> None:
    full = MigrationState(
        Phase.READ_POSTGRES, 9, 7, True, True, 17, 400, 3, Verification(1, 2, 3, 4, 5, 6), 8
    )
    async with opened(source_place.make()) as source:
        await source.set_state(full)
        assert await source.state() == full
    async with opened(source_place.make()) as source:
        assert await source.state() == full


async def test_set_state_returns_last_revision(source: MigrationSource) -> None:
    assert await source.set_state(DUAL_WRITE) == 0
    await source.save(lone("a"))
    await source.save(lone("b"))
    await source.delete("b")
    assert await source.set_state(DUAL_WRITE._replace(paused=True)) == 3
    await source.requeue(["a", "b"])
    assert await source.set_state(DUAL_WRITE) == 5


async def test_count_is_exact(source: MigrationSource) -> None:
    await source.bulk_save([lone(f"m-{n}") for n in range(20)], OnConflict.REPLACE)
    await source.delete("m-7")
    await source.save(lone("m-8", "changed"))
    assert await source.count() == 19


# ------------------------------------------------------------------ durable, then told


async def test_committed_increases_before_acknowledgement(source: MigrationSource) -> None:
    heard: list[int] = []
    source.on_commit(lambda: heard.append(source.committed))

    async def save(key: str) -> None:
        result = await source.save(lone(key))
        assert source.committed >= result.revision
        assert heard[-1] >= result.revision

    await asyncio.gather(*[save(f"m{n}") for n in range(50)])
    assert heard == sorted(set(heard))
    assert heard[-1] == source.committed == 50


async def test_listeners_are_called_only_for_new_revisions(source: MigrationSource) -> None:
    heard: list[str] = []
    source.on_commit(lambda: heard.append("first"))
    source.on_commit(lambda: heard.append("second"))
    await source.save(lone("a"))
    assert heard == ["first", "second"]
    await source.save(lone("a"))
    await source.set_state(DUAL_WRITE)
    await source.flush()
    with pytest.raises(RevisionMismatchError):
        await source.save(lone("a", "other"), 9)
    assert heard == ["first", "second"]
    await source.requeue(["a"])
    await source.delete("a")
    assert heard == ["first", "second"] * 3


async def test_committed_survives_reopening(source_place: SourcePlace) -> None:
    async with opened(source_place.make()) as source:
        await source.save(lone("a"))
        await source.delete("a")
        await source.requeue(["a"])
        assert source.committed == 3
    async with opened(source_place.make()) as source:
        assert source.committed == 3
        assert (await source.save(lone("a"))).revision == 4


# ------------------------------------------------------------------ flush


async def test_flush_of_idle_source_returns_committed(source: MigrationSource) -> None:
    assert await source.flush() == 0
    await source.save(lone("a"))
    assert await source.flush() == 1
    assert await source.flush() == source.committed == 1


async def test_flush_waits_for_writes_without_a_caller(source: MigrationSource) -> None:
    for turn in range(30):
        keys = [f"{turn}-{n}" for n in range(5)]
        saves = [asyncio.create_task(source.save(lone(key))) for key in keys]
        for _ in range(turn % 5):
            await asyncio.sleep(0)
        for save in saves:
            save.cancel()
        flushed = await source.flush()
        stored = await source.batch_get(keys)
        assert all(one.revision <= flushed for one in stored.values())
        assert source.committed == flushed
        # Nothing that was submitted before comes later.
        await source.save(lone("later", str(turn)))
        assert await source.batch_get(keys) == stored


async def test_flush_covers_returned_reads(source: MigrationSource) -> None:
    done = False

    async def write(key: str) -> None:
        number = 0
        while not done:
            number += 1
            await source.save(lone(key, f"text {number}"))

    writing = [asyncio.create_task(write(key)) for key in "abcd"]
    try:
        for _ in range(100):
            seen = await source.batch_get(list("abcd"))
            newest = max((one.revision for one in seen.values()), default=0)
            assert await source.flush() >= newest
    finally:
        done = True
        await asyncio.gather(*writing)


async def test_flush_returns_after_earlier_acknowledgements(source: MigrationSource) -> None:
    told: list[str] = []

    async def save(key: str) -> None:
        await source.save(lone(key))
        told.append(key)

    keys = [f"m-{n:02}" for n in range(40)]
    saves = [asyncio.create_task(save(key)) for key in keys]
    await asyncio.sleep(0)
    assert await source.flush() == 40
    await asyncio.sleep(0)
    assert sorted(told) == keys
    await asyncio.gather(*saves)


# ------------------------------------------------------------------ what is carried along

EXTRAS = [
    ExtraValue("M-1", "score", '{"value": "x"}'),
    ExtraValue("m-1", "Score", '{"value": 1.0}'),
    ExtraValue("m-1", "score", '{"value": null}'),
    ExtraValue("\U0001f600", "a", '{"value": 3}'),
]
ASIDE = [
    QuarantinedRow(3, "messages/rowid=9", "id: is NULL", "id", '{"id": null, "é": 1.0}'.encode()),
    QuarantinedRow(7, "messages/rowid=1", "timestamp: no time", "timestamp", b"{}"),
]


async def test_auxiliary_rows_are_read_in_order(source_place: SourcePlace) -> None:
    async with opened(source_place.make()) as source:
        assert await source.carried() == tally(AuxiliaryRows())
    rows = AuxiliaryRows(ASIDE, EXTRAS)
    source_place.put(rows)
    async with opened(source_place.make()) as source:
        assert await source.carried() == tally(rows)
        assert await source.extras(("", ""), 2) == EXTRAS[:2]
        assert await source.extras(("m-1", "Score"), 10) == EXTRAS[2:]
        assert await source.extras(("\U0001f600", "a"), 10) == []
        assert await source.quarantine(0, 1) == ASIDE[:1]
        assert await source.quarantine(3, 10) == ASIDE[1:]
        assert await source.quarantine_count() == 2


# ------------------------------------------------------------------ closed, and archived

CALLS: dict[str, Callable[[MigrationSource], Awaitable[object]]] = {
    "flush": lambda source: source.flush(),
    "state": lambda source: source.state(),
    "set_state": lambda source: source.set_state(DUAL_WRITE),
    "journal": lambda source: source.journal(0, 10),
    "journal_status": lambda source: source.journal_status(0),
    "prune": lambda source: source.prune(10),
    "requeue": lambda source: source.requeue(["a"]),
    "count": lambda source: source.count(),
    "journal_records": lambda source: source.journal_records(),
    "files_by_id": lambda source: source.files_by_id(["a"]),
    "scan_files": lambda source: source.scan_files("", "z", 10),
    "last_file": lambda source: source.last_file(),
    "count_files": lambda source: source.count_files(),
    "extras": lambda source: source.extras(("", ""), 10),
    "carried": lambda source: source.carried(),
}


@pytest.mark.parametrize("name", CALLS)
async def test_closed_source_is_unavailable(source_place: SourcePlace, name: str) -> None:
    with pytest.raises(UnavailableError):
        await CALLS[name](source_place.make())
    async with opened(source_place.make()) as source:
        await CALLS[name](source)
    with pytest.raises(UnavailableError):
        await CALLS[name](source)


async def test_archive_ends_the_source(source_place: SourcePlace) -> None:
    async with opened(source_place.make()) as source:
        await source.save(lone("a"))
        await source.set_state(READY)
        await source.save(lone("b"))
        made = await source.archive({"postgresql": {"messages": 2}})
        assert await source.state() == MigrationState(Phase.POSTGRES_ONLY, epoch=6)
        for call in (source.get("a"), source.save(lone("c")), source.journal(0, 9)):
            with pytest.raises(UnavailableError):
                await call
        assert await source.archive({}) == made
        store_id = source.store_id
    again = source_place.make()
    assert not again.is_new
    with pytest.raises(MovedError) as caught:
        await again.open()
    assert caught.value.store_id == store_id
    await again.close()
    assert await source_place.make().archive({}) == made


async def test_archive_finishes_writes_in_progress(source_place: SourcePlace) -> None:
    async with opened(source_place.make()) as source:
        await source.set_state(READY)
        saves = [asyncio.create_task(source.save(lone(f"m{n}"))) for n in range(50)]
        await asyncio.sleep(0)
        await source.archive({})
        outcomes = await asyncio.gather(*saves, return_exceptions=True)
        assert [type(one) for one in outcomes if isinstance(one, BaseException)] == []
        assert source.committed == 50


async def test_archive_of_closed_source(source_place: SourcePlace) -> None:
    async with opened(source_place.make()) as source:
        await source.set_state(READY)
    made = await source.archive({})
    with pytest.raises(MovedError):
        await source_place.make().open()
    assert await source.archive({}) == made


# ------------------------------------------------------------------ as a backend, beside it all


async def test_reads_and_writes_work_in_every_phase(source: MigrationSource) -> None:
    for phase in Phase:
        if not phase.writes_sqlite:
            continue
        await source.set_state(MigrationState(phase, epoch=phase.value))
        await source.save(lone("a", f"in {phase.slug}"))
        assert (await source.get("a")).content == f"in {phase.slug}"
        await source.delete("a")
        with pytest.raises(NotFoundError):
            await source.get("a")
    assert (await source.list_session("s-1", Scan(False, 10))).messages == []
    assert await content_of(source) == {}
