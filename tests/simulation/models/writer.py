"""Writer of the source model: group commit with separate durability and acknowledgement."""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sagastore_server.sqlite.writer import MAX_GROUP_ROWS
from tests.simulation.models.process import Process
from tests.simulation.models.source_disk import SourceDisk


class Kind(enum.Enum):
    """Kind of a job."""

    WRITE = "write"
    """Computes changes; shares a transaction with other writes."""
    TASK = "task"
    """Runs in its own transaction between two groups."""
    FLUSH = "flush"
    """Takes a place in the queue, without a transaction."""


class Job(NamedTuple):
    """Job waiting for the writer."""

    kind: Kind
    run: Callable[[Any], object]
    """Called with the group's Changes for a write, with the disk for a task."""
    rows: int
    """Messages that a write touches."""
    future: asyncio.Future[Any]


class _Notification(NamedTuple):
    """Committed group whose callers are not notified yet."""

    group: Sequence[Job]
    outcomes: Sequence[object]
    revision: int


Commit = Callable[[Kind, Sequence[Job]], tuple[Sequence[object], int]]
"""Commits a group at one instant; returns an outcome per job, and the revision to report."""


class GroupWriter:
    """Commits jobs in groups, in the order of their submission.

    A group becomes durable at one instant and the event loop learns of it later, as with a writer
    thread that is descheduled in between. Several groups may be durable before the first is
    reported; they are reported in order.
    """

    def __init__(
        self, disk: SourceDisk, process: Process, commit: Commit, on_revision: Callable[[int], None]
    ) -> None:
        """Start committing; ``on_revision`` is called with the revision before callers are
        notified.
        """
        self._disk = disk
        self._process = process
        self._commit = commit
        self._on_revision = on_revision
        self._jobs: deque[Job] = deque()
        self._pending: deque[_Notification] = deque()
        self._notify_at = 0.0
        self._work = asyncio.Event()
        self._all_notified = asyncio.Event()
        self._all_notified.set()
        self.closing = False
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run(), name="writer", context=process.context)

    @property
    def waiting(self) -> int:
        """Number of jobs that are not in a group yet."""
        return len(self._jobs)

    def submit(self, kind: Kind, run: Callable[[Any], object], rows: int) -> asyncio.Future[Any]:
        """Queue a job. Cancelling the future before its group begins drops the job."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._jobs.append(Job(kind, run, rows, future))
        self._work.set()
        return future

    async def close(self) -> None:
        """Commit the queued jobs and end."""
        self.closing = True
        self._work.set()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            group = self._next_group()
            if group:
                await asyncio.sleep(self._disk.pause())
                self._process.check_alive()
                self._decide(group)
            elif self._jobs:
                continue
            elif self.closing:
                await self._all_notified.wait()
                return
            else:
                self._work.clear()
                await self._work.wait()

    def _next_group(self) -> list[Job]:
        """Take the next task, or the writes before it; empty: all were cancelled."""
        if self._jobs and self._jobs[0].kind is not Kind.WRITE:
            return [self._jobs.popleft()]
        group: list[Job] = []
        rows = 0
        while self._jobs and self._jobs[0].kind is Kind.WRITE and rows < MAX_GROUP_ROWS:
            job = self._jobs.popleft()
            if not job.future.cancelled():
                group.append(job)
                rows += job.rows
        return group

    def _decide(self, group: list[Job]) -> None:
        outcomes, revision = self._commit(group[0].kind, group)
        self._pending.append(_Notification(group, outcomes, revision))
        self._all_notified.clear()
        loop = asyncio.get_running_loop()
        self._notify_at = max(self._notify_at, loop.time() + self._disk.pause(0.001))
        loop.call_at(self._notify_at, self._notify, context=self._process.context)

    def _notify(self) -> None:
        notification = self._pending.popleft()
        if not self._pending:
            self._all_notified.set()
        try:
            self._on_revision(notification.revision)
        finally:
            for job, outcome in zip(notification.group, notification.outcomes, strict=True):
                _answer(job.future, outcome)


def _answer(future: asyncio.Future[Any], outcome: object) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
