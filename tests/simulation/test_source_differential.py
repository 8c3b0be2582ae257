"""The model of the source and SQLite answer every sequence of calls alike."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.model import OnConflict
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Scan
from sagastore_server.storage.replication import (
    Carried,
    ExtraValue,
    FileRow,
    MigrationSource,
    MigrationState,
)
from tests.simulation.differential import Steps, answer_of
from tests.simulation.models.source_disk import SourceDisk
from tests.sqlite.sources import Content, content
from tests.support import strategies
from tests.support.drafts import NOW, draft
from tests.support.migration_ends import ModelSourcePlace, SQLitePlace
from tests.support.replicating import QUARANTINED

FILES = [
    FileRow(2, "f-ä", "n", "/p", "pdf", "text", "[]", 1 << 40, "2023-1-2", "{}", "x", "{}"),
    FileRow(5, "F-a", "", "", "", None, None, None, "", None, None, "{}"),
]
EXTRAS = [ExtraValue("m", "b", '{"value": 1.0}'), ExtraValue("M", "b", '{"value": "x"}')]
OLD = Carried(QUARANTINED, FILES, EXTRAS)

ids = st.sampled_from(["a", "b", "c", "ä", "\U0001f600"])
texts = st.sampled_from(["one", "two", "three"])
times = st.sampled_from([None, None, NOW, -5])
revisions = st.integers(0, 30)
drafts = st.builds(lambda key, text, time: draft(key, text, timestamp=time), ids, texts, times)
writes = st.one_of(
    st.tuples(st.just("save"), drafts, st.none() | st.integers(0, 12)),
    st.tuples(st.just("delete"), ids, st.none() | st.integers(0, 12)),
    st.tuples(st.just("bulk_save"), st.lists(drafts, max_size=4), st.sampled_from(OnConflict)),
)
groups = st.lists(st.tuples(writes, st.sampled_from([True, True, True, False])), min_size=1,
                  max_size=8)  # fmt: skip
"""Writes of one group, and whether the caller stays."""
states = st.builds(
    MigrationState,
    st.sampled_from([phase for phase in Phase if phase.writes_sqlite]),
    st.integers(1, 9),
    base=revisions,
    paused=st.booleans(),
)
steps = st.one_of(
    st.tuples(st.just("group"), groups),
    st.tuples(st.just("group"), groups),
    st.tuples(st.just("set_state"), states, st.none() | revisions),
    st.tuples(st.just("prune"), revisions),
    st.tuples(st.just("requeue"), st.lists(ids, max_size=4)),
    st.tuples(st.just("read"), revisions, st.integers(1, 5), ids),
    st.tuples(st.just("carried"), st.integers(0, 8), st.integers(1, 3)),
    st.tuples(st.just("reopen")),
)


def _write(source: MigrationSource, write: tuple[Any, ...]) -> Coroutine[Any, Any, object]:
    name, *arguments = write
    call: Coroutine[Any, Any, object] = getattr(source, name)(*arguments)
    return call


async def _group(
    source: MigrationSource, group: Sequence[tuple[tuple[Any, ...], bool]]
) -> list[object]:
    """Submit writes that share a transaction; callers that do not stay go before it begins."""
    may_go = threading.Event()
    holding: asyncio.Task[object] | None = None
    if isinstance(source, SQLiteSource):
        assert source._writer is not None
        holding = asyncio.create_task(source._writer.run_between_groups(lambda _: may_go.wait()))
    # The model begins no group before all tasks of one turn of the event loop have run.
    tasks = [asyncio.create_task(answer_of(_write(source, write))) for write, _ in group]
    # Each task runs until it waits for its answer; the held errand came first.
    await asyncio.sleep(0)
    for task, (_, stays) in zip(tasks, group, strict=True):
        if not stays:
            task.cancel()
    may_go.set()
    if holding is not None:
        await holding
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    return [type(one) if isinstance(one, BaseException) else one for one in outcomes]


class _Pair:
    """Both sources, on contents of their own."""

    def __init__(self, folder: Path) -> None:
        self.real = SQLitePlace(folder / "messages.db")
        self.model = ModelSourcePlace()
        self.steps = Steps()
        self.sources: list[MigrationSource] = []
        self.heard: list[list[int]] = []

    async def open(self) -> None:
        self.sources = [self.real.make(), self.model.make()]
        self.heard = [[], []]
        for source, heard in zip(self.sources, self.heard, strict=True):
            await source.open()
            source.on_commit(_hear(source, heard))

    async def close(self) -> None:
        for source in self.sources:
            await source.close()

    async def both(self, call: Callable[[MigrationSource], Awaitable[object]]) -> None:
        """Make one call on both, and compare the answers."""
        real, model = [self.steps.normal(await answer_of(call(one))) for one in self.sources]
        assert model == real

    async def step(self, step: tuple[Any, ...]) -> None:
        self.steps.begin()
        match step:
            case ("group", group):
                await self.both(lambda one: _group(one, group))
            case ("read", after, limit, key):
                await self.both(lambda one: one.journal(after, limit))
                await self.both(lambda one: one.journal_status(after))
                await self.both(lambda one: one.get(key))
                await self.both(lambda one: one.scan_ids("", key, limit))
                await self.both(lambda one: one.list_session("s-1", Scan(True, limit)))
                await self.both(lambda one: one.count())
            case ("carried", after, limit):
                await self.both(lambda one: one.set_aside_files())
                await self.both(lambda one: one.files(after, limit))
                await self.both(lambda one: one.extras(("M", "b"), limit))
                await self.both(lambda one: one.quarantine(after, limit))
                await self.both(lambda one: one.quarantine_count())
                await self.both(lambda one: one.carried())
            case ("reopen",):
                await self.close()
                await self.open()
            case (name, *arguments):
                await self.both(lambda one: getattr(one, name)(*arguments))
        await self.compare()

    async def compare(self) -> None:
        await self.both(lambda one: one.flush())
        await self.both(lambda one: one.state())
        assert self.heard[1] == self.heard[0]
        assert self.sources[1].committed == self.sources[0].committed
        assert _content(self.model.disk) == content(self.real.path)
        await self.both(lambda one: one.journal(0, 1000))
        await self.both(lambda one: one.journal_status(0))
        await self.both(lambda one: one.scan_ids("", "\U0010ffff", 100))

    async def archive(self) -> None:
        """End both, and look at what then can be called."""
        await self.both(_archive)
        await self.both(lambda one: one.state())
        await self.both(lambda one: one.count())
        await self.both(_archive)
        await self.close()
        self.sources = [self.real.make(), self.model.make()]
        await self.both(lambda one: one.open())
        await self.both(_archive)
        assert [one.is_new for one in self.sources] == [False, False]


def _hear(source: MigrationSource, heard: list[int]) -> Callable[[], None]:
    return lambda: heard.append(source.committed)


async def _archive(source: MigrationSource) -> None:
    await source.archive({})


def _content(disk: SourceDisk) -> Content:
    return Content(
        {key: one.revision for key, one in disk.messages.items()},
        dict(disk.buried),
        {row.sequence: (row.id, row.forced) for row in disk.journal},
        disk.revision,
    )


async def _play(folder: Path, script: Sequence[tuple[Any, ...]], legacy: bool) -> None:
    pair = _Pair(folder)
    pair.steps.begin()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(pair.close)
        await pair.open()
        if legacy:
            await pair.close()
            for place in (pair.real, pair.model):
                place.put(OLD, without_id=9)
            await pair.open()
        for step in script:
            await pair.step(step)
        await pair.archive()


@settings(max_examples=40 if strategies.QUICK else 2000, deadline=None)
@given(script=st.lists(steps, min_size=1, max_size=20), legacy=st.booleans())
def test_any_sequence_of_calls_on_the_source(script: list[tuple[Any, ...]], legacy: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_play(Path(folder), script, legacy))
