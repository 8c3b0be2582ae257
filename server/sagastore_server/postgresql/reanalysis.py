"""Analysis of the rows of a database by a newer version, while servers use it.

A row whose ``analysed_3`` is not its revision has terms of a former version: the row is older than
the column, or a server of a former version has written it since. `Reanalyser` goes through all rows
in the order of their ids, in short steps:

1. Read the next rows, and the contents of those that are stale, without a lock.
2. Compute their terms.
3. In one transaction, lock these rows and store the terms of those with the same revision.

It repeats this until it has met no stale row, and then notes the version in ``store_state``. So it
can be interrupted anywhere, and any number of servers may do it at once; each skips the rows that
another has finished. Analysis versions only go up: a server with an older version than the noted
one changes nothing.

During a rolling upgrade, servers of the former version may still write. So for a day after the
upgrade of the schema, every server looks for stale rows again from time to time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from sagastore_server.postgresql.compatibility import Compatibility
from sagastore_server.postgresql.errors import translating
from sagastore_server.postgresql.pool import Connection, Pool
from sagastore_server.postgresql.queries import QUERIES
from sagastore_server.postgresql.rows import search_columns
from sagastore_server.runtime.supervisor import SupervisedTask, Supervisor
from sagastore_server.runtime.worker_pool import WorkerPool
from sagastore_server.search.analysis import ANALYSIS_VERSION
from sagastore_server.storage.errors import FencedError, OutdatedServerError
from sagastore_server.storage.reanalysis import ANALYSIS_STATE, Reanalysis, analysis_version

ROWS, BYTES = 500, 512 * 1024
"""Rows, and about bytes of stale content, of one step. One larger row is a separate step."""

AGAIN = 300.0
"""Seconds until the next look for rows that a server of the former version has written."""

_LOG_EVERY = 10.0
"""Seconds between two lines of the log about the progress."""

Enter = Callable[[Connection], Awaitable[object]]
"""Runs first in each transaction that writes."""

_log = logging.getLogger(__name__)


async def _nothing(_: Connection) -> None:
    """Do nothing."""


class _Step(NamedTuple):
    rows: int
    stale: int
    last: str


class Reanalyser:
    """Background task that analyses the stale rows of one database."""

    def __init__(
        self,
        pool: Pool,
        worker_pool: WorkerPool,
        supervisor: Supervisor,
        compatibility: Compatibility,
    ) -> None:
        """Prepare to analyse the rows that ``pool`` leads to, in ``worker_pool``.

        ``compatibility`` says whether this server may write.
        """
        self._pool = pool
        self._compatibility = compatibility
        self._worker_pool = worker_pool
        self._supervisor = supervisor
        self._task: SupervisedTask | None = None
        self._enter: Enter = _nothing
        self._progress: Reanalysis | None = None
        self._logged = 0.0

    @property
    def progress(self) -> Reanalysis | None:
        """Progress; None if the rows are of this version or of a newer one."""
        return self._progress

    async def start(self, enter: Enter = _nothing) -> None:
        """Start the task, or start it again. Each of its transactions begins with ``enter``."""
        await self.stop()
        self._enter = enter
        stored = await self._stored_version()
        self._progress = None
        if stored > ANALYSIS_VERSION:
            _log.warning(
                "search: the database has analysis version %d, newer than %d; run a newer server, "
                "because some words are found only by that version",
                *(stored, ANALYSIS_VERSION),
            )
            return
        if stored < ANALYSIS_VERSION:
            self._progress = Reanalysis(0, await self._pool.value(QUERIES["count_messages"]))
        self._task = self._supervisor.start("search-reanalysis", self._run)

    async def stop(self) -> None:
        """Stop the task."""
        if self._task is not None:
            await self._task.stop()
            self._task = None

    async def _stored_version(self) -> int:
        stored = await self._pool.rows(QUERIES["get_state"], ANALYSIS_STATE)
        return analysis_version(stored[0][0] if stored else None)

    async def _run(self) -> None:
        try:
            if self._progress is not None:
                while await self._go_through():
                    pass
                await self._finish()
            while await self._pool.value(QUERIES["upgraded_recently"]):
                await self._go_through()
                await asyncio.sleep(AGAIN)
        except FencedError:
            # Another server holds the migration, and analyses its rows.
            _log.info("search: the rows belong to a migration that another server holds")
        except OutdatedServerError:
            _log.info("search: a newer server analyses the rows")

    async def _go_through(self) -> int:
        """Go through all rows once, and return how many were stale."""
        last, stale = "", 0
        if self._progress is not None:
            self._progress = self._progress._replace(done=0)
        while True:
            began = time.monotonic()
            step = await self._step(last)
            if not step.rows:
                return stale
            last, stale = step.last, stale + step.stale
            self._report(step.rows)
            # Leave at least half of a processor to calls.
            await asyncio.sleep(time.monotonic() - began)

    async def _step(self, after: str) -> _Step:
        rows = await self._pool.rows(QUERIES["stale_texts"], after, ROWS, BYTES)
        stale = [(row[0], row[1], row[2]) for row in rows if row[2] is not None]
        if stale:
            texts = [(content,) for _, _, content in stale]
            terms, search = zip(*await self._worker_pool.map(search_columns, texts), strict=True)
            ids, revisions = [row[0] for row in stale], [row[1] for row in stale]
            with translating():
                async with (
                    self._pool.connection() as connection,
                    self._pool.transaction(connection, QUERIES["begin"]),
                ):
                    await self._enter(connection)
                    _, compatible_from = await connection.fetchrow(QUERIES["lock_rows"], ids)
                    self._compatibility.check(compatible_from)
                    await connection.execute(
                        QUERIES["set_terms"], ids, revisions, list(terms), list(search)
                    )
        return _Step(len(rows), len(stale), rows[-1][0] if rows else after)

    async def _finish(self) -> None:
        """Note the version, and report the end."""
        with translating():
            async with (
                self._pool.connection() as connection,
                self._pool.transaction(connection, QUERIES["begin"]),
            ):
                await self._enter(connection)
                _, compatible_from = await connection.fetchrow(QUERIES["ping"])
                self._compatibility.check(compatible_from)
                await connection.execute(
                    QUERIES["raise_analysis"], ANALYSIS_STATE, str(ANALYSIS_VERSION)
                )
        _log.info("search index: all messages are analysed")
        self._progress = None

    def _report(self, rows: int) -> None:
        if self._progress is None:
            return
        done, total = self._progress.done + rows, self._progress.total
        self._progress = Reanalysis(min(done, total), total)
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY:
            self._logged = now
            _log.info("search index: analysed %d of %d messages", *self._progress)
