"""Journal: contains every change of a message and nothing else, for any order of operations.

The messages belong to no session; the contract suite covers the entries of sessions and files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.model import OnConflict
from tests.sqlite.sources import (
    DUAL_WRITE,
    SQLITE_ONLY,
    Content,
    begin_dual_write,
    content,
    in_one_group,
    opened_source,
)
from tests.support.drafts import draft, lone

ROOT = Path(__file__).parents[2]

ids = st.sampled_from(["a", "b", "c", "ä", "z-9"])
texts = st.sampled_from(["one", "two", "three"])
expected = st.none() | st.integers(0, 12)
writes = st.one_of(
    st.tuples(st.just("save"), ids, texts, expected),
    st.tuples(st.just("delete"), ids, expected),
    st.tuples(
        st.just("bulk"), st.lists(st.tuples(ids, texts), max_size=4), st.sampled_from(OnConflict)
    ),
)
steps = st.one_of(
    st.tuples(st.just("group"), st.lists(writes, min_size=1, max_size=8)),
    st.tuples(st.just("group"), st.lists(writes, min_size=1, max_size=8)),
    st.tuples(st.just("on"), st.none() | st.integers(0, 30)),
    st.tuples(st.just("off")),
    st.tuples(st.just("prune"), st.integers(0, 40)),
    st.tuples(st.just("requeue"), st.lists(ids, max_size=4)),
    st.tuples(st.just("reopen")),
)


def _write(source: SQLiteSource, write: tuple[Any, ...]) -> Coroutine[Any, Any, Any]:
    kind, *rest = write
    if kind == "save":
        key, text, if_revision = rest
        return source.save(lone(key, text), if_revision)
    if kind == "delete":
        return source.delete(*rest)
    drafts, on_conflict = rest
    return source.bulk_save([lone(key, text) for key, text in drafts], on_conflict)


class _Model:
    """Reference model of the journal."""

    def __init__(self) -> None:
        self.on = False
        self.pruned = 0
        self.entries: dict[int, tuple[str, bool]] = {}

    def changed(self, before: Content, after: Content) -> None:
        if not self.on:
            return
        for key, revision in after.revisions.items():
            was = before.messages.get(key), before.tombstones.get(key)
            if was != (after.messages.get(key), after.tombstones.get(key)):
                self.entries[revision] = (key, False)

    def switched(self, on: bool, rejournal_after: int | None, now: Content) -> None:
        if not on:
            self.entries = {}
        elif rejournal_after is not None:
            for changes in (now.messages, now.tombstones):
                for key, revision in changes.items():
                    if revision > rejournal_after:
                        self.entries.setdefault(revision, (key, False))
            self.pruned = rejournal_after
        elif not self.on:
            self.pruned = now.revision
        self.on = on

    def cut(self, upto: int) -> None:
        gone = [sequence for sequence in self.entries if sequence <= upto]
        self.pruned = max([self.pruned, *gone])
        for sequence in gone:
            del self.entries[sequence]


async def _play(path: Path, script: list[tuple[Any, ...]]) -> None:
    model = _Model()
    async with contextlib.AsyncExitStack() as stack:
        source = await stack.enter_async_context(opened_source(path))
        for step, *rest in script:
            before = content(path)
            if step == "group":
                outcomes = await in_one_group(source, [_write(source, one) for one in rest[0]])
                assert all(
                    isinstance(one, StorageError) or not isinstance(one, BaseException)
                    for one in outcomes
                )
                model.changed(before, content(path))
            elif step in {"on", "off"}:
                state = DUAL_WRITE if step == "on" else SQLITE_ONLY
                after = rest[0] if rest else None
                assert await source.set_state(state, after) == before.revision
                model.switched(step == "on", after, before)
            elif step == "prune":
                await source.prune(rest[0])
                model.cut(rest[0])
            elif step == "requeue":
                assert await source.requeue(rest[0]) == before.revision + len(rest[0])
                for sequence, key in enumerate(rest[0], before.revision + 1):
                    model.entries[sequence] = (key, True)
            else:
                await source.close()
                source = await stack.enter_async_context(opened_source(path))
            await _compare(source, model, content(path))


async def _compare(source: SQLiteSource, model: _Model, found: Content) -> None:
    assert found.journal == model.entries
    assert source.committed == found.revision
    entries = await source.journal(0, 1000)
    assert [(one.sequence, one.id, one.forced) for one in entries] == [
        (sequence, *model.entries[sequence]) for sequence in sorted(model.entries)
    ]
    for entry in entries:
        assert (entry.message and entry.message.revision) == found.messages.get(entry.id)
        assert entry.buried == found.tombstones.get(entry.id, 0)
    status = await source.journal_status(0)
    assert (status.rows, status.pruned) == (len(entries), model.pruned)
    assert status.oldest == (entries[0].written_at if entries else None)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, min_size=1, max_size=12))
def test_journal_contains_exactly_the_changes(script: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_play(Path(folder) / "messages.db", [("on", None), *script]))


async def test_group_adds_one_entry_per_message(path: Path) -> None:
    """Saved, deleted and saved again in one transaction: the last revision is journalled."""
    async with opened_source(path) as source:
        await source.save(lone("kept"))
        await source.set_state(DUAL_WRITE)
        outcomes = await in_one_group(
            source,
            [
                source.save(lone("a", "one")),
                source.save(lone("a", "two")),
                source.save(lone("a", "three"), 99),
                source.delete("a"),
                source.save(lone("a", "four")),
                source.save(lone("b", "once")),
                source.delete("b"),
                source.save(lone("kept")),
            ],
        )
        assert [isinstance(one, StorageError) for one in outcomes].count(True) == 1
        entries = await source.journal(0, 10)
        assert [entry[:2] for entry in entries] == [(5, "a"), (7, "b")]
        assert entries[0].message is not None
        assert (entries[0].message.content, entries[0].buried) == ("four", 4)
        assert (entries[1].message, entries[1].buried) == (None, 7)


async def test_disabled_journal_executes_no_statement(path: Path) -> None:
    async with opened_source(path) as source:
        assert source._connection is not None
        statements: list[str] = []
        source._connection.set_trace_callback(statements.append)
        await source.save(lone("a"))
        assert not [one for one in statements if "journal" in one]
        await source.set_state(DUAL_WRITE)
        statements.clear()
        await in_one_group(source, [source.save(lone(f"m{n}")) for n in range(5)])
        source._connection.set_trace_callback(None)
        assert len({one for one in statements if "INTO journal" in one}) == 1
        assert statements.count("COMMIT") == 1


async def test_rejected_row_leaves_no_entry(path: Path) -> None:
    async with opened_source(path) as source:
        await source.set_state(DUAL_WRITE)
        outcomes = await in_one_group(
            source,
            [
                source.save(lone("good")),
                source.save(draft("bad", timestamp=2**70, session_id=None)),
                source.save(lone("also good")),
            ],
        )
        assert [isinstance(one, BaseException) for one in outcomes] == [False, True, False]
        found = content(path)
        assert sorted(found.messages) == ["also good", "good"]
        assert {key: seq for seq, (key, _) in found.journal.items()} == found.messages


async def test_listeners_are_called_once_per_group(path: Path) -> None:
    async with opened_source(path) as source:
        heard: list[int] = []
        source.on_commit(lambda: heard.append(source.committed))
        await in_one_group(source, [source.save(lone(f"m{n}")) for n in range(50)])
        assert heard == [50]


def _fail() -> None:
    raise ZeroDivisionError


async def test_failing_listener_does_not_block_answers(path: Path) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, why: complaints.append(why))
    async with opened_source(path) as source:
        source.on_commit(_fail)
        assert (await source.save(lone("a"))).created
        assert source.committed == 1
    assert len(complaints) == 1


async def test_pruning_works_in_bounded_batches(path: Path) -> None:
    async with opened_source(path) as source:
        await source.set_state(DUAL_WRITE)
        for start in range(12):
            drafts = [lone(f"m{start:02}-{n:03}", "x") for n in range(1000)]
            await source.bulk_save(drafts, OnConflict.REPLACE)
        assert source._connection is not None
        statements: list[str] = []
        source._connection.set_trace_callback(statements.append)
        await source.prune(11_000)
        source._connection.set_trace_callback(None)
        assert statements.count("COMMIT") == 3
        assert (await source.journal_status(0))[::2] == (1000, 11_000)


# ------------------------------------------------------------------ crashes

_WRITER = """
import asyncio, sys
from pathlib import Path
from sagastore_server.sqlite.source import SQLiteSource
from tests.support.drafts import lone

async def main(path):
    source = SQLiteSource(path)
    await source.open()
    print("open", flush=True)
    async def work(name):
        for number in range(10**6):
            result = await source.save(lone(f"{name}-{number % 50}", f"text {number}"))
            print(result.revision, result.id, flush=True)
            if number % 7 == 3:
                await source.delete(result.id)
    await asyncio.gather(*(work(name) for name in "abcd"))

asyncio.run(main(Path(sys.argv[1])))
"""


def _acknowledged_until_killed(path: Path, count: int) -> list[tuple[int, str]]:
    """Return the revisions and ids that a writer had acknowledged when it was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        lines = [process.stdout.readline() for _ in range(count)]
        process.kill()
        lines += process.stdout.readlines()
    parts = [line.split() for line in lines if line.endswith("\n")]
    return [(int(revision), key) for revision, key in parts]


@pytest.mark.parametrize("count", [1, 40, 400])
def test_kill_keeps_changes_and_entries_consistent(path: Path, count: int) -> None:
    asyncio.run(begin_dual_write(path))
    acknowledged = _acknowledged_until_killed(path, count)
    assert len(acknowledged) >= count
    found = content(path)
    latest: dict[str, int] = {}
    for sequence, (key, _) in sorted(found.journal.items()):
        latest[key] = sequence
    assert latest == found.revisions
    assert max(found.revisions.values()) == found.revision
    for revision, key in acknowledged:
        assert latest[key] >= revision


async def test_failed_commit_stores_neither_change_nor_entry(path: Path) -> None:
    """Another program holds the write lock, so the whole group fails."""
    async with opened_source(path) as source:
        await source.set_state(DUAL_WRITE)
        await source.save(lone("before"))
        assert source._connection is not None
        source._connection.execute("PRAGMA busy_timeout = 1")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageError):
                await source.save(lone("refused"))
            with pytest.raises(StorageError):
                await source.requeue(["before"])
            with pytest.raises(StorageError):
                await source.set_state(SQLITE_ONLY)
            other.execute("ROLLBACK")
        assert content(path).journal == {1: ("before", False)}
        await source.save(lone("after"))
        assert content(path).journal == {1: ("before", False), 2: ("after", False)}
        assert (await source.state()) == DUAL_WRITE
