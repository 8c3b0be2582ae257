"""Rows that come by the journal, by the backfill and by repairs: in the end all is as it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.postgresql.replica import PostgreSQLReplica
from sagastore_server.postgresql.rows import search_columns
from sagastore_server.search.analysis import FINGERPRINT
from sagastore_server.search.parser import parse_query
from sagastore_server.storage.carried import (
    Tallier,
    extra_values,
    file_values,
    quarantine_values,
)
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.model import Message, QuarantinedRow
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Criteria
from sagastore_server.storage.replication import (
    BackfillMark,
    Carried,
    CarriedTally,
    Entry,
    ExtraValue,
    FileRow,
)
from tests.postgresql.targets import (
    LEASE,
    SOURCE,
    buried_in,
    claimed,
    content_of,
    deleted,
    fetched,
    found_by,
    message,
    opened_replica,
    saved,
)
from tests.support import strategies
from tests.support.drafts import NOW
from tests.support.postgres import execute, fresh_schema

MARK = BackfillMark(BackfillState.RUNNING, True, "m", "z", 5, 10)
IDS = ["a", "\U0001f600"]
"""Few, so that much happens to each."""

assert strategies.QUICK in {True, False}  # The profile is loaded.


@pytest.fixture(params=[100, 0])
async def replica(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[PostgreSQLReplica]:
    """Open a replica with a lease, with and without prepared statements."""
    async with claimed(dsn, statement_cache=request.param) as replica:
        yield replica


async def tamper(dsn: str, statement: str) -> None:
    """Change rows as nobody may who does not hold the lease."""
    await execute(dsn, f"SET sagastore.session = '{LEASE.session}'; {statement}")


async def applied_to(replica: PostgreSQLReplica) -> int:
    record = (await replica.inspect()).record
    assert record is not None
    return record.applied


# ------------------------------------------------------------------ the journal


async def test_entries_are_applied_and_noted(replica: PostgreSQLReplica, dsn: str) -> None:
    one = message("m-1", 3, "running quickly", tags=("x", "y"), metadata='{"a": [1]}')
    bare = message("m-2", 4, session_id=None, created_at=None, timestamp=-5)
    await replica.apply(LEASE, [saved(one), saved(bare), deleted("m-3", 5)])
    assert await content_of(replica) == {"m-1": one, "m-2": bare}
    assert await buried_in(dsn) == {"m-3": 5}
    assert await applied_to(replica) == 5
    assert await found_by(replica, Criteria(parse_query("run"))) == ["m-1"]
    assert await found_by(replica, Criteria(tags=("y",), metadata='{"a": [1]}')) == ["m-1"]
    await replica.apply(LEASE, [])
    await replica.apply(LEASE, [deleted("m-1", 6), saved(message("m-2", 7, "other"), buried=2)])
    assert await content_of(replica) == {"m-2": message("m-2", 7, "other")}
    assert await buried_in(dsn) == {"m-1": 6, "m-2": 2, "m-3": 5}
    assert await applied_to(replica) == 7


async def test_of_several_entries_with_one_id_the_last_counts(replica: PostgreSQLReplica) -> None:
    entries = [
        saved(message("m-1", 9), sequence=3, forced=True),
        saved(message("m-1", 9), sequence=6),
        deleted("m-2", 8, sequence=4),
        deleted("m-2", 8),
        saved(message("m-1", 9)),
    ]
    await replica.apply(LEASE, entries)
    assert await content_of(replica) == {"m-1": message("m-1", 9)}
    assert await applied_to(replica) == 9


async def test_what_is_old_changes_nothing(replica: PostgreSQLReplica, dsn: str) -> None:
    await replica.apply(LEASE, [saved(message("m-1", 10, "new")), deleted("m-2", 11)])
    await replica.apply(LEASE, [saved(message("m-1", 9, "old")), saved(message("m-2", 10))])
    await replica.copy(LEASE, [message("m-1", 9, "old")], MARK)
    await replica.apply(LEASE, [deleted("m-1", 8)])
    await replica.apply(LEASE, [deleted("m-1", 7), deleted("m-2", 4)])
    await replica.copy(LEASE, [message("m-1", 3, "old"), message("m-2", 4)], MARK)
    assert await content_of(replica) == {"m-1": message("m-1", 10, "new")}
    assert await buried_in(dsn) == {"m-1": 8, "m-2": 11}
    assert await applied_to(replica) == 11


async def test_a_bad_entry_leaves_nothing_of_its_batch(replica: PostgreSQLReplica) -> None:
    await replica.apply(LEASE, [saved(message("m-1", 1))])
    bad = [saved(message("m-2", 2)), deleted("m-1", 3), saved(message("m-3", 4, "zero \0 byte"))]
    with pytest.raises(Exception, match="could not carry out"):
        await replica.apply(LEASE, bad)
    assert await content_of(replica) == {"m-1": message("m-1", 1)}
    assert await applied_to(replica) == 1


async def test_a_cancelled_apply_is_there_wholly_or_not_at_all(dsn: str) -> None:
    async with claimed(dsn) as replica:
        for turn in range(1, 60):
            batch = [saved(message(f"m-{n}", turn * 50 + n)) for n in range(50)]
            task = asyncio.create_task(replica.apply(LEASE, batch))
            for _ in range(turn % 20):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            found = await content_of(replica)
            last = await applied_to(replica)
            assert {one.revision // 50 for one in found.values()} <= {last // 50}
            assert len(found) in {0, 50}


# ------------------------------------------------------------------ the backfill


async def test_a_large_batch_is_copied_with_its_mark(replica: PostgreSQLReplica) -> None:
    rows = [message(f"m-{n:04}", n + 1, f"word{n} running") for n in range(1000)]
    await replica.apply(LEASE, [saved(message("m-0007", 2000, "newer")), deleted("m-0008", 2001)])
    await tamper_row(replica, rows[9])
    assert await replica.copy(LEASE, rows, MARK) == MARK
    assert (await replica.inspect()).record.backfill == MARK  # type: ignore[union-attr]
    expected = {one.id: one for one in rows} | {"m-0007": message("m-0007", 2000, "newer")}
    del expected["m-0008"]
    assert await content_of(replica) == expected
    assert await found_by(replica, Criteria(parse_query("word999"))) == ["m-0999"]
    done = MARK._replace(state=BackfillState.DONE)
    assert await replica.copy(LEASE, [], done) == done
    assert await replica.copy(LEASE, rows, done) == done
    assert await content_of(replica) == expected
    assert await applied_to(replica) == 2001


async def tamper_row(replica: PostgreSQLReplica, one: Message) -> None:
    """Have the target know an older version of a row that is copied."""
    await replica.apply(LEASE, [saved(one._replace(revision=1, content="older"))])


async def test_of_several_rows_with_one_id_the_newest_is_copied(replica: PostgreSQLReplica) -> None:
    rows = [message("m", 2, "middle"), message("m", 3, "new"), message("m", 1, "old")]
    await replica.copy(LEASE, rows, MARK)
    assert (await replica.get("m")).content == "new"


# ------------------------------------------------------------------ any order


class Source:
    """A store with a journal, in a few lines."""

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
        """Return entries with what is there now."""
        numbered = list(enumerate(self.journal, self.base + 1))[start : start + size]
        return [self.entry(key, sequence) for sequence, key in numbered]

    def entry(self, key: str, sequence: int, *, forced: bool = False) -> Entry:
        found, buried = self.state.get(key), self.buried.get(key, 0)
        return Entry(sequence, key, found, buried, forced, NOW)


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


async def _step(replica: PostgreSQLReplica, source: Source, step: tuple[Any, ...]) -> None:
    match step:
        case ("save", key):
            source.save(key)
        case ("delete", key):
            source.delete(key)
        case ("read", start, size):
            source.batches.append(source.entries(start % (len(source.journal) + 1), size))
        case ("apply", which) if source.batches:
            await replica.apply(LEASE, source.batches[which % len(source.batches)])
        case ("scan", chosen):
            found = [source.state[key] for key in sorted(chosen) if key in source.state]
            source.copies.append(found)
        case ("copy", which) if source.copies:
            await replica.copy(LEASE, source.copies[which % len(source.copies)], MARK)
        case ("repair", key):
            # As in the journal: applied at its place, with what is there then.
            source.journal.append(key)
            source.revision += 1
            await replica.apply(LEASE, [source.entry(key, source.revision, forced=True)])


async def _known(replica: PostgreSQLReplica, dsn: str) -> dict[str, int]:
    """Return the revision up to which the target knows each id."""
    known = await buried_in(dsn)
    for one in (await content_of(replica)).values():
        known[one.id] = max(one.revision, known.get(one.id, 0))
    return known


@given(before=st.lists(keys, max_size=4), plan=st.lists(steps, max_size=25))
async def test_whatever_the_order_nothing_old_comes_back(
    before: list[str], plan: list[tuple[Any, ...]]
) -> None:
    """Batches are read at one time and applied at another, again, and in another order."""
    async with fresh_schema() as dsn, claimed(dsn) as replica:
        source = Source(before)
        rows = list(source.state.values())
        known: dict[str, int] = {}
        for step in plan:
            await _step(replica, source, step)
            after = await _known(replica, dsn)
            assert all(after.get(key, 0) >= revision for key, revision in known.items()), step
            known = after
        await replica.apply(LEASE, source.entries(0, len(source.journal)))
        assert {**await content_of(replica), **_unjournalled(source)} == source.state
        await replica.copy(LEASE, rows, MARK)
        for batch in source.batches:
            await replica.apply(LEASE, batch)
        assert await content_of(replica) == source.state
        assert await applied_to(replica) == (source.revision if source.journal else 0)


def _unjournalled(source: Source) -> dict[str, Message]:
    return {key: one for key, one in source.state.items() if one.revision <= source.base}


# ------------------------------------------------------------------ repairs

TAMPERINGS = {
    "same revision, different content": "UPDATE messages SET content = 'changed' WHERE id = 'm-1'",
    "greater revision": "UPDATE messages SET content = 'x', revision = 99 WHERE id = 'm-1'",
    "missing": "DELETE FROM messages WHERE id = 'm-1'",
    "missing, with a tombstone": "DELETE FROM messages WHERE id = 'm-1'; "
    "INSERT INTO tombstones VALUES ('m-1', 99, now())",
}
LIKE = "provider, role, content, tags, timestamp, metadata, session_id, created_at"


@pytest.mark.parametrize("kind", TAMPERINGS)
async def test_a_repair_puts_a_message_right(dsn: str, kind: str) -> None:
    async with claimed(dsn) as replica:
        wanted = message("m-1", 5)
        await replica.apply(LEASE, [saved(wanted), saved(message("m-2", 6))])
        await tamper(dsn, TAMPERINGS[kind])
        await replica.apply(LEASE, [saved(wanted, sequence=7)])
        if kind != "missing":
            assert (await content_of(replica)).get("m-1") != wanted
        await replica.apply(LEASE, [saved(wanted, sequence=8, forced=True)])
        assert await content_of(replica) == {"m-1": wanted, "m-2": message("m-2", 6)}
        assert await buried_in(dsn) == {}
        assert await found_by(replica, Criteria(parse_query("fox"))) == ["m-1", "m-2"]


@pytest.mark.parametrize("buried", [0, 3])
async def test_a_repair_removes_what_is_too_much(dsn: str, buried: int) -> None:
    async with claimed(dsn) as replica:
        await replica.apply(LEASE, [saved(message("m-2", 2))])
        await tamper(
            dsn,
            f"INSERT INTO messages SELECT 'extra', {LIKE}, 99, terms, search FROM messages",
        )
        entry = Entry(4, "extra", None, buried, True, NOW)
        await replica.apply(LEASE, [entry])
        assert list(await content_of(replica)) == ["m-2"]
        assert await buried_in(dsn) == ({"extra": 3} if buried else {})


# ------------------------------------------------------------------ what is carried along

QUARANTINED = [
    QuarantinedRow(7, "messages/rowid=1", "timestamp: no time", "timestamp", b'{"id": "\\u0000"}'),
    QuarantinedRow(3, "messages/rowid=9", "id: is NULL", "id", '{"id": null, "é": 1.0}'.encode()),
]
FILES = [
    FileRow(1, "f-\u00e4", "n", "/p", "pdf", "text", '["t"]', 1 << 40, "2023", "{}", "2023", "{}"),
    FileRow(2, "F-a", "", "", "", None, None, None, "", None, None, '{"more": {"base64": "AA=="}}'),
    FileRow(3, "f-a", "", "", "", None, None, -1, "", None, None, "{}"),
]
EXTRAS = [
    ExtraValue("m-1", "score", '{"value": 1.0}'),
    ExtraValue("m-1", "Score", '{"value": null}'),
    ExtraValue("M-1", "score", '{"value": "x"}'),
]


def _tally(rows: Carried) -> CarriedTally:
    talliers = Tallier(), Tallier(), Tallier()
    talliers[0].add_all(map(quarantine_values, sorted(rows.quarantine)))
    talliers[1].add_all(map(file_values, sorted(rows.files, key=lambda row: row.id)))
    talliers[2].add_all(map(extra_values, sorted(rows.extras)))
    return CarriedTally(*(one.tally() for one in talliers))


async def test_what_is_carried_has_the_digest_of_the_source(replica: PostgreSQLReplica) -> None:
    rows = Carried(QUARANTINED, FILES, EXTRAS)
    assert await replica.carried() == _tally(Carried())
    await replica.carry(LEASE, Carried(), first=True)
    await replica.carry(LEASE, rows, first=False)
    await replica.carry(LEASE, rows, first=False)
    assert await replica.carried() == _tally(rows)
    assert await replica.quarantine(0, 10) == sorted(QUARANTINED)
    fewer = Carried(QUARANTINED[1:], FILES[1:], [EXTRAS[0]._replace(value="{}")])
    await replica.carry(LEASE, fewer, first=True)
    assert await replica.carried() == _tally(fewer)


async def test_many_files_are_digested_in_order(dsn: str) -> None:
    files = [FILES[0]._replace(number=n, id=f"{n * 7919 % 1000:x}") for n in range(1000)]
    async with claimed(dsn) as replica:
        await replica.carry(LEASE, Carried(files=files), first=True)
        assert await replica.carried() == _tally(Carried(files=files))


# ------------------------------------------------------------------ others


async def test_messages_are_counted_exactly(replica: PostgreSQLReplica) -> None:
    for number in range(1, 4):
        await replica.apply(LEASE, [saved(message(f"m-{number}", number))])
        assert await replica.count() == number


async def test_terms_of_another_analysis_are_made_anew_by_a_claim(dsn: str) -> None:
    async with claimed(dsn) as replica:
        rows = [message(f"m-{n:04}", n + 1, f"word{n}") for n in range(1200)]
        await replica.copy(LEASE, rows, MARK)
        await tamper(dsn, "UPDATE messages SET terms = '', search = ''")
        await execute(dsn, "UPDATE store_state SET value = 'older' WHERE name = 'analysis'")
    async with opened_replica(dsn) as replica:
        await replica.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
        assert await found_by(replica, Criteria(parse_query("word1199"))) == ["m-1199"]
        ((terms,),) = await fetched(dsn, "SELECT terms FROM messages WHERE id = 'm-0001'")
        assert terms == search_columns("word1")[0]
        ((analysis,),) = await fetched(dsn, "SELECT value FROM store_state WHERE name = 'analysis'")
        assert analysis == FINGERPRINT
