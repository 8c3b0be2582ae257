"""Checkpointer: copies the write-ahead log into the database and keeps its size bounded.

A passive checkpoint copies what no reader needs and never waits. It does not shorten the log: the
log restarts only while no connection reads or writes, and under load that moment may never come.
So the checkpointer works in two steps, by the bytes of the log that are in use:

* from `PASSIVE_BYTES`: a passive checkpoint, concurrent with readers and the writer;
* from `LARGE_BYTES`: it blocks new reads, waits for running ones, and restarts the log on the
  writer's connection between two groups.

The log file keeps its length after a restart and is overwritten from its start (`wal_file` says
why). An error leaves the log as it is, so no write is lost: the supervisor reports it and runs
the checkpointer again. Only `close` ends the checkpointer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import aiosqlite

from sagastore_server.runtime.supervisor import SupervisedTask, Supervisor
from sagastore_server.sqlite.connection import BUSY_TIMEOUT_MS, LOG_BYTES
from sagastore_server.sqlite.errors import translating
from sagastore_server.sqlite.readers import ReaderPool
from sagastore_server.sqlite.wal_file import NO_LOG, WalUsage, read_log
from sagastore_server.sqlite.writer import SQLiteGroupWriter
from sagastore_server.storage.errors import UnavailableError

PASSIVE_BYTES = 4 * 1024 * 1024
"""Bytes in use from which the log is copied into the database; SQLite's own default."""

LARGE_BYTES = LOG_BYTES
"""Bytes in use from which reads and writes are blocked to restart the log."""

PATIENCE = 5.0
"""Seconds that a running read may take before it is interrupted and restarted."""

INTERVAL = 0.5
"""Seconds between two checks of the log."""

PAUSE = 2.0
"""Seconds until the next attempt to restart the log when another process was reading the file."""

_BUSY_TIMEOUT_MS = 200
"""Milliseconds that a restart of the log waits for another process. All writes wait with it."""

_WARN_EVERY = 60.0

_log = logging.getLogger(__name__)


class Checkpointer:
    """Background task that checkpoints the log of one database."""

    def __init__(
        self, path: Path, readers: ReaderPool, supervisor: Supervisor | None = None
    ) -> None:
        """Create a checkpointer for the database at ``path``, which ``readers`` read."""
        self._writer: SQLiteGroupWriter | None = None
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._readers = readers
        self._supervisor = supervisor or Supervisor()
        self._connection: aiosqlite.Connection | None = None
        self._task: SupervisedTask | None = None
        self._copied = NO_LOG
        """A state of the log that is copied completely: the next write restarts the log."""
        self._bytes_in_use = 0
        """Result of the last `log_bytes` that could read the file."""
        self._pause_until = 0.0
        self._warned = 0.0

    async def open(self, writer: SQLiteGroupWriter) -> None:
        """Start to checkpoint what ``writer`` writes."""
        self._writer = writer
        self._connection = await aiosqlite.connect(self._path, isolation_level=None)
        await self._connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        self._task = self._supervisor.start("sqlite-checkpointer", self._run)

    async def stop(self) -> None:
        """Stop the background task. Call it before the writer closes."""
        if self._task is not None:
            await self._task.stop()
            self._task = None

    async def close(self) -> None:
        """Stop the background task and close its connection."""
        await self.stop()
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def run_once(self) -> None:
        """Check the log once and checkpoint it if its size requires that.

        Raises:
            StorageError: The log or the database cannot be read or written. The log is as it was.

        """
        with translating(), _translating_file_errors():
            size = self._in_use()
            if size >= LARGE_BYTES and time.monotonic() >= self._pause_until:
                # Copy most of it first, so that readers and the writer are blocked more briefly.
                await self._passive()
                async with self._readers.none_reading(PATIENCE):
                    restarted = await self._restart()
                if not restarted:
                    self._pause_until = time.monotonic() + PAUSE
                    self._warn(size)
            elif size >= PASSIVE_BYTES:
                await self._passive()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            await self.run_once()

    async def _passive(self) -> None:
        """Copy what no reader needs. Blocks nothing and waits for nothing."""
        if self._connection is None:
            return
        before = read_log(self._wal)
        ((_, size, copied),) = await self._connection.execute_fetchall(
            "PRAGMA wal_checkpoint(PASSIVE)"
        )
        # Other salts: the log restarted meanwhile, and these numbers are not about it.
        if size == copied and read_log(self._wal).salts == before.salts:
            self._copied = before._replace(frames=size)

    async def _restart(self) -> bool:
        """Copy the rest and restart the log; return False if another process prevents that.

        It runs on the writer's connection, between two groups: a separate connection would
        compete with the writer for the write lock, and lose under load.
        """
        if self._writer is None:
            return False
        restarted = await self._writer.run_between_groups(self._restart_now)
        if restarted is None:
            return False
        self._copied = restarted
        return True

    def _restart_now(self, connection: sqlite3.Connection) -> WalUsage | None:
        """Copy the rest; return the copied log, or None if another process prevents that.

        The next write restarts the log, since no connection reads it.
        """
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        try:
            # PASSIVE first, because it never waits. What it leaves, another process is reading.
            for mode in ("PASSIVE", "RESTART"):
                busy, size, copied = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
                if busy or size != copied:
                    return None
        finally:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        return read_log(self._wal)

    def log_bytes(self) -> int:
        """Return the bytes of the log that are in use, or the last known number. Never raises."""
        try:
            return self._in_use()
        except OSError:
            return self._bytes_in_use

    def _in_use(self) -> int:
        log = read_log(self._wal)
        self._bytes_in_use = 0 if log == self._copied else log.size
        return self._bytes_in_use

    def _warn(self, size: int) -> None:
        now = time.monotonic()
        if now - self._warned >= _WARN_EVERY:
            self._warned = now
            _log.warning(
                "the write-ahead log has %d MiB and could not be restarted; trying again. If "
                "this repeats, another process is reading the file: stop that process",
                size >> 20,
            )


@contextlib.contextmanager
def _translating_file_errors() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise UnavailableError(
            f"the write-ahead log of the SQLite store cannot be read ({exc.strerror or exc}); "
            "check the disk and the permissions of the file"
        ) from exc
