"""Compares every row of the two stores while both are written to, and repairs.

The verifier walks both stores by ranges of ids. A row that differs is no more than
suspected until it was looked at again, as ``comparing.Divergence`` tells, with the
journal having caught up: what is reported stays different. A row that changes faster
than it can be looked at is looked at until it holds still, or was seen equal once.

No transaction is held between two pages, and memory stays flat: what is under
suspicion is remembered by its id, and read again.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import NamedTuple, TypeVar

from sagastore_server.migration.diff import (
    Divergence,
    Reach,
    carried_mismatches,
    mismatch_of,
)
from sagastore_server.migration.tuning import DEFAULT_TUNING
from sagastore_server.runtime.supervisor import awaited
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.environment import SYSTEM_ENVIRONMENT, Clock
from sagastore_server.storage.errors import UnavailableError
from sagastore_server.storage.migration import Mismatch, Verification, VerifyProgress
from sagastore_server.storage.model import Message
from sagastore_server.storage.replication import AuxiliaryTally, MigrationSource, MigrationTarget

MOST_LISTED = 1000
"""Mismatches that are listed; all are counted."""

_LOOK_BYTES = 4 * 1024 * 1024
"""Bytes of rows that are looked at again in one go, by their size when they were last seen."""

_UNSEEN_BYTES = 16 * 1024
"""What a row counts for whose size is not known."""

_MANY = 2000
"""Rows under suspicion at which the walk waits until fewer are."""

_PROGRESS_EVERY = 0.25
"""Seconds between two reports at least."""

_REACH_SLICE = 5.0
"""Seconds for which the journal is waited for in one go."""

_RETRY_EVERY = 0.5
"""Seconds between two attempts to read a store that is away."""

_RESTLESS = 12
"""Looks after which a row that keeps changing is worth a line in the log."""

_log = logging.getLogger(__name__)
_by_id = attrgetter("id")
T = TypeVar("T")


class Verifier:
    """Compares a source with its target, once.

    Works while writes go on, as long as the journal is being applied. A store that is
    away for less than ``patience`` seconds is waited for.
    """

    def __init__(
        self,
        source: MigrationSource,
        target: MigrationTarget,
        reach: Reach,
        is_expected: Callable[[Message], bool],
        *,
        compare_carried: bool = False,
        recarry: Callable[[], Awaitable[None]] | None = None,
        patience: float = 60.0,
        page: int = DEFAULT_TUNING.verifier_page,
        clock: Clock = SYSTEM_ENVIRONMENT.clock,
    ) -> None:
        """Prepare to compare.

        Args:
            source: The truth.
            target: What should be the same.
            reach: Waits until the target has applied the source's journal.
            is_expected: Tells of a row of the source whether the target should have it
                by now; what the backfill has not copied yet is no mismatch.
            compare_carried: Quarantine, files and extra values have been carried, and
                are compared at the end.
            recarry: Carries them again, for a repair.
            patience: Seconds for which a store may be away, or the journal behind.
            page: Rows read of each store at once, and ids put back at once.
            clock: Tells the time.

        """
        self._source = source
        self._target = target
        self._is_expected = is_expected
        self._compare_carried = compare_carried
        self._recarry = recarry
        self._page = page
        self._clock = clock
        self._stores = _Patient(source, reach, patience, clock)
        self._result: Verification | None = None

    @property
    def result(self) -> Verification:
        """What the comparison came to.

        Raises:
            RuntimeError: It has not ended.

        """
        if self._result is None:
            raise RuntimeError("the verification has not ended")
        return self._result

    async def run(self, repair: bool) -> AsyncGenerator[VerifyProgress, None]:
        """Compare every field of every row that there is now; tell how far it is.

        With ``repair``, what stays different is put back into the journal, the source
        being right. Rows that the backfill has not copied yet are not compared, and not
        counted.

        Raises:
            UnavailableError: A store was away, or the journal behind, for too long;
                nothing is concluded.

        """
        began, revision = self._clock.now(), self._source.committed
        report = _Report(await self._total(), self._clock)
        suspects = self._suspects(report.take)
        walk = _Walk(self._stores, self._source, self._target, self._page)
        await walk.begin()
        yield report.progress()
        while suspects or not walk.ended:
            if not walk.ended:
                self._sift(await walk.window(), suspects, report)
            await suspects.work(wait=walk.ended or len(suspects) > _MANY)
            if repair:
                await self._requeue(report, self._page)
            if report.due:
                yield report.progress()
        if self._compare_carried:
            await self._check_carried(report, repair)
        if repair:
            await self._requeue(report, 1)
        self._result = Verification(
            began,
            self._clock.now(),
            report.compared,
            report.mismatch_count,
            report.repaired,
            revision,
        )
        yield report.progress(done=True)

    async def check(self, ids: Iterable[str]) -> list[Mismatch]:
        """Compare the rows with these ids; return those that stay different.

        Raises:
            UnavailableError: As ``run``.

        """
        found: list[Mismatch] = []
        suspects = self._suspects(found.append)
        following = iter(dict.fromkeys(ids))
        while some := list(islice(following, self._page)):
            for message_id in some:
                suspects.add(message_id, _UNSEEN_BYTES)
            await suspects.work(wait=len(suspects) > _MANY)
        while suspects:
            await suspects.work(wait=True)
        return found

    def _suspects(self, convict: Callable[[Mismatch], None]) -> _Suspects:
        return _Suspects(self._looked_at, convict, self._page, self._clock)

    async def _total(self) -> int:
        healths = await asyncio.gather(self._source.health(), self._target.health())
        return max(0, *(health.messages for health in healths))

    def _sift(self, window: list[_Pair], suspects: _Suspects, report: _Report) -> None:
        """Suspect the rows that differ."""
        for key, truth, copy in window:
            if self._is_awaited(truth, copy):
                continue
            report.compared += 1
            if truth != copy:
                suspects.add(key, _size(truth, copy))

    def _is_awaited(self, truth: Message | None, copy: Message | None) -> bool:
        """Tell whether the backfill has yet to copy the row."""
        return truth is not None and copy is None and not self._is_expected(truth)

    async def _looked_at(self, ids: Sequence[str]) -> list[_Look]:
        """Look at rows once, in the order that ``Divergence`` needs."""
        before = await self._stores.read(lambda: self._source.batch_get(ids))
        newest = max((row.revision for row in before.values()), default=0)
        await self._stores.caught_up(newest)
        copies = await self._stores.read(lambda: self._target.batch_get(ids))
        differing = [key for key in ids if before.get(key) != copies.get(key)]
        after = before
        if differing:
            after = await self._stores.read(lambda: self._source.batch_get(differing))
        looks = []
        for key in ids:
            truth, copy = before.get(key), copies.get(key)
            if self._is_awaited(truth, copy):
                looks.append(_Look(key, None, None, None))
            else:
                looks.append(_Look(key, truth, copy, after.get(key)))
        return looks

    async def _check_carried(self, report: _Report, repair: bool) -> None:
        suspicion = Divergence()
        while True:
            before = await self._stores.read(self._source.carried)
            await self._stores.caught_up(0)
            copy = await self._stores.read(self._target.carried)
            after = before if copy == before else await self._stores.read(self._source.carried)
            verdict = suspicion.look(before, copy, after)
            if verdict is not None:
                break
            await asyncio.sleep(suspicion.pause)
        if verdict:
            await self._report_carried(report, before, copy, repair)

    async def _report_carried(
        self, report: _Report, truth: AuxiliaryTally, copy: AuxiliaryTally, repair: bool
    ) -> None:
        kinds = list(carried_mismatches(truth, copy))
        for mismatch in kinds:
            report.note(mismatch)
        if repair and self._recarry is not None:
            await self._recarry()
            report.repaired += len(kinds)

    async def _requeue(self, report: _Report, at_least: int) -> None:
        """Put what differs back into the journal, once there is enough of it."""
        ids = report.to_repair
        while ids and len(ids) >= at_least:
            batch = ids[: self._page]
            await self._stores.read(partial(self._source.requeue, batch))
            del ids[: len(batch)]
            report.repaired += len(batch)


class _Pair(NamedTuple):
    """What both stores have under an id."""

    id: str
    truth: Message | None
    copy: Message | None


class _Look(NamedTuple):
    """What one look at a row saw."""

    id: str
    truth: Message | None
    copy: Message | None
    again: Message | None


class _Patient:
    """Reads stores that may be away for a while, and waits for the journal."""

    def __init__(
        self, source: MigrationSource, reach: Reach, patience: float, clock: Clock
    ) -> None:
        self._clock = clock
        self._source = source
        self._reach = reach
        self._patience = patience

    async def read(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call something that may be repeated, until it is answered."""
        began = self._clock.monotonic()
        while True:
            try:
                return await call()
            except UnavailableError:
                if self._clock.monotonic() - began > self._patience:
                    raise
            await asyncio.sleep(_RETRY_EVERY)

    async def caught_up(self, newest: int) -> None:
        """Wait until everything that is committed now, and ``newest``, has been applied.

        A deletion that was read shows no revision, and may be on disk long before it is known.
        """
        mark = max(await self.read(self._source.flush), newest)
        began = self._clock.monotonic()
        while not await self._reach(mark, min(_REACH_SLICE, self._patience)):
            if self._clock.monotonic() - began > self._patience:
                raise UnavailableError(
                    "the comparison was given up, and nothing is concluded: PostgreSQL has "
                    f"lacked changes that SQLite has for {self._patience:g} s; see that it runs, "
                    "and verify again"
                )
            await asyncio.sleep(0.01)  # Should it have answered at once.


class _Report:
    """What is told while it goes on."""

    def __init__(self, total: int, clock: Clock) -> None:
        self._clock = clock
        self.total = total
        self.compared = 0
        self.mismatch_count = 0
        self.repaired = 0
        self.to_repair: list[str] = []
        """Ids that differ and were not put back yet."""
        self._fresh: list[Mismatch] = []
        self._listed = 0
        self._next = 0.0

    def take(self, mismatch: Mismatch) -> None:
        """Note a row that differs."""
        self.note(mismatch)
        self.to_repair.append(mismatch.id)

    def note(self, mismatch: Mismatch) -> None:
        """Count, and list, something that differs."""
        self.mismatch_count += 1
        if self._listed < MOST_LISTED:
            self._listed += 1
            self._fresh.append(mismatch)

    @property
    def due(self) -> bool:
        """Whether it is time to tell."""
        return self._clock.monotonic() >= self._next

    def progress(self, *, done: bool = False) -> VerifyProgress:
        """Tell how far it is, with the mismatches since this was last asked."""
        self._next = self._clock.monotonic() + _PROGRESS_EVERY
        fresh, self._fresh = tuple(self._fresh), []
        total = max(self.total, self.compared)
        counts = self.mismatch_count, self.repaired
        return VerifyProgress(self.compared, total, fresh, *counts, done)


class _Suspect:
    """A row that differed when it was last seen."""

    __slots__ = ("due", "size", "suspicion")

    def __init__(self, size: int) -> None:
        self.suspicion = Divergence()
        self.size = size
        self.due = 0.0
        """When to look at it next."""


class _Suspects:
    """Rows that are looked at until they are found the same, or to stay different."""

    def __init__(
        self,
        look_at: Callable[[Sequence[str]], Awaitable[list[_Look]]],
        convict: Callable[[Mismatch], None],
        page: int,
        clock: Clock,
    ) -> None:
        self._page = page
        self._clock = clock
        self._look_at = look_at
        self._convict = convict
        self._all: dict[str, _Suspect] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, message_id: str, size: int) -> None:
        """Suspect a row."""
        self._all.setdefault(message_id, _Suspect(size))

    async def work(self, *, wait: bool) -> None:
        """Look once at each row that it is time for; ``wait`` until there is one."""
        if not self._all:
            return
        if wait:
            earliest = min(suspect.due for suspect in self._all.values())
            await asyncio.sleep(max(0.0, earliest - self._clock.monotonic()))
        now = self._clock.monotonic()
        due = [key for key, suspect in self._all.items() if suspect.due <= now]
        while due:
            group = self._group(due)
            for look in await self._look_at(group):
                self._judge(look)

    def _group(self, due: list[str]) -> list[str]:
        """Take from ``due`` as many as are read in one go."""
        room, taken = _LOOK_BYTES, 0
        while taken < min(len(due), self._page) and (room > 0 or not taken):
            room -= self._all[due[taken]].size
            taken += 1
        group = due[:taken]
        del due[:taken]
        return group

    def _judge(self, look: _Look) -> None:
        suspect = self._all[look.id]
        verdict = suspect.suspicion.look(look.truth, look.copy, look.again)
        if verdict is None:
            suspect.due = self._clock.monotonic() + suspect.suspicion.pause
            suspect.size = _size(look.truth, look.copy)
            if suspect.suspicion.looks == _RESTLESS:
                _log.info("message %r keeps changing; it is compared again and again", look.id)
            return
        del self._all[look.id]
        if verdict:
            self._convict(mismatch_of(look.id, look.truth, look.copy))


class _Walk:
    """Goes through both stores by id, a stretch of all ids at a time."""

    def __init__(
        self, stores: _Patient, source: StorageBackend, target: StorageBackend, page: int
    ) -> None:
        self._stores = stores
        self._truth = _Side(source, page)
        self._copy = _Side(target, page)
        self._sides = (self._truth, self._copy)

    async def begin(self) -> None:
        """Find out where the walk ends: what has a greater id is newer, and in the journal."""
        lasts = [await self._stores.read(side.store.last_id) for side in self._sides]
        upto = max((last for last in lasts if last is not None), default=None)
        for side in self._sides:
            side.upto = upto or ""
            side.read_all = upto is None

    @property
    def ended(self) -> bool:
        """Whether there is nothing left."""
        return all(side.read_all and not side.rows for side in self._sides)

    async def window(self) -> list[_Pair]:
        """Return the next rows, side by side where both stores have the id."""
        fills = [awaited(self._stores.read(side.fill)) for side in self._sides]
        try:
            await asyncio.gather(*fills)
        finally:
            for fill in fills:
                fill.cancel()
        bound = min(side.bound for side in self._sides)
        truths, copies = self._truth.take(bound), self._copy.take(bound)
        pairs = [_Pair(key, row, copies.pop(key, None)) for key, row in truths.items()]
        return [*pairs, *(_Pair(key, None, row) for key, row in copies.items())]


class _Side:
    """One store, as far as it was read."""

    def __init__(self, store: StorageBackend, page: int) -> None:
        self._page = page
        self.store = store
        self.upto = ""
        self.rows: list[Message] = []
        """Read, and not taken yet."""
        self.read_all = False
        self._after = ""

    async def fill(self) -> None:
        """Read on where nothing is left."""
        if self.rows or self.read_all:
            return
        page = await self.store.scan_ids(self._after, self.upto, self._page)
        self.rows = page.messages
        self.read_all = not (page.more and page.messages)
        if page.messages:
            self._after = page.messages[-1].id

    @property
    def bound(self) -> str:
        """The id up to which all that the store has was read."""
        return self.upto if self.read_all else self.rows[-1].id

    def take(self, bound: str) -> dict[str, Message]:
        """Take the rows up to an id."""
        # Python compares strings by code points, which is the order of their UTF-8 bytes.
        end = bisect_right(self.rows, bound, key=_by_id)
        taken = {row.id: row for row in self.rows[:end]}
        self.rows = self.rows[end:]
        return taken


def _size(truth: Message | None, copy: Message | None) -> int:
    return max((row.size for row in (truth, copy) if row is not None), default=0)
