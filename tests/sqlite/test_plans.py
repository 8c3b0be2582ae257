"""Query plans of a search return the same rows, and each uses an index."""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from sagastore_server.search.parser import parse_query
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.queries import QUERIES
from sagastore_server.sqlite.search import SearchStatement, compile_search, first_block, next_block
from sagastore_server.storage.model import Message, OnConflict, Position
from sagastore_server.storage.query import Criteria, Scan
from tests.support.drafts import NOW, draft
from tests.support.reference_search import meets, stretch

CRITERIA = {
    "words": Criteria(parse_query("fox dog")),
    "phrase": Criteria(parse_query('"fox dog"')),
    "prefix": Criteria(parse_query("fo*")),
    "no prefix": Criteria(parse_query("-fo*")),
    "prefix or no prefix": Criteria(parse_query("fo* cat OR -do*")),
    "or": Criteria(parse_query("fox OR cat -dog")),
    "excluding": Criteria(parse_query("-fox")),
    "either": Criteria(parse_query("-fox OR dog cat OR -bird -cat")),
    "tags": Criteria(tags=("t1", "t2")),
    "metadata": Criteria(metadata='{"k": 1}'),
    "session": Criteria(session_id="s-1"),
    "time": Criteria(start=NOW + 10, end=NOW + 200),
    "session words": Criteria(parse_query("fox"), session_id="s-1", end=NOW + 100),
    "tags excluding": Criteria(parse_query("-fox"), tags=("t1",)),
    "metadata either": Criteria(parse_query("-fox OR dog"), metadata='{"k": 1}', role="user"),
    "everything": Criteria(
        parse_query("fox"), ("t1",), "anthropic", "user", "s-1", NOW, NOW + 250, '{"k": 1}'
    ),
}
SCANS = [
    Scan(True, 20),
    Scan(False, 20),
    Scan(True, 500),
    Scan(True, 7, Position(NOW + 150, 151), Position(NOW + 20, 21)),
    Scan(False, 7, Position(NOW + 20, 21), Position(NOW + 150, 151)),
]


@pytest.fixture
async def filled(store: SQLiteStorage) -> SQLiteStorage:
    chance = random.Random(3)
    drafts = [
        draft(
            f"m-{number:04}",
            " ".join(chance.choices(["fox", "dog", "cat", "bird"], k=3)),
            tags=chance.sample(["t1", "t2", "t3"], chance.randrange(4)),
            metadata=chance.choice(["{}", '{"k": 1}', '{"k": 2}', '{"k": [1]}']),
            session_id=chance.choice(["s-1", "s-2", None]),
            timestamp=NOW + number // 2 * 2,
        )
        for number in range(300)
    ]
    await store.bulk_save(drafts, OnConflict.REPLACE)
    return store


async def _all(store: SQLiteStorage) -> list[Message]:
    page = await store.scan_ids("", "z", 1000)
    return page.messages


@pytest.mark.parametrize("name", CRITERIA)
async def test_all_plans_return_same_rows(filled: SQLiteStorage, name: str) -> None:
    criteria = CRITERIA[name]
    matching = [one for one in await _all(filled) if meets(one, criteria)]
    assert matching
    for scan in SCANS:
        expected = stretch(matching, scan)[: scan.limit + 1]
        compiled = compile_search(criteria, scan)
        statements = [compiled.whole]
        if compiled.expression is not None:
            statements.append(compiled.of_block(1000))
        for statement in statements:
            rows = await filled._readers.rows(statement.sql, statement.parameters)
            found = [row[0] for row in rows if row[0] is not None]
            assert found == [one.id for one in expected]


def _plan(path: Path, statement: SearchStatement) -> str:
    with closing(sqlite3.connect(path)) as plain:
        plain.create_function("metadata_contains", 2, lambda value, part: True)
        rows = plain.execute("EXPLAIN QUERY PLAN " + statement.sql, statement.parameters)
        return "\n".join(row[3] for row in rows)


LOOKED_UP = [name for name, one in CRITERIA.items() if compile_search(one, SCANS[0]).expression]
WALKED = sorted(CRITERIA.keys() - LOOKED_UP)


@pytest.mark.parametrize("name", WALKED)
async def test_index_walk_is_ordered_without_sort(
    filled: SQLiteStorage, path: Path, name: str
) -> None:
    for scan in SCANS:
        plan = _plan(path, compile_search(CRITERIA[name], scan).whole)
        index = "session" if CRITERIA[name].session_id else "timestamp"
        assert f"USING INDEX idx_messages_{index}" in plan
        if name != "time":
            # Between messages with equal timestamps as well. A range of time is sought itself.
            assert ("(timestamp,rowid)" in plan) is (scan.after is not None)
        assert "FOR ORDER BY" not in plan
        probes = [line for line in plan.splitlines() if "messages_fts" in line]
        if "prefix" in name:
            # What begins with a prefix is put together once, not for each row.
            assert "LIST SUBQUERY" in plan
            assert "CORRELATED" not in plan
        else:
            # "=" says that FTS5 is asked for one row.
            assert all("VIRTUAL TABLE INDEX 0:=" in line for line in probes)


@pytest.mark.parametrize("name", LOOKED_UP)
async def test_lookup_starts_with_word_index(filled: SQLiteStorage, path: Path, name: str) -> None:
    for scan in SCANS:
        first, second, *_ = _plan(path, compile_search(CRITERIA[name], scan).whole).splitlines()
        assert "VIRTUAL TABLE INDEX" in first
        assert "USING INTEGER PRIMARY KEY" in second


@pytest.mark.parametrize("name", LOOKED_UP)
async def test_block_plan_joins_index_range_with_matches(
    filled: SQLiteStorage, path: Path, name: str
) -> None:
    index = "session" if CRITERIA[name].session_id else "timestamp"
    for scan in SCANS:
        plan = _plan(path, compile_search(CRITERIA[name], scan).of_block(1000))
        # No match outside the block's stretch is looked at, and no row outside the block.
        assert f"USING COVERING INDEX idx_messages_{index}" in plan
        assert re.search(r"messages_fts VIRTUAL TABLE INDEX 0:M\d+><", plan)
        walk = next((one for one in plan.splitlines() if " USING INDEX idx_messages" in one), None)
        if walk is None:
            # The matches of the block, and the page.
            assert "SEARCH m USING INTEGER PRIMARY KEY" in plan
            assert plan.count("FOR ORDER BY") == 2
        else:
            assert "(timestamp,rowid)>(?,?) AND (timestamp,rowid)<(?,?)" in walk
            # The ends of the block, and the page: matches themselves come in order.
            assert plan.count("FOR ORDER BY") == 3


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("at_the_end", [True, False])
async def test_frequent_matches_are_found_in_any_position(
    store: SQLiteStorage, path: Path, at_the_end: bool, newest_first: bool
) -> None:
    """Too few matches in the first block, or none; equal times; unordered times."""
    total, many = 3000, 1200
    drafts = [
        draft(
            f"m-{number:04}",
            "fox" if (number < total - many) == at_the_end else "dog",
            role="user" if number % 3 else "assistant",
            tags=("odd",) if number % 2 else ("even", "all"),
            session_id=f"s-{number % 7 % 2}",
            timestamp=NOW + (total - number if number % 2 else number) // 5 * 5,
        )
        for number in range(total)
    ]
    await store.bulk_save(drafts, OnConflict.REPLACE)
    everything = [message async for message in _every(store)]
    for criteria in (
        Criteria(parse_query("fox")),
        Criteria(parse_query("dog")),
        Criteria(parse_query("d*"), start=NOW + 100, end=NOW + 130),
        Criteria(parse_query("fox"), role="nobody"),
        Criteria(parse_query("fox"), role="user"),
        Criteria(parse_query("dog"), tags=("odd",), session_id="s-1"),
        Criteria(tags=("all",), start=NOW + 50, end=NOW + 2500),
        Criteria(parse_query("fox OR -dog"), tags=("even", "all")),
    ):
        matching = [one for one in everything if meets(one, criteria)]
        for limit in (7, 100):
            scan = Scan(newest_first, limit)
            page = await store.search(criteria, scan)
            expected = stretch(matching, scan)
            assert [one.id for one in page.messages] == [one.id for one in expected[:limit]]
            assert page.more == (len(expected) > limit)


async def _every(store: SQLiteStorage) -> AsyncIterator[Message]:
    after, more = "", True
    while more:
        page = await store.scan_ids(after, "z", 500)
        for message in page.messages:
            yield message
        after, more = page.messages[-1].id, page.more


def test_blocks_grow_up_to_lookup_cost() -> None:
    wanted, rows = 50, 1_000_000
    first = first_block(rows)
    # As dense as in the first one, what is wanted is in the next; and no more than needed.
    assert 50 * first / 10 < next_block(first, 10, rows, wanted) < 100 * first / 10
    # One that nearly sufficed is not followed by one that is hardly larger.
    assert next_block(first, 49, rows, wanted) == 2 * first
    assert next_block(first, 0, rows, wanted) == 64 * first
    assert not next_block(rows // 5, 49, rows, wanted)
    assert not first_block(3 * first)


def test_only_searched_prefix_is_merged() -> None:
    for text, merged in (("fo*", True), ("fox fo*", True), ("fox", False), ("-fo*", False)):
        criteria = Criteria(parse_query(text), tags=("t1",))
        assert compile_search(criteria, SCANS[0]).has_prefix is merged


def test_words_tags_and_metadata_use_lookup() -> None:
    for name in ("words", "phrase", "prefix", "or", "tags", "metadata", "tags excluding"):
        assert name in LOOKED_UP


_SEEK = (
    "idx_messages_session (session_id=? AND (timestamp,rowid)>(?,?) AND (timestamp,rowid)<(?,?))"
)
"""Seeks a position between messages with equal timestamps as well."""


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("session_oldest", _SEEK),
        ("session_newest", _SEEK),
        ("scan_ids", "sqlite_autoindex_messages_1"),
        ("get", "sqlite_autoindex_messages_1"),
        ("batch_get", "sqlite_autoindex_messages_1"),
        ("last_id", "sqlite_autoindex_messages_1"),
        ("scan_sequences", "INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
    ],
)
async def test_every_statement_uses_an_index(
    filled: SQLiteStorage, path: Path, name: str, index: str
) -> None:
    sql = QUERIES[name]
    count = sql.count("?") if "?1" not in sql else 6
    plan = _plan(path, SearchStatement(sql, ["[]"] * count))
    assert index in plan
    assert "FOR ORDER BY" not in plan
