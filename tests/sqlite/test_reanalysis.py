"""Analysis of a file by a newer version: while it is served, after crashes, for every change."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random

import pytest

from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.reanalysis import _store
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import CannotOpenError
from sagastore_server.storage.query import Criteria
from tests.support.backends import opened
from tests.support.drafts import draft, found, save_all
from tests.support.reanalysis import (
    FORMER,
    FORMER_TERM,
    Gate,
    analysed,
    reanalysis_ended,
    set_back_sqlite_analysis,
)

COUNT = 12
WORDS = ("alpha", "bravo", "charlie", "delta")


@pytest.fixture
def gate() -> Iterator[Gate]:
    with pytest.MonkeyPatch.context() as patch:
        yield Gate(patch)


async def _former(path: Path, contents: list[str]) -> None:
    """Create a file with these messages, as a server of the former version left it."""
    async with opened(lambda: SQLiteStorage(path)) as store:
        drafts = [
            draft(f"m-{number:02}", content, tags=("t",), session_id=None)
            for number, content in enumerate(contents)
        ]
        await save_all(store, drafts)
    set_back_sqlite_analysis(path)


def _check_index(path: Path) -> None:
    """Check that the index is sound, has every message once, and that no other one is left."""
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("INSERT INTO messages_fts (messages_fts) VALUES ('integrity-check')")
        plain.execute("CREATE VIRTUAL TABLE temp.v USING fts5vocab (main, messages_fts, instance)")
        (indexed,) = plain.execute("SELECT count(DISTINCT doc) FROM temp.v").fetchone()
        assert plain.execute("SELECT count(*) FROM messages").fetchone() == (indexed,)
        tables = plain.execute("SELECT name FROM sqlite_master WHERE name LIKE '%former%'")
        assert tables.fetchall() == []
        assert plain.execute("SELECT count(*) FROM reanalysed").fetchone() == (0,)


async def test_words_of_the_former_version_are_found_until_the_message_is_analysed(
    path: Path, gate: Gate
) -> None:
    await _former(path, list(FORMER))
    ids = [f"m-{number:02}" for number in range(len(FORMER))]
    async with opened(lambda: SQLiteStorage(path)) as store:
        assert store.reanalysis == (0, len(ids))
        assert await found(store, "disk full") == ["m-04"]
        assert await found(store, "acme") == []
        assert await found(store, FORMER_TERM) == ids
        assert await found(store, f"NOT {FORMER_TERM}") == []
        await gate.let_pass(1)
        assert store.reanalysis == (1, len(ids))
        assert await found(store, "acme") == await found(store, "gizmo") == ["m-00"]
        assert await found(store, FORMER_TERM) == ids[1:]
        assert await found(store, f"NOT {FORMER_TERM}") == ids[:1]
        gate.open()
        await analysed(store)
        for query, number in (("statement", 1), ("mc", 2), ("word2", 3), ("warning", 4), ("1", 5)):
            assert ids[number] in await found(store, query), query
        assert await found(store, FORMER_TERM) == []
        await reanalysis_ended(store)
    _check_index(path)


@pytest.mark.parametrize("seed", range(6))
async def test_changes_meanwhile_are_found_at_once(path: Path, gate: Gate, seed: int) -> None:
    """Every message is found by its words alone, wherever the analysis is; across restarts too."""
    chance = Random(seed)
    await _former(path, ["old text"] * COUNT)
    expected: dict[str, str] = {f"m-{number:02}": FORMER_TERM for number in range(COUNT)}
    fresh = 0
    for _ in range(3):
        async with opened(lambda: SQLiteStorage(path)) as store:
            for _ in range(12):
                key = chance.choice([*expected, f"n-{fresh}"])
                kind = chance.randrange(4)
                if kind == 0 and key in expected:
                    await store.delete(key)
                    del expected[key]
                elif kind == 1 and store.reanalysis is not None:
                    await gate.let_pass(1)
                else:
                    fresh += key not in expected
                    word = chance.choice(WORDS)
                    await store.save(draft(key, word, session_id=None))
                    expected[key] = word
                await _check_words(store, expected)
    gate.open()
    async with opened(lambda: SQLiteStorage(path)) as store:
        await reanalysis_ended(store)
        await _check_words(store, expected)
    _check_index(path)


async def _check_words(store: StorageBackend, expected: dict[str, str]) -> None:
    for word in WORDS:
        ids = sorted(key for key, content in expected.items() if content == word)
        assert sorted(await found(store, word)) == ids
        assert sorted(await found(store, f"-{word} {word}")) == []
    # The rest has either the term of the former version or the words of its content.
    former = await found(store, FORMER_TERM)
    current = await found(store, "old text")
    rest = sorted(key for key, content in expected.items() if content == FORMER_TERM)
    assert sorted([*former, *current]) == rest


async def test_unchanged_terms_keep_a_pending_message_in_the_former_index(
    path: Path, gate: Gate
) -> None:
    await _former(path, ["old text"] * 3)
    async with opened(lambda: SQLiteStorage(path)) as store:
        await store.save(draft("m-02", "old text", tags=("t",), role="tool", session_id=None))
        assert await found(store, FORMER_TERM) == ["m-00", "m-01", "m-02"]
        assert await found(store, Criteria(role="tool", tags=("t",))) == []
        gate.open()
        await reanalysis_ended(store)
        assert await found(store, "old") == ["m-00", "m-01", "m-02"]
        assert await found(store, Criteria(role="tool", tags=("t",))) == ["m-02"]
    _check_index(path)


async def test_search_that_has_begun_keeps_the_former_index(path: Path, gate: Gate) -> None:
    await _former(path, ["old text"])
    async with opened(lambda: SQLiteStorage(path)) as store:
        assert isinstance(store, SQLiteStorage)
        with store._reanalyser.searching() as both:
            assert both
            gate.open()
            await analysed(store)
            with closing(sqlite3.connect(path)) as plain:
                query = "SELECT count(*) FROM messages_fts_former_data WHERE id > 10"
                assert plain.execute(query).fetchone() != (0,)
        await reanalysis_ended(store)
    _check_index(path)


async def test_step_that_is_stored_twice_changes_nothing(path: Path, gate: Gate) -> None:
    """As after an error that is reported although the transaction was committed."""
    await _former(path, ["old text"] * 3)
    async with opened(lambda: SQLiteStorage(path)) as store:
        assert isinstance(store, SQLiteStorage)
        numbers = [(await store.get(f"m-0{number}")).sequence for number in range(3)]
        await gate.let_pass(2)
        again = partial(_store, entries=[(numbers[0], "old text", "", "")], upto=numbers[0])
        await store._open_writer().run_in_transaction(again)
        assert await found(store, FORMER_TERM) == ["m-02"]
        assert await found(store, "old text") == ["m-00", "m-01"]
        await store.delete("m-00")
        assert await found(store, "old text") == ["m-01"]
        gate.open()
        await reanalysis_ended(store)
    _check_index(path)


async def test_index_of_a_newer_version_is_refused(path: Path) -> None:
    async with opened(lambda: SQLiteStorage(path)):
        pass
    set_back_sqlite_analysis(path, 99)
    before = await asyncio.to_thread(path.read_bytes)
    with pytest.raises(CannotOpenError, match=r"analysis version 99, newer than 3.*run the server"):
        await SQLiteStorage(path).open()
    assert await asyncio.to_thread(path.read_bytes) == before


async def test_reanalysis_that_another_version_interrupts_begins_anew(
    path: Path, gate: Gate
) -> None:
    await _former(path, ["old text"] * 3)
    async with opened(lambda: SQLiteStorage(path)):
        await gate.let_pass(1)
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("UPDATE store_state SET value = 2 WHERE name = 'analysis'")
        plain.commit()
    gate.open()
    async with opened(lambda: SQLiteStorage(path)) as store:
        await reanalysis_ended(store)
        assert await found(store, "old text") == ["m-00", "m-01", "m-02"]
    _check_index(path)
