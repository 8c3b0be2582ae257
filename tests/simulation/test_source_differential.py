"""Differential test: the model of the source and SQLite give equal answers."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import given, note, settings
from hypothesis import strategies as st

from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.files import FileScan, NewFile
from sagastore_server.storage.model import OnConflict
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Scan
from sagastore_server.storage.replication import (
    AuxiliaryRows,
    ExtraValue,
    MigrationSource,
    MigrationState,
)
from sagastore_server.storage.sessions import RecordKind
from tests.simulation.differential import PHASES_OF_SEEDS, Steps, answer_of
from tests.simulation.models.source_disk import SourceDisk
from tests.sqlite.sources import Content, content
from tests.support import strategies
from tests.support.drafts import NOW, draft
from tests.support.migration_backends import ModelSourcePlace, SQLitePlace
from tests.support.migration_values import QUARANTINED

EXTRAS = [ExtraValue("m", "b", '{"value": 1.0}'), ExtraValue("M", "b", '{"value": "x"}')]
OLD = AuxiliaryRows(QUARANTINED, EXTRAS)
DUAL_WRITE = MigrationState(Phase.DUAL_WRITE, epoch=2)

FEW_IDS = ["a", "b", "c", "ä", "\U0001f600"]
PHASES = [phase for phase in Phase if phase.journals]


def _revision(draw: Random) -> int:
    """Return a revision that may exist by then."""
    return draw.randint(0, 30)


def _file(draw: Random) -> NewFile:
    key, tags = draw.choice(FEW_IDS), draw.choice([(), ("t",)])
    at = draw.choice([None, NOW, -5])
    return NewFile(key, "n", "/p", "pdf", draw.choice(["", "ä"]), tags, 1, at, "{}")


def _one_write(draw: Random) -> tuple[Any, ...]:
    expected = draw.choice([None, None, None, draw.randint(0, 12)])
    keys, texts, times = FEW_IDS, ["one", "two", "three"], [None, NOW, -5]
    drafts = [
        draft(draw.choice(keys), draw.choice(texts), timestamp=draw.choice(times)) for _ in range(4)
    ]
    return draw.choice(
        [
            ("save", drafts[0], expected),
            ("delete", draw.choice(keys), expected),
            ("bulk_save", drafts[: draw.randint(0, 4)], draw.choice(list(OnConflict))),
            ("save_file", _file(draw), expected),
            ("delete_file", draw.choice(keys), expected),
        ]
    )


def _some_writes(draw: Random) -> tuple[Any, ...]:
    """Return the writes of one group, and whether their callers stay."""
    return (
        "group",
        [(_one_write(draw), draw.random() < 0.8) for _ in range(draw.randint(1, 8))],
    )


def _set_state(draw: Random) -> tuple[Any, ...]:
    phase = draw.choice([*PHASES, Phase.SQLITE_ONLY])
    state = MigrationState(phase, draw.randint(1, 9), _revision(draw), paused=draw.random() < 0.5)
    return ("set_state", state, draw.choice([None, _revision(draw), 0]))


STEPS: dict[str, tuple[int, Callable[[Random], tuple[Any, ...]]]] = {
    "group": (6, _some_writes),
    "set_state": (2, _set_state),
    "prune": (2, lambda draw: ("prune", _revision(draw))),
    "requeue": (2, lambda draw: ("requeue", draw.choices(FEW_IDS, k=draw.randint(0, 3)),
                                 draw.choice(list(RecordKind)))),
    "records": (1, lambda draw: ("journal_records",)),
    "read": (2, lambda draw: ("read", _revision(draw), draw.randint(1, 5), draw.choice(FEW_IDS))),
    "carried": (1, lambda draw: ("carried", draw.randint(0, 8), draw.randint(1, 3))),
    "reopen": (1, lambda draw: ("reopen",)),
}  # fmt: skip
"""Relative frequency of each kind of step, and the function that draws it."""


def _script(seed: int) -> list[tuple[Any, ...]]:
    """Draw steps from a seed; values drawn by Hypothesis itself are too similar for so few
    examples.
    """
    draw = Random(seed)
    names = draw.choices(list(STEPS), [weight for weight, _ in STEPS.values()], k=20)
    # Otherwise many scripts would have no journal.
    return [("set_state", DUAL_WRITE, None), *(STEPS[name][1](draw) for name in names)]


def _write(source: MigrationSource, write: tuple[Any, ...]) -> Coroutine[Any, Any, object]:
    name, *arguments = write
    call: Coroutine[Any, Any, object] = getattr(source, name)(*arguments)
    return call


async def _answered(source: MigrationSource, call: Awaitable[object]) -> tuple[object, int]:
    """Return the answer of a call, and the committed revision at that time."""
    return await answer_of(call), source.committed


async def _group(
    source: MigrationSource, group: Sequence[tuple[tuple[Any, ...], bool]]
) -> list[object]:
    """Submit writes that share a transaction, and flush.

    Callers that do not stay are cancelled before the transaction begins.
    """
    may_go = threading.Event()
    holding: asyncio.Task[object] | None = None
    if isinstance(source, SQLiteSource):
        assert source._writer is not None
        holding = asyncio.create_task(source._writer.run_between_groups(lambda _: may_go.wait()))
    # The model begins no group before all tasks of one loop iteration have run.
    tasks = [asyncio.create_task(_answered(source, _write(source, write))) for write, _ in group]
    flush = asyncio.create_task(_answered(source, source.flush()))
    # Each task runs until it waits for its answer; the held task came first.
    await asyncio.sleep(0)
    for task, (_, stays) in zip(tasks, group, strict=True):
        if not stays:
            task.cancel()
    may_go.set()
    if holding is not None:
        await holding
    outcomes = await asyncio.gather(*tasks, flush, return_exceptions=True)
    return [type(one) if isinstance(one, BaseException) else one for one in outcomes]


class _Pair:
    """Both sources, with separate contents."""

    def __init__(self, folder: Path) -> None:
        self.real = SQLitePlace(folder / "messages.db")
        self.model = ModelSourcePlace()
        self.steps = Steps()
        self.sources: list[MigrationSource] = []
        self.revisions_seen: list[list[int]] = []

    async def open(self) -> None:
        self.sources = [self.real.make(), self.model.make()]
        self.revisions_seen = [[], []]
        for source, revisions_seen in zip(self.sources, self.revisions_seen, strict=True):
            await source.open()
            source.on_commit(_listener(source, revisions_seen))

    async def close(self) -> None:
        for source in self.sources:
            await source.close()

    async def both(self, call: Callable[[MigrationSource], Awaitable[object]]) -> None:
        """Make one call on both and compare the answers."""
        real, model = [self.steps.normal(await answer_of(call(one))) for one in self.sources]
        assert model == real

    async def step(self, step: tuple[Any, ...]) -> None:
        note(f"{step}")
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
                await self.both(lambda one: one.files_by_id(FEW_IDS))
                await self.both(lambda one: one.scan_files("", key, limit))
                await self.both(lambda one: one.list_files(FileScan(limit)))
                await self.both(lambda one: one.last_file())
                await self.both(lambda one: one.count_files())
            case ("carried", after, limit):
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
        assert self.revisions_seen[1] == self.revisions_seen[0]
        assert self.sources[1].committed == self.sources[0].committed
        assert _content(self.model.disk) == content(self.real.path)
        await self.both(lambda one: one.journal(0, 1000))
        await self.both(lambda one: one.journal_status(0))
        await self.both(lambda one: one.scan_ids("", "\U0010ffff", 100))

    async def archive(self) -> None:
        """Archive both, and compare the calls that remain possible."""
        await self.both(_archive)
        await self.both(lambda one: one.state())
        await self.both(lambda one: one.count())
        await self.both(_archive)
        await self.close()
        self.sources = [self.real.make(), self.model.make()]
        await self.both(lambda one: one.open())
        await self.both(_archive)
        assert [one.is_new for one in self.sources] == [False, False]


def _listener(source: MigrationSource, revisions_seen: list[int]) -> Callable[[], None]:
    return lambda: revisions_seen.append(source.committed)


async def _archive(source: MigrationSource) -> None:
    await source.archive({})


def _content(disk: SourceDisk) -> Content:
    return Content(
        {key: one.revision for key, one in disk.messages.items()},
        dict(disk.buried),
        {row.sequence: (row.id, row.forced) for row in disk.journal},
        disk.revision,
        {key: one.revision for key, one in disk.files.items()},
        dict(disk.buried_files),
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
                place.put(OLD)
            await pair.open()
        for step in script:
            await pair.step(step)
        await pair.archive()


@settings(max_examples=30 if strategies.QUICK else 2000, deadline=None, phases=PHASES_OF_SEEDS)
@given(seed=st.integers(0, 2**32 - 1), legacy=st.booleans())
def test_source_model_agrees_with_sqlite(seed: int, legacy: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_play(Path(folder), _script(seed), legacy))
