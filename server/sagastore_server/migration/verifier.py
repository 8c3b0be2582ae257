"""Verifier: compares every row of both stores during writes, and repairs differences.

The verifier scans both stores by ranges of keys: the messages, the sessions, and then the files. A
row that differs becomes a suspect, and is observed again with the journal applied, as
`diff.Divergence` requires: only lasting differences are reported. A row that changes faster than it
can be observed is observed until it is stable, or was equal once. If that takes long, as for a
session with many writers, the row is read many times in turn from both stores: the target must show
a state that the source had meanwhile.

No transaction stays open between two pages, and memory is bounded: a suspect is stored by its id,
and read again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

from sagastore_server.migration.diff import (
    Divergence,
    Reach,
    carried_mismatches,
    mismatch_of,
)
from sagastore_server.migration.records import ALL, MESSAGES, Records, Row
from sagastore_server.migration.tuning import DEFAULT_TUNING
from sagastore_server.migration.walk import Pair, Walk
from sagastore_server.storage.environment import SYSTEM_ENVIRONMENT, Clock
from sagastore_server.storage.errors import UnavailableError
from sagastore_server.storage.migration import Mismatch, Verification, VerifyProgress
from sagastore_server.storage.replication import (
    AuxiliaryTally,
    MigrationSource,
    MigrationTarget,
)
from sagastore_server.storage.sessions import RecordKind

MOST_LISTED = 1000
"""Mismatches listed at most; all are counted."""

_LOOK_BYTES = 4 * 1024 * 1024
"""Bytes of suspects observed together, by their last known size."""

_UNSEEN_BYTES = 16 * 1024
"""Assumed bytes of a row of unknown size."""

_MANY = 2000
"""Suspects at which the scan waits until there are fewer."""

_PROGRESS_EVERY = 0.25
"""Seconds between two progress reports at least."""

_REACH_SLICE = 5.0
"""Seconds of one wait for the journal."""

_RETRY_EVERY = 0.5
"""Seconds between attempts to read an unavailable store."""

_WATCHED = 3
"""Observations after which a row that keeps changing is read many times."""

_READS = 50
"""Reads of such a row from each store, at most."""

_RESTLESS = 12
"""Observations after which a row that keeps changing is logged."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Verifier:
    """Compares a source with its target, once.

    Works during writes, as long as the journal is applied. Waits up to ``patience`` seconds for
    an unavailable store.
    """

    def __init__(
        self,
        source: MigrationSource,
        target: MigrationTarget,
        reach: Reach,
        is_expected: Callable[[Row], bool],
        *,
        compare_carried: bool = False,
        recarry: Callable[[], Awaitable[None]] | None = None,
        patience: float = 60.0,
        page: int = DEFAULT_TUNING.verifier_page,
        clock: Clock = SYSTEM_ENVIRONMENT.clock,
    ) -> None:
        """Prepare to compare.

        Args:
            source: The authoritative store.
            target: The store that should be equal.
            reach: Waits until the target has applied the source's journal.
            is_expected: Returns whether the target should have a row of the source by now; a
                row that the backfill has not copied yet is no mismatch.
            compare_carried: Whether the auxiliary rows have been copied, and are compared at
                the end.
            recarry: Copies them again, for a repair.
            patience: Seconds for which a store may be unavailable, or the journal behind.
            page: Rows read from each store at once, and ids requeued at once.
            clock: The clock.

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
        """The result of the comparison.

        Raises:
            RuntimeError: The comparison has not ended.

        """
        if self._result is None:
            raise RuntimeError("the verification has not ended")
        return self._result

    async def run(self, repair: bool) -> AsyncGenerator[VerifyProgress, None]:
        """Compare every field of every row that exists now, and yield the progress.

        With ``repair``, lasting differences are added to the journal again; the source is
        authoritative. Rows that the backfill has not copied yet are neither compared nor counted.

        Raises:
            UnavailableError: A store was unavailable, or the journal behind, for too long; there
                is no result.

        """
        began, revision = self._clock.now(), self._source.committed
        report = _Report(await self._total(), self._clock)
        yield report.progress()
        for records in ALL:
            async for progress in self._compare(records, report, repair):
                yield progress
        if self._compare_carried:
            await self._check_carried(report, repair)
        self._result = Verification(
            began,
            self._clock.now(),
            report.compared,
            report.mismatch_count,
            report.repaired,
            revision,
        )
        yield report.progress(done=True)

    async def _compare(
        self, records: Records, report: _Report, repair: bool
    ) -> AsyncGenerator[VerifyProgress, None]:
        """Compare the rows of one kind, and yield the progress."""
        to_repair: list[str] = []

        def convict(key: str, mismatch: Mismatch) -> None:
            report.note(mismatch)
            to_repair.append(key)

        suspects = self._suspects(records, convict)
        walk = Walk(self._stores, self._source, self._target, records, self._page)
        await walk.begin()
        while suspects or not walk.ended:
            if not walk.ended:
                window = [pair for pair in await walk.window() if not self._is_awaited(pair)]
                report.compared += len(window) if records is MESSAGES else 0
                self._sift(window, suspects)
            await suspects.work(wait=walk.ended or len(suspects) > _MANY)
            if repair:
                await self._requeue(records.kind, to_repair, report, self._page)
            if report.due:
                yield report.progress()
        if repair:
            await self._requeue(records.kind, to_repair, report, 1)

    async def check(self, keys: Iterable[tuple[RecordKind, str]]) -> list[Mismatch]:
        """Compare the rows with these keys; return the lasting differences.

        Raises:
            UnavailableError: As ``run``.

        """
        found: list[Mismatch] = []
        wanted = list(dict.fromkeys(keys))
        for records in ALL:
            suspects = self._suspects(records, lambda _, mismatch: found.append(mismatch))
            following = (key for kind, key in wanted if kind is records.kind)
            while some := list(islice(following, self._page)):
                for key in some:
                    suspects.add(key, _UNSEEN_BYTES)
                await suspects.work(wait=len(suspects) > _MANY)
            while suspects:
                await suspects.work(wait=True)
        return found

    def _suspects(self, records: Records, convict: Callable[[str, Mismatch], None]) -> _Suspects:
        return _Suspects(
            partial(self._looked_at, records), records, convict, self._page, self._clock
        )

    async def _total(self) -> int:
        healths = await asyncio.gather(self._source.health(), self._target.health())
        return max(0, *(health.messages for health in healths))

    @staticmethod
    def _sift(window: list[Pair], suspects: _Suspects) -> None:
        """Add the rows that differ to the suspects."""
        for key, truth, copy in window:
            if truth != copy:
                suspects.add(key, _size(truth, copy))

    def _is_awaited(self, pair: Pair) -> bool:
        """Return whether the backfill has yet to copy the row."""
        _, truth, copy = pair
        return truth is not None and copy is None and not self._is_expected(truth)

    async def _looked_at(
        self, records: Records, keys: Sequence[str], restless: Collection[str]
    ) -> list[_Look]:
        """Observe rows once, as ``Divergence`` requires; the restless ones many times."""
        before = await self._stores.read(lambda: records.fetch(self._source, keys))
        newest = max((row.revision for row in before.values()), default=0)
        await self._stores.caught_up(newest)
        copies = await self._stores.read(lambda: records.fetch(self._target, keys))
        differing = [key for key in keys if before.get(key) != copies.get(key)]
        after = before
        if differing:
            after = await self._stores.read(lambda: records.fetch(self._source, differing))
        watched = [
            key for key in differing if key in restless and before.get(key) != after.get(key)
        ]
        equal = await self._equal_meanwhile(records, watched) if watched else ()
        looks = []
        for key in keys:
            truth, copy = before.get(key), copies.get(key)
            if key in equal or self._is_awaited(Pair(key, truth, copy)):
                looks.append(_Look(key, None, None, None))
            else:
                looks.append(_Look(key, truth, copy, after.get(key)))
        return looks

    async def _equal_meanwhile(self, records: Records, keys: list[str]) -> Collection[str]:
        """Read rows in turn from both stores; return those whose copy showed a state of the source.

        Equal states count only if both were read here: the copy is at most a moment behind.
        """
        left, states = list(keys), dict[tuple[str, int], None]()
        for _ in range(_READS):
            truths = await self._stores.read(partial(records.fetch, self._source, left))
            # The rows may be large, so only hashes are kept.
            states |= {(key, hash(truths.get(key))): None for key in left}
            copies = await self._stores.read(partial(records.fetch, self._target, left))
            left = [key for key in left if (key, hash(copies.get(key))) not in states]
            if not left:
                break
        return [key for key in keys if key not in left]

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

    async def _requeue(
        self, kind: RecordKind, keys: list[str], report: _Report, at_least: int
    ) -> None:
        """Add differing rows to the journal again, once there are enough."""
        while keys and len(keys) >= at_least:
            batch = keys[: self._page]
            await self._stores.read(partial(self._source.requeue, batch, kind))
            del keys[: len(batch)]
            report.repaired += len(batch)


class _Look(NamedTuple):
    """One observation of a row."""

    key: str
    truth: Row | None
    copy: Row | None
    again: Row | None


class _Patient:
    """Reads with retries from stores that may be unavailable, and waits for the journal."""

    def __init__(
        self, source: MigrationSource, reach: Reach, patience: float, clock: Clock
    ) -> None:
        self._clock = clock
        self._source = source
        self._reach = reach
        self._patience = patience

    async def read(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat an idempotent call until it is answered."""
        began = self._clock.monotonic()
        while True:
            try:
                return await call()
            except UnavailableError:
                if self._clock.monotonic() - began > self._patience:
                    raise
            await asyncio.sleep(_RETRY_EVERY)

    async def caught_up(self, newest: int) -> None:
        """Wait until everything committed now, and ``newest``, is applied.

        A deletion that was read shows no revision, and may be on disk long before it is known.
        """
        mark = max(await self.read(self._source.flush), newest)
        began = self._clock.monotonic()
        while not await self._reach(mark, min(_REACH_SLICE, self._patience)):
            if self._clock.monotonic() - began > self._patience:
                raise UnavailableError(
                    "verification stopped without a result: PostgreSQL has not caught up with "
                    f"SQLite for {self._patience:g} s; check that it runs, and verify again"
                )
            await asyncio.sleep(0.01)  # In case it has answered at once.


class _Report:
    """Progress and mismatches of a running verification."""

    def __init__(self, total: int, clock: Clock) -> None:
        self._clock = clock
        self.total = total
        self.compared = 0
        self.mismatch_count = 0
        self.repaired = 0
        self._fresh: list[Mismatch] = []
        self._listed = 0
        self._next = 0.0

    def note(self, mismatch: Mismatch) -> None:
        """Count and list a mismatch."""
        self.mismatch_count += 1
        if self._listed < MOST_LISTED:
            self._listed += 1
            self._fresh.append(mismatch)

    @property
    def due(self) -> bool:
        """Whether a progress report is due."""
        return self._clock.monotonic() >= self._next

    def progress(self, *, done: bool = False) -> VerifyProgress:
        """Return the progress, with the mismatches since the previous report."""
        self._next = self._clock.monotonic() + _PROGRESS_EVERY
        fresh, self._fresh = tuple(self._fresh), []
        total = max(self.total, self.compared)
        counts = self.mismatch_count, self.repaired
        return VerifyProgress(self.compared, total, fresh, *counts, done)


class _Suspect:
    """A row that differed at its last observation."""

    __slots__ = ("due", "size", "suspicion")

    def __init__(self, size: int) -> None:
        self.suspicion = Divergence()
        self.size = size
        self.due = 0.0
        """Time of the next observation."""


class _Suspects:
    """Rows that are observed until they are equal or lastingly differ."""

    def __init__(
        self,
        look_at: Callable[[Sequence[str], Collection[str]], Awaitable[list[_Look]]],
        records: Records,
        convict: Callable[[str, Mismatch], None],
        page: int,
        clock: Clock,
    ) -> None:
        self._page = page
        self._clock = clock
        self._look_at = look_at
        self._records = records
        self._convict = convict
        self._all: dict[str, _Suspect] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, key: str, size: int) -> None:
        """Add a row."""
        self._all.setdefault(key, _Suspect(size))

    async def work(self, *, wait: bool) -> None:
        """Observe each row that is due once; ``wait`` until one is."""
        if not self._all:
            return
        if wait:
            earliest = min(suspect.due for suspect in self._all.values())
            await asyncio.sleep(max(0.0, earliest - self._clock.monotonic()))
        now = self._clock.monotonic()
        due = [key for key, suspect in self._all.items() if suspect.due <= now]
        while due:
            group = self._group(due)
            restless = [key for key in group if self._all[key].suspicion.looks >= _WATCHED]
            for look in await self._look_at(group, restless):
                self._judge(look)

    def _group(self, due: list[str]) -> list[str]:
        """Take as many rows from ``due`` as are read together."""
        room, taken = _LOOK_BYTES, 0
        while taken < min(len(due), self._page) and (room > 0 or not taken):
            room -= self._all[due[taken]].size
            taken += 1
        group = due[:taken]
        del due[:taken]
        return group

    def _judge(self, look: _Look) -> None:
        suspect = self._all[look.key]
        name = self._records.name(look.key)
        verdict = suspect.suspicion.look(look.truth, look.copy, look.again)
        if verdict is None:
            suspect.due = self._clock.monotonic() + suspect.suspicion.pause
            suspect.size = _size(look.truth, look.copy)
            if suspect.suspicion.looks == _RESTLESS:
                _log.info("row %r keeps changing; its comparison is repeated", name)
            return
        del self._all[look.key]
        if verdict:
            self._convict(look.key, mismatch_of(name, look.truth, look.copy))


def _size(truth: Row | None, copy: Row | None) -> int:
    return max((row.size for row in (truth, copy) if row is not None), default=0)
