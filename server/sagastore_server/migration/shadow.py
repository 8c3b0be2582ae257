"""Shadow reads: a sample of the reads that SQLite answers is repeated on PostgreSQL and compared.

- Comparisons run in the background, a few at a time; if too many are pending, reads are skipped.
- An answer is stored as ids, revisions and a hash, so that large answers use little memory.
- Reports and logs have ids and revisions, never the text of a message.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

from sagastore_server.migration.diff import Divergence, Reach
from sagastore_server.runtime.supervisor import SupervisedTask, Supervisor
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.environment import SYSTEM_ENVIRONMENT, Environment
from sagastore_server.storage.errors import NotFoundError, StorageError, UnavailableError
from sagastore_server.storage.files import File, FilePage
from sagastore_server.storage.migration import ShadowDifference, ShadowStatus
from sagastore_server.storage.model import Message, Page
from sagastore_server.storage.query import RankedPage
from sagastore_server.storage.replication import MigrationSource, MigrationTarget
from sagastore_server.storage.sessions import Session, SessionPage

MOST_KEPT = 10
"""Differences that are stored; all are counted."""

_AT_ONCE = 2
"""Comparisons at a time."""

_LOOKS = 8
"""Observations after which an answer that keeps changing is skipped."""

_REACH_SECONDS = 5.0
"""Seconds to wait for the journal to be applied."""

_SHOWN = 5
"""Messages in the text of a difference at most."""

Run = Callable[[StorageBackend], Awaitable[object]]
"""The read, as a function of a store."""

_log = logging.getLogger(__name__)


class ShadowReader:
    """Compares a share of the reads, from ``start`` to ``stop``."""

    def __init__(
        self,
        source: MigrationSource,
        target: MigrationTarget,
        reach: Reach,
        *,
        share: float,
        max_waiting: int = 64,
        environment: Environment = SYSTEM_ENVIRONMENT,
        supervisor: Supervisor | None = None,
    ) -> None:
        """Prepare to compare ``share`` (0 to 1) of the reads; not started.

        If ``max_waiting`` comparisons are pending, further reads are skipped.
        """
        self._source = source
        self._target = target
        self._reach = reach
        self._share = share
        self._clock, self._randomness = environment
        self._supervisor = supervisor or Supervisor()
        self._max_waiting = max_waiting
        self._active = False
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._tasks: dict[int, SupervisedTask] = {}
        self._numbers = itertools.count()
        self._tally = _Tally()

    def start(self) -> None:
        """Accept reads."""
        self._active = True

    def stop(self) -> None:
        """Accept no further reads; accepted ones are still compared."""
        self._active = False

    def reset(self) -> None:
        """Reset the counts. Comparisons in progress are not counted."""
        self._tally = _Tally()

    async def close(self) -> None:
        """Stop, and cancel comparisons in progress."""
        self.stop()
        tasks = list(self._tasks.values())
        await asyncio.gather(*(task.stop() for task in tasks))
        self._tasks.clear()

    def wanted(self) -> bool:
        """Return, at random, whether to compare the next read."""
        return (
            self._active
            and self._randomness.fraction() < self._share
            # Until then, searches of the two stores may differ.
            and self._source.reanalysis is None
            and self._target.reanalysis is None
        )

    @property
    def status(self) -> ShadowStatus:
        """Results since the start or the last ``reset``."""
        tally = self._tally
        return ShadowStatus(tally.compared, tally.skipped, tally.different, tuple(tally.latest))

    def compare(self, read: str, run: Run, answer: object) -> None:
        """Compare a read that the source has answered, in the background.

        Args:
            read: Name of the read, without the text of any message.
            run: Performs it on a store.
            answer: A Message, a Page, a RankedPage, messages by id, a Session, a SessionPage, a
                File, a FilePage, or the NotFoundError that it raised. None (a store does not rank
                this search) is not compared.

        """
        if not self._active or answer is None:
            return
        if len(self._tasks) >= self._max_waiting:
            self._tally.skipped += 1
            return
        comparison = _Comparison(read, run, _reduced(answer), self._tally)
        number = next(self._numbers)
        run_it = partial(self._compare, number, comparison)
        self._tasks[number] = self._supervisor.start("shadow-read", run_it)

    async def _compare(self, number: int, comparison: _Comparison) -> None:
        tally = comparison.tally
        try:
            async with self._free:
                compared = await self._settle(comparison)
        except StorageError:
            # An unavailable store or a lost lease is no difference, and is reported elsewhere. Nor
            # is a search that only one of the stores ranks.
            compared = False
        except Exception as exc:  # noqa: BLE001 - a restart would fail on the same answer
            _log.error("a shadow read failed: %s", comparison.read, exc_info=exc)
            compared = False
        finally:
            self._tasks.pop(number, None)
        if compared:
            tally.compared += 1
        else:
            tally.skipped += 1

    async def _settle(self, comparison: _Comparison) -> bool:
        """Compare until the answers agree or lastingly differ; False: neither."""
        if not await self._caught_up(comparison.answer):
            return False
        if await self._read(self._target, comparison) == comparison.answer:
            return True
        divergence = Divergence()
        while divergence.looks < _LOOKS:
            truth = await self._read(self._source, comparison)
            if not await self._caught_up(truth):
                return False
            copy = await self._read(self._target, comparison)
            again = await self._read(self._source, comparison)
            verdict = divergence.look(truth, copy, again)
            if verdict is not None:
                if verdict:
                    self._note(comparison, truth, copy, self._clock.now())
                return True
            await asyncio.sleep(divergence.pause)
        return False

    async def _caught_up(self, answer: _Answer) -> bool:
        newest = max((row.revision for row in answer.rows), default=0)
        # An answer does not show the revision of a deletion, so everything on disk must be applied.
        flushed = await self._source.flush()
        return await self._reach(max(flushed, newest), _REACH_SECONDS)

    @staticmethod
    async def _read(store: StorageBackend, comparison: _Comparison) -> _Answer:
        try:
            return _reduced(await comparison.run(store))
        except NotFoundError as exc:
            return _reduced(exc)

    @staticmethod
    def _note(comparison: _Comparison, truth: _Answer, copy: _Answer, now: int) -> None:
        shown = _shown(truth, copy), _shown(copy, truth)
        difference = ShadowDifference(now, comparison.read, *shown)
        comparison.tally.different += 1
        comparison.tally.latest.append(difference)
        _log.warning(
            "shadow read differs: %s; SQLite: %s; PostgreSQL: %s",
            comparison.read,
            *shown,
        )


class _Tally:
    """Results between two resets."""

    def __init__(self) -> None:
        self.compared = 0
        self.skipped = 0
        self.different = 0
        self.latest: deque[ShadowDifference] = deque(maxlen=MOST_KEPT)


class _Row(NamedTuple):
    """A message, session or file of an answer, without its text."""

    id: str
    revision: int
    hash: int
    """Over all fields, and the score of a ranked message."""


class _Answer(NamedTuple):
    """An answer, without texts."""

    rows: tuple[_Row, ...]
    more: bool = False
    found: bool = True


class _Comparison(NamedTuple):
    """A read to be compared."""

    read: str
    run: Run
    answer: _Answer
    tally: _Tally


def _reduced(answer: object) -> _Answer:
    match answer:
        case Message() | Session() | File():
            return _Answer((_row(answer),))
        case Page(rows, more) | SessionPage(rows, more) | FilePage(rows, more):
            return _Answer(tuple(map(_row, rows)), more)
        case RankedPage():
            ranked = (_row(one.message, one.score) for one in answer.found)
            return _Answer(tuple(ranked), answer.more or answer.below)
        case None:
            raise UnavailableError("the store does not rank this search")
        case dict():
            return _Answer(tuple(_row(answer[key]) for key in sorted(answer)))
        case NotFoundError():
            return _Answer((), found=False)
    raise TypeError(f"no answer of a read: {type(answer).__name__}")


def _row(row: Message | Session | File, score: float = 0.0) -> _Row:
    return _Row(_name_of(row), row.revision, hash((row, score)))


def _name_of(row: Message | Session | File) -> str:
    if isinstance(row, Session):
        return f"sessions/{row.session_id}"
    return f"files/{row.id}" if isinstance(row, File) else row.id


def _shown(answer: _Answer, other: _Answer) -> str:
    """Describe in one line what ``answer`` has and ``other`` lacks."""
    if not answer.found:
        return "not found"
    count = len(answer.rows)
    line = f"{count} row{'' if count == 1 else 's'}{' and more' if answer.more else ''}"
    others = frozenset(other.rows)
    known = frozenset((row.id, row.revision) for row in other.rows)
    own, what = [row for row in answer.rows if row not in others], "only here"
    if not own and len(others) == count:
        own, what = _from_first_difference(answer.rows, other.rows), "in the order"
    if not own:
        return line
    names = [
        f"{row.id}@{row.revision}"
        + (" (fields differ)" if row not in others and row[:2] in known else "")
        for row in own[:_SHOWN]
    ]
    rest = f" and {len(own) - _SHOWN} more" if len(own) > _SHOWN else ""
    return f"{line}; {what}: {', '.join(names)}{rest}"


def _from_first_difference(rows: tuple[_Row, ...], others: tuple[_Row, ...]) -> list[_Row]:
    pairs = enumerate(zip(rows, others, strict=False))
    start = next((at for at, (row, other) in pairs if row != other), len(rows))
    return list(rows[start:])
