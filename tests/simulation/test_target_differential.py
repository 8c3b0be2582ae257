"""The model of the target and PostgreSQL answer every sequence of calls alike."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from sagastore_server.search.parser import parse_query
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.model import OnConflict
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Criteria, Scan
from sagastore_server.storage.replication import (
    BackfillMark,
    Carried,
    Entry,
    MigrationTarget,
    TargetRecord,
)
from tests.simulation.differential import Steps, answer_of
from tests.support import strategies
from tests.support.drafts import NOW, draft
from tests.support.migration_ends import TARGETS, TargetPlace
from tests.support.replicating import (
    EXTRAS,
    FILES,
    LEASE,
    QUARANTINED,
    SOURCE,
    STRANGER,
    SUCCESSOR,
    message,
)

LAST_REVISION = 30
"""Above every revision that the source gave to a row here."""

FEW_IDS = ["a", "b", "ä", "\U0001f600"]

ids = st.sampled_from(FEW_IDS)
numbers = st.integers(0, 20)
leases = st.sampled_from([LEASE, LEASE, LEASE, SUCCESSOR, STRANGER])
phases = st.sampled_from([phase for phase in Phase if phase.writes_sqlite])
rows = st.builds(
    lambda key, revision, text, created: message(key, revision, text, created_at=created),
    ids,
    st.integers(1, 20),
    st.sampled_from(["one", "two running", "three"]),
    st.sampled_from([None, NOW]),
)
marks = st.builds(
    BackfillMark,
    st.sampled_from([BackfillState.PENDING, BackfillState.RUNNING, BackfillState.DONE]),
    st.booleans(),
    st.sampled_from(["", "a"]),
    st.sampled_from(["", "z"]),
    numbers,
    numbers,
)
carried = st.builds(
    Carried,
    st.lists(st.sampled_from(QUARANTINED), unique=True),
    st.lists(st.sampled_from(FILES), unique=True),
    st.lists(st.sampled_from(EXTRAS), unique=True),
)
drafts = st.builds(draft, ids, st.sampled_from(["one", "two running"]))


class Position(NamedTuple):
    """What a compare-and-set compares with: nothing, what is there, or something else."""

    kind: str
    other: Any


def positions(others: st.SearchStrategy[Any]) -> st.SearchStrategy[Position]:
    return st.builds(Position, st.sampled_from(["none", "right", "other"]), others)


@st.composite
def entries(draw: st.DrawFn) -> list[Entry]:
    """Draw entries in the order of their sequences."""
    found = []
    for sequence in sorted(draw(st.sets(st.integers(1, 20), max_size=5))):
        row = draw(rows)
        stored = draw(st.sampled_from([row, row, None]))
        buried = draw(st.integers(0, 20)) if stored is None or draw(st.booleans()) else 0
        forced = draw(st.sampled_from([False, False, True]))
        found.append(Entry(sequence, row.id, stored, buried, forced, NOW))
    return found


writes = st.one_of(
    st.tuples(st.just("save"), drafts, st.none() | numbers),
    st.tuples(st.just("delete"), ids, st.none() | numbers),
    st.tuples(st.just("bulk_save"), st.lists(drafts, max_size=4), st.sampled_from(OnConflict)),
)
steps = st.one_of(
    st.tuples(st.just("claim"), leases, st.sampled_from([SOURCE, SOURCE, "other"]), phases,
              st.booleans()),
    st.tuples(st.just("renew"), leases),
    st.tuples(st.just("release"), leases),
    st.tuples(st.just("set_phase"), leases, phases, st.integers(1, 9), numbers),
    st.tuples(st.just("apply"), leases, entries(), positions(numbers)),
    st.tuples(st.just("apply"), leases, entries(), positions(numbers)),
    st.tuples(st.just("copy"), leases, st.lists(rows, max_size=5), marks, positions(marks)),
    st.tuples(st.just("carry"), leases, carried, st.booleans()),
    st.tuples(st.just("write"), writes),
    st.tuples(st.just("expire")),
    st.tuples(st.just("reopen")),
)  # fmt: skip
scripts = st.lists(steps, min_size=1, max_size=12)


class _Pair:
    """Both targets, on contents of their own."""

    def __init__(self, places: Sequence[TargetPlace]) -> None:
        self.places = places
        self.steps = Steps()
        self.targets: list[MigrationTarget] = []

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
        self.steps.begin()
        match step:
            case ("expire",):
                await self.expire()
            case ("reopen",):
                await self.close()
                await self.open()
            case ("write", (name, *arguments)):
                # What a store without a schema says to a write is not promised.
                if (await self.targets[0].inspect()).schema_version:
                    await self.both(lambda one: getattr(one, name)(*arguments))
            case _:
                await self.replicate(step)
        await self.compare()

    async def replicate(self, step: tuple[Any, ...]) -> None:
        """Make a call that needs a lease, or gives one."""
        record = (await self.targets[0].inspect()).record
        match step:
            case ("claim", lease, source, phase, steal):
                await self.both(lambda one: one.claim(lease, source, phase, 2, steal=steal))
            case ("apply", lease, batch, position):
                after = _compared(position, record and record.applied)
                await self.both(lambda one: one.apply(lease, batch, after))
            case ("copy", lease, batch, mark, position):
                before = _compared(position, record and record.backfill)
                await self.both(lambda one: one.copy(lease, batch, mark, before))
            case ("carry", lease, batch, first):
                await self.both(lambda one: one.carry(lease, batch, first=first))
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
        real, model = [await place.tombstones() for place in self.places]
        assert model == real

    async def look(self) -> None:
        """Make every read that does not change much from step to step."""
        await self.both(lambda one: one.carried())
        await self.both(lambda one: one.indexes())
        await self.both(lambda one: one.count())
        await self.both(lambda one: one.quarantine_count())
        await self.both(lambda one: one.last_id())
        await self.both(lambda one: one.batch_get(FEW_IDS))
        await self.both(lambda one: one.get("a"))
        await self.both(lambda one: one.list_session("s-1", Scan(True, 3)))
        await self.both(lambda one: one.search(Criteria(parse_query("run")), Scan(False, 9)))

    async def finish(self) -> None:
        """Take the lease, whoever has it, and end the migration."""
        self.steps.begin()
        await self.expire()
        await self.both(lambda one: one.claim(LEASE, SOURCE, Phase.READ_POSTGRES, 4))
        await self.both(lambda one: one.build_index("idx_messages_session", _unheard))
        await self.both(lambda one: one.finish(LEASE, 5, LAST_REVISION))
        await self.compare()
        await self.look()


def _unheard(share: float) -> None:
    """Take no interest in the progress."""


def _compared(position: Position, right: Any) -> Any:
    if position.kind == "none":
        return None
    return right if position.kind == "right" else position.other


def _timeless(answer: Any) -> Any:
    """Return an answer without the seconds that are left of a lease."""
    if isinstance(answer, TargetRecord):
        return answer._replace(lease_seconds=answer.lease_seconds > 0)
    if isinstance(answer, tuple) and hasattr(answer, "record"):
        return (*answer[:-1], answer.record and _timeless(answer.record))
    return answer


async def _play(before: Sequence[str], script: list[Any], afterwards: list[Any]) -> None:
    async with TARGETS["postgresql"]() as real, TARGETS["model"]() as model:
        pair = _Pair([real, model])
        pair.steps.begin()
        if before:
            for place in pair.places:
                await place.use_before(["a"] if "stored" in before else [], ["b"])
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(pair.close)
            await pair.open()
            if not before:
                await pair.step(("claim", LEASE, SOURCE, Phase.DUAL_WRITE, False))
            for step in script:
                await pair.step(step)
            await pair.finish()
            for step in afterwards:
                await pair.step(step)


@settings(max_examples=25 if strategies.QUICK else 1000, deadline=None)
@given(
    before=st.sampled_from([[], [], [], ["buried"], ["stored"]]),
    script=scripts,
    afterwards=st.lists(steps | st.tuples(st.just("write"), writes), max_size=5),
)
async def test_any_sequence_of_calls_on_the_target(
    before: list[str], script: list[Any], afterwards: list[Any]
) -> None:
    await _play(before, script, afterwards)
