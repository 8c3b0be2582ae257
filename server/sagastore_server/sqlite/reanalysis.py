"""Analysis of the messages of a file by a newer version, while the file is served.

An index of another version cannot be changed in place: FTS5 removes an entry only by the terms that
were inserted, which this version does not make. So ``begin`` renames the index to
``messages_fts_former`` and creates an empty one, and `Reanalyser` fills it in steps:

1. Read some messages after the cursor and compute their terms, outside of the writer.
2. In one transaction of the writer, insert the terms of those that were not changed meanwhile, and
   move the cursor. After a crash the next start continues at the cursor.
3. After the last message, delete the former index, in steps.

A message is in exactly one of the two indexes as far as searches are concerned: in the new one if
its number is not pending (``Pending``) or is in the table ``reanalysed``, to which a change of a
pending message adds it (``batch``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from sagastore_server.runtime.supervisor import SupervisedTask, Supervisor
from sagastore_server.runtime.worker_pool import WorkerPool
from sagastore_server.search.analysis import ANALYSIS_VERSION
from sagastore_server.sqlite.index_terms import FtsColumns, fts_columns
from sagastore_server.sqlite.pending import Pending, load_pending
from sagastore_server.sqlite.queries import QUERIES, insert_all
from sagastore_server.sqlite.readers import ReaderPool, Row
from sagastore_server.sqlite.writer import SQLiteGroupWriter
from sagastore_server.storage.reanalysis import (
    ANALYSIS_STATE,
    Reanalysis,
    analysis_version,
    refuse_newer_analysis,
)

ROWS, BYTES = 250, 256 * 1024
"""Messages, and about bytes of their content, of one step: some 50 ms of the writer. One larger
message is a step of its own."""

_BLOCKS = 500
"""Blocks of the former index, of about 4 KiB, that one transaction deletes."""

_LOG_EVERY = 10.0
"""Seconds between two lines of the log about the progress."""

_log = logging.getLogger(__name__)


def begin(connection: sqlite3.Connection, path: Path) -> None:
    """Prepare an analysis of all messages if another version has made the index.

    It is called in a transaction, before the file is served, and takes no time in proportion to the
    messages.

    Raises:
        CannotOpenError: A newer version has made the index.

    """
    row = connection.execute(QUERIES["get_state"], (ANALYSIS_STATE,)).fetchone()
    stored = analysis_version(None if row is None else str(row[0]))
    refuse_newer_analysis(str(path), stored, ANALYSIS_VERSION)
    if stored == ANALYSIS_VERSION:
        return
    # It exists if the analysis by another version was interrupted. Messages that only it has are
    # found again once they are analysed.
    connection.execute(QUERIES["drop_former"])
    connection.execute(QUERIES["make_former"])
    connection.execute(QUERIES["create_index"])
    connection.execute(QUERIES["forget_reanalysed"], (_LAST,))
    (last,) = connection.execute(QUERIES["last_sequence"]).fetchone()
    state = [
        (ANALYSIS_STATE, ANALYSIS_VERSION),
        ("reanalysis_cursor", 0),
        ("reanalysis_upto", last),
    ]
    connection.executemany(QUERIES["set_state"], state)


_LAST = (1 << 63) - 1
"""The greatest number of a row."""


class Reanalyser:
    """Background task that analyses the pending messages of one open file."""

    def __init__(
        self, readers: ReaderPool, worker_pool: WorkerPool, supervisor: Supervisor | None
    ) -> None:
        """Prepare to analyse what ``readers`` read, in ``worker_pool``."""
        self._readers = readers
        self._worker_pool = worker_pool
        self._supervisor = supervisor or Supervisor()
        self._writer: SQLiteGroupWriter | None = None
        self._task: SupervisedTask | None = None
        self._pending = Pending(0, 0)
        self._done = self._total = 0
        self._searches = 0
        self._unused = asyncio.Event()
        """Set whenever the last search of the former index has ended."""
        self._logged = 0.0

    @property
    def progress(self) -> Reanalysis | None:
        """Progress; None if no message is pending."""
        return Reanalysis(self._done, self._total) if self._pending.any else None

    async def open(self, writer: SQLiteGroupWriter) -> None:
        """Start the task if messages are pending, or if the former index is not deleted yet."""
        self._writer = writer
        ((has_former, cursor, upto),) = await self._readers.rows(QUERIES["reanalysis"])
        self._pending = Pending(cursor, upto)
        if self._pending.any:
            [(self._done, self._total)] = await self._readers.rows(
                QUERIES["count_pending"], self._pending
            )
        if has_former:
            self._task = self._supervisor.start("search-reanalysis", self._run)

    async def stop(self) -> None:
        """Stop the task. Call it before the writer closes."""
        if self._task is not None:
            await self._task.stop()
            self._task = None

    @contextlib.contextmanager
    def searching(self) -> Iterator[bool]:
        """Yield whether a search must read the former index, too, which is kept meanwhile."""
        both = self._pending.any
        self._searches += both
        try:
            yield both
        finally:
            self._searches -= both
            if not self._searches:
                self._unused.set()

    async def _run(self) -> None:
        while self._pending.any:
            began = time.monotonic()
            await self._step()
            self._report()
            # Leave at least half of a processor to calls.
            await asyncio.sleep(time.monotonic() - began)
        await self._delete_former()
        _log.info("search index: all %d messages are analysed", self._total)

    async def _step(self) -> None:
        rows = await self._readers.some(QUERIES["pending_texts"], (*self._pending, ROWS), BYTES)
        if not rows:
            await self._write([], [], self._pending.upto)
            return
        texts = [(content, json.loads(tags), metadata) for _, content, tags, metadata in rows]
        terms = await self._worker_pool.map(fts_columns, texts)
        await self._write(rows, terms, rows[-1][0])
        self._done = min(self._done + len(rows), self._total)

    async def _write(self, rows: Sequence[Row], terms: Sequence[FtsColumns], upto: int) -> None:
        entries = [(row[0], *columns) for row, columns in zip(rows, terms, strict=True)]
        work = partial(_store, entries=entries, upto=upto)
        await self._open_writer().run_in_transaction(work)
        self._pending = self._pending._replace(cursor=upto)

    async def _delete_former(self) -> None:
        """Delete the former index, once no search that has begun reads it."""
        while self._searches:
            self._unused.clear()
            await self._unused.wait()
        more = True
        while more:
            more = await self._open_writer().run_in_transaction(_delete_some)

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY:
            self._logged = now
            _log.info("search index: analysed %d of %d messages", self._done, self._total)

    def _open_writer(self) -> SQLiteGroupWriter:
        assert self._writer is not None  # noqa: S101 - `open` sets it
        return self._writer


def _store(
    connection: sqlite3.Connection, entries: Sequence[tuple[int, str, str, str]], upto: int
) -> None:
    """Insert the terms of messages that exist and were not changed; move the cursor."""
    before = load_pending(connection)
    unchanged = {
        number for (number,) in connection.execute(QUERIES["unchanged"], (before.cursor, upto))
    }
    insert_all(connection, "index", [entry for entry in entries if entry[0] in unchanged])
    # A step that was answered with an error may have been stored: the cursor never moves back.
    cursor = max(before.cursor, upto)
    connection.execute(QUERIES["set_state"], ("reanalysis_cursor", cursor))
    connection.execute(QUERIES["forget_reanalysed"], (cursor,))


def _delete_some(connection: sqlite3.Connection) -> bool:
    """Delete blocks of the former index, and at last the index; return whether it is there still.

    To drop it at once would block the writer for as long as it takes to free all its pages.
    """
    if connection.execute(QUERIES["delete_former_blocks"], (_BLOCKS,)).rowcount:
        return True
    connection.execute(QUERIES["drop_former"])
    return False
