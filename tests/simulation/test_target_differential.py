"""Differential test: the model of the target and PostgreSQL give equal answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from hypothesis import example, given, note, settings
from hypothesis import strategies as st

from sagastore_server.search.parser import parse_query
from sagastore_server.storage.files import FileScan, NewFile
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.model import Message, OnConflict
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Criteria, Scan
from sagastore_server.storage.replication import (
    AuxiliaryRows,
    BackfillMark,
    Entry,
    Lease,
    MigrationTarget,
    TargetRecord,
)
from sagastore_server.storage.sessions import RecordKind
from tests.simulation.differential import PHASES_OF_SEEDS, Steps, answer_of
from tests.support import strategies
from tests.support.drafts import NOW, draft
from tests.support.migration_backends import TARGETS, TargetPlace
from tests.support.migration_values import (
    EXTRAS,
    LEASE,
    OTHER_LEASE,
    QUARANTINED,
    SOURCE,
    SUCCESSOR,
    file_record,
    message,
)

LAST_REVISION = 30
"""Greater than every revision of a row here."""

FEW_IDS = ["a", "b", "ä", "\U0001f600"]

HOLDER = Lease("current", "holder")
"""Placeholder for the current lease at a step."""

PHASES = [phase for phase in Phase if phase.writes_sqlite]
STATES = [BackfillState.PENDING, BackfillState.RUNNING, BackfillState.DONE]


class Position(NamedTuple):
    """Expected value of a compare-and-set: none, the current value, or another one."""

    kind: str
    other: Any


def _position(draw: Random, other: Any) -> Position:
    return Position(draw.choice(["none", "none", "right", "right", "other"]), other)


def _lease(draw: Random) -> Lease:
    return draw.choice([HOLDER] * 12 + [LEASE, SUCCESSOR, OTHER_LEASE])


def _row(draw: Random) -> Message:
    text = draw.choice(["one", "two running", "three"])
    created = draw.choice([None, NOW])
    id, revision = draw.choice(FEW_IDS), draw.randint(1, 20)
    # No two ids share a sequence, which orders equal timestamps.
    sequence = len(FEW_IDS) * revision + FEW_IDS.index(id)
    return message(id, revision, text, created_at=created, sequence=sequence)


def _file_entry(draw: Random, sequence: int) -> Entry:
    record = file_record(draw.choice(FEW_IDS), draw.randint(1, 20), file_size=draw.randint(0, 2))
    stored = draw.choice([record, record, None])
    buried = draw.randint(0, 20) if stored is None or draw.random() < 0.4 else 0
    values = (None, buried, draw.random() < 0.2, NOW, RecordKind.FILE)
    return Entry(sequence, record.id, *values, None, stored)


def _entries(draw: Random) -> list[Entry]:
    found = []
    for sequence in sorted(draw.sample(range(1, 21), draw.randint(0, 6))):
        if draw.random() < 0.3:
            found.append(_file_entry(draw, sequence))
            continue
        row = _row(draw)
        stored = draw.choice([row, row, None])
        buried = draw.randint(0, 20) if stored is None or draw.random() < 0.4 else 0
        found.append(Entry(sequence, row.id, stored, buried, draw.random() < 0.2, NOW))
    return found


def _mark(draw: Random) -> BackfillMark:
    cursor, upto = draw.choice(["", "a"]), draw.choice(["", "z"])
    return BackfillMark(draw.choice(STATES), draw.random() < 0.5, cursor, upto, 1, 2)


def _carried(draw: Random) -> AuxiliaryRows:
    kinds: list[list[Any]] = [QUARANTINED, EXTRAS]
    return AuxiliaryRows(*(draw.sample(kind, draw.randint(0, len(kind))) for kind in kinds))


def _write(draw: Random) -> tuple[Any, ...]:
    expected = draw.choice([None, None, 0, draw.randint(1, 40)])
    drafts = [draft(draw.choice(FEW_IDS), draw.choice(["one", "two"])) for _ in range(3)]
    return draw.choice(
        [
            ("save", drafts[0], expected),
            ("delete", draw.choice(FEW_IDS), expected),
            ("bulk_save", drafts[: draw.randint(0, 3)], draw.choice(list(OnConflict))),
            ("save_file", NewFile("a", "n", "/p", "pdf", "", (), 1, NOW, "{}"), expected),
            ("delete_file", draw.choice(FEW_IDS), expected),
        ]
    )


def _claim(draw: Random) -> tuple[Any, ...]:
    lease = draw.choice([HOLDER, LEASE, SUCCESSOR, OTHER_LEASE])
    source = draw.choice([SOURCE, SOURCE, SOURCE, "other"])
    return ("claim", lease, source, draw.choice(PHASES), draw.random() < 0.5)


STEPS: dict[str, tuple[int, Callable[[Random], tuple[Any, ...]]]] = {
    "apply": (8, lambda draw: ("apply", _lease(draw), _entries(draw),
                               _position(draw, draw.randint(0, 20)))),
    "copy": (4, lambda draw: ("copy", _lease(draw), [_row(draw) for _ in range(4)], _mark(draw),
                              _position(draw, _mark(draw)), draw.choice([0, 0, 8]))),
    "carry": (2, lambda draw: ("carry", _lease(draw), _carried(draw), draw.random() < 0.3,
                               _mark(draw), _position(draw, _mark(draw)))),
    "claim": (2, _claim),
    "write": (2, lambda draw: ("write", _write(draw))),
    "set_phase": (1, lambda draw: ("set_phase", _lease(draw), draw.choice(PHASES),
                                   draw.randint(1, 9), draw.randint(0, 20))),
    "renew": (1, lambda draw: ("renew", _lease(draw))),
    "release": (1, lambda draw: ("release", _lease(draw))),
    "expire": (1, lambda draw: ("expire",)),
    "reopen": (1, lambda draw: ("reopen",)),
}  # fmt: skip
"""Relative frequency of each kind of step, and the function that draws it."""


class _Script(NamedTuple):
    """Script that runs on both targets."""

    before: list[str]
    """Ids stored, and ids deleted, before the migration."""
    steps: list[tuple[Any, ...]]
    afterwards: list[tuple[Any, ...]]
    """Steps after ``finish``."""


def _script(seed: int) -> _Script:
    """Draw a script from a seed; values drawn by Hypothesis itself are too similar for so few
    examples.
    """
    draw = Random(seed)
    stored = draw.random() < 0.1
    names = draw.choices(list(STEPS), [weight for weight, _ in STEPS.values()], k=18)
    steps = [STEPS[name][1](draw) for name in names]
    writes = [("write", _write(draw)) for _ in range(3)]
    return _Script(
        ["a"] if stored else [], steps[:3] if stored else steps[:-2], writes + steps[-2:]
    )


class _Pair:
    """Both targets, with separate contents."""

    def __init__(self, places: Sequence[TargetPlace]) -> None:
        self.places = places
        self.steps = Steps()
        self.targets: list[MigrationTarget] = []
        self.steps.begin()

    async def open(self) -> None:
        self.targets = [place.make() for place in self.places]
        await asyncio.gather(*[target.open() for target in self.targets])

    async def close(self) -> None:
        await asyncio.gather(*[target.close() for target in self.targets])

    async def both(self, call: Callable[[MigrationTarget], Awaitable[object]]) -> object:
        """Make one call on both, compare the answers, and return the answer."""
        answers = await asyncio.gather(*[answer_of(call(one)) for one in self.targets])
        real, model = [self.steps.normal(_timeless(one)) for one in answers]
        assert model == real
        return answers[0]

    async def step(self, step: tuple[Any, ...]) -> None:
        note(f"{step}")
        self.steps.begin()
        match step:
            case ("expire",):
                await self.expire()
            case ("reopen",):
                await self.close()
                await self.open()
            case ("write", (name, *arguments)):
                # The error of a write to a store without a schema is unspecified.
                if (await self.targets[0].inspect()).schema_version:
                    await self.both(lambda one: getattr(one, name)(*arguments))
            case _:
                await self.replicate(step)
        await self.compare()

    async def replicate(self, step: tuple[Any, ...]) -> None:
        """Make a call that needs or grants a lease."""
        record = (await self.targets[0].inspect()).record
        if record is None or not record.session:
            # Only a claim has an effect then.
            await self.both(lambda one: one.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2))
            return
        step = tuple(Lease(*record[3:5]) if one is HOLDER else one for one in step)
        match step:
            case ("claim", lease, source, phase, steal):
                await self.both(lambda one: one.claim(lease, source, phase, 2, steal=steal))
            case ("apply", lease, batch, position):
                after = _compared(position, record.applied)
                await self.both(lambda one: one.apply(lease, batch, after))
            case ("copy", lease, batch, mark, position, least):
                before = _compared(position, record.backfill)
                await self.both(lambda one: one.copy(lease, batch, mark, before, least))
            case ("carry", lease, batch, first, mark, position):
                before = _compared(position, record.backfill)
                await self.both(lambda one: one.carry(lease, batch, mark, before, first=first))
            case (name, *arguments):
                await self.both(lambda one: getattr(one, name)(*arguments))

    async def expire(self) -> None:
        if (await self.targets[0].inspect()).record is not None:
            await asyncio.gather(*[place.expire_lease() for place in self.places])

    async def compare(self) -> None:
        found = await self.both(lambda one: one.inspect())
        if isinstance(found, tuple) and not found[0]:
            return
        await self.both(lambda one: one.scan_ids("", "\U0010ffff", 100))
        await self.both(lambda one: one.quarantine(0, 100))
        await self.both(lambda one: one.scan_files("", "\U0010ffff", 100))
        real, model = [await place.tombstones() for place in self.places]
        assert model == real

    async def look(self) -> None:
        """Make every read whose answer changes little from step to step."""
        await self.both(lambda one: one.carried())
        await self.both(lambda one: one.indexes())
        await self.both(lambda one: one.count())
        await self.both(lambda one: one.quarantine_count())
        await self.both(lambda one: one.last_id())
        await self.both(lambda one: one.batch_get(FEW_IDS))
        await self.both(lambda one: one.get("a"))
        await self.both(lambda one: one.get_file("a"))
        await self.both(lambda one: one.list_files(FileScan(3, None, ("t",))))
        await self.both(lambda one: one.last_file())
        await self.both(lambda one: one.count_files())
        await self.both(lambda one: one.list_session("s-1", Scan(True, 3)))
        await self.both(lambda one: one.search(Criteria(parse_query("run")), Scan(False, 9)))

    async def finish(self) -> None:
        """Steal the lease and end the migration."""
        self.steps.begin()
        await self.expire()
        await self.both(lambda one: one.claim(LEASE, SOURCE, Phase.READ_POSTGRES, 4))
        await self.both(lambda one: one.build_index("idx_messages_session", _unheard))
        await self.both(lambda one: one.finish(LEASE, 5, LAST_REVISION))
        await self.compare()
        await self.look()


def _unheard(share: float) -> None:
    """Ignore the progress."""


def _compared(position: Position, right: Any) -> Any:
    if position.kind == "none":
        return None
    return right if position.kind == "right" else position.other


def _timeless(answer: Any) -> Any:
    """Return an answer without the remaining seconds of a lease."""
    if isinstance(answer, TargetRecord):
        return answer._replace(lease_seconds=answer.lease_seconds > 0)
    if isinstance(answer, tuple) and hasattr(answer, "record"):
        return (*answer[:-1], answer.record and _timeless(answer.record))
    return answer


async def _play(script: _Script) -> None:
    async with TARGETS["postgresql"]() as real, TARGETS["model"]() as model:
        pair = _Pair([real, model])
        for place in pair.places:
            await place.use_before(script.before, ["b"])
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(pair.close)
            await pair.open()
            for step in script.steps:
                await pair.step(step)
            await pair.finish()
            for step in script.afterwards:
                await pair.step(step)


@settings(max_examples=15 if strategies.QUICK else 1000, deadline=None, phases=PHASES_OF_SEEDS)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=9062590)  # A deletion without a tombstone after a forced entry, in one batch.
async def test_target_model_agrees_with_postgresql(seed: int) -> None:
    await _play(_script(seed))
