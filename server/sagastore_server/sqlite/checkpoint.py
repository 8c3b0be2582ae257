"""Empties the write-ahead log, and does not let readers stop it.

A passive checkpoint copies what no reader needs, and never waits; but the log starts
anew only in a moment without readers and writers, which under load may not come. So
once the log is large, both are held back for that moment. The file keeps its size then, and is
overwritten from its start (``log_file`` says why).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from pathlib import Path

import aiosqlite

from sagastore_server.sqlite.connection import BUSY_TIMEOUT_MS, LOG_BYTES
from sagastore_server.sqlite.readers import ReaderPool
from sagastore_server.sqlite.wal_file import NO_LOG, WalUsage, read_log
from sagastore_server.sqlite.writer import SQLiteGroupWriter
from sagastore_server.storage.errors import StorageError, UnavailableError

PASSIVE_BYTES = 4 * 1024 * 1024
"""Size of the log from which on it is copied into the database; SQLite's own default."""

LARGE_BYTES = LOG_BYTES
"""Size of the log from which on reads and writes are held back to empty it."""

PATIENCE = 5.0
"""Seconds that a running read has to end before it must begin anew."""

INTERVAL = 0.5
"""Seconds between looks at the log."""

PAUSE = 2.0
"""Seconds between attempts to empty the log where one failed: another process reads the
file."""

_BUSY_TIMEOUT_MS = 200
"""How long emptying waits for a foreign reader, and all writes with it."""

_WARN_EVERY = 60.0

_log = logging.getLogger(__name__)


class Checkpointer:
    """Watches the log of one database and checkpoints it."""

    def __init__(self, path: Path, readers: ReaderPool) -> None:
        """Prepare for the database at ``path``, read through ``readers``."""
        self._writer: SQLiteGroupWriter | None = None
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._readers = readers
        self._connection: aiosqlite.Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._copied = NO_LOG
        """A state of the log that the database has all of: the next write begins it anew."""
        self._pause_until = 0.0
        self._warned = 0.0

    async def open(self, writer: SQLiteGroupWriter) -> None:
        """Begin to watch what ``writer`` writes."""
        self._writer = writer
        self._connection = await aiosqlite.connect(self._path, isolation_level=None)
        await self._connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        self._task = asyncio.create_task(self._watch(), name="sqlite-checkpointer")

    async def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def run_once(self) -> None:
        """Look at the log once and do what its size asks for."""
        size = self.log_bytes()
        if size >= LARGE_BYTES and time.monotonic() >= self._pause_until:
            # Copy most of it first, beside readers and writer, which then wait less long.
            await self._passive()
            async with self._readers.none_reading(PATIENCE):
                emptied = await self._empty()
            if not emptied:
                self._pause_until = time.monotonic() + PAUSE
                self._warn(size)
        elif size >= PASSIVE_BYTES:
            await self._passive()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self.run_once()
            except UnavailableError:
                continue  # The store is closing.
            except (aiosqlite.Error, StorageError) as exc:
                # A full disk, say. The log keeps everything; the next look tries again.
                _log.warning("checkpoint failed, trying again: %s", exc)

    async def _passive(self) -> None:
        """Copy what no reader needs; waits for nobody, and nobody for it."""
        if self._connection is None:
            return
        before = read_log(self._wal)
        ((_, size, copied),) = await self._connection.execute_fetchall(
            "PRAGMA wal_checkpoint(PASSIVE)"
        )
        # Begun anew meanwhile, it is another log, of which nothing is known.
        if size == copied and read_log(self._wal).salts == before.salts:
            self._copied = before._replace(frames=size)

    async def _empty(self) -> bool:
        """Copy the rest and have the log begin anew; tell whether no foreign reader prevented it.

        On the writer's connection, between two groups: a checkpoint beside the writer
        would have to win the lock for writing against it, and lose under load.
        """
        if self._writer is None:
            return False
        emptied = await self._writer.run_between_groups(self._restart)
        if emptied is None:
            return False
        self._copied = emptied
        return True

    def _restart(self, connection: sqlite3.Connection) -> WalUsage | None:
        """Copy what is left; return the log of which the database has all, if it has.

        The next write begins the log anew, as nobody reads it.
        """
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        try:
            # Copying waits for nobody. What it cannot copy, a foreign reader needs.
            for mode in ("PASSIVE", "RESTART"):
                busy, size, copied = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
                if busy or size != copied:
                    return None
        finally:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        return read_log(self._wal)

    def log_bytes(self) -> int:
        """Return the size of that part of the log which is in use."""
        log = read_log(self._wal)
        return 0 if log == self._copied else log.size

    def _warn(self, size: int) -> None:
        now = time.monotonic()
        if now - self._warned >= _WARN_EVERY:
            self._warned = now
            _log.warning(
                "the write-ahead log has %d MiB and could not be emptied, trying again; if "
                "that goes on, another process is reading the file: end it",
                size >> 20,
            )
