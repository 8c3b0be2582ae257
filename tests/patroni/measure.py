"""What a fault of the cluster costs: gaps between acknowledgements, and revisions given out."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress
from typing import NamedTuple

import asyncpg

from tests.support.checker import Checker, Value, WrongAnswerError


class CountingChecker(Checker):
    """Checker that also records when writes were acknowledged, and that no revision is repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        """When each write was acknowledged, by ``time.monotonic``."""
        self._revisions: dict[int, tuple[str, int]] = {}

    def acknowledge(
        self, id: str, number: int, value: Value | None, revision: int | None = None
    ) -> None:
        """Record the acknowledgement, and check that its revision belongs to this version only."""
        super().acknowledge(id, number, value, revision)
        self.times.append(time.monotonic())
        if revision is None:
            return
        owner = self._revisions.setdefault(revision, (id, number))
        if owner != (id, number):
            raise WrongAnswerError(f"revision {revision} was given to {owner} and {(id, number)}")

    @property
    def revisions(self) -> int:
        """Number of different revisions."""
        return len(self._revisions)

    def longest_gap(self) -> float:
        """Return the longest time without an acknowledged write, in seconds."""
        return max(later - earlier for earlier, later in itertools.pairwise(self.times))

    def first_after(self, moment: float) -> float:
        """Return the seconds from ``moment`` to the next acknowledgement."""
        return next(at for at in self.times if at > moment) - moment


class Promotion(NamedTuple):
    """When a standby became the primary, by ``time.monotonic``."""

    promoted: float
    followed: float
    """When a standby of the quorum streamed from it: no write can be acknowledged earlier."""


async def promotion(*dsns: str) -> Promotion:
    """Wait until one of these standbys is the primary and is followed."""
    tasks = [asyncio.create_task(_promoted(dsn)) for dsn in dsns]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _promoted(dsn: str) -> Promotion:
    await _until(dsn, "SELECT NOT pg_is_in_recovery()")
    promoted = time.monotonic()
    await _until(
        dsn,
        "SELECT EXISTS (SELECT FROM pg_stat_replication"
        " WHERE state = 'streaming' AND sync_state = 'quorum')",
    )
    return Promotion(promoted, time.monotonic())


async def _until(dsn: str, condition: str) -> None:
    """Wait until ``condition`` holds; connects again as often as needed."""
    while True:
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            connection = await asyncpg.connect(dsn, timeout=2)
            try:
                while not await connection.fetchval(condition, timeout=2):  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0.01)
                return
            finally:
                connection.terminate()
        await asyncio.sleep(0.05)
