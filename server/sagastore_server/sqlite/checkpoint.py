"""Empties the write-ahead log, and does not let readers stop it.

A passive checkpoint copies what no reader needs, and never waits; but the log starts
anew only in a moment without readers, which under load may not come. So once the log
is large, reads are held back for that moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path

import aiosqlite

from sagastore_server.sqlite.readers import ReaderPool

PASSIVE_BYTES = 4 * 1024 * 1024
"""Size of the log from which on it is copied into the database; SQLite's own default."""

LARGE_BYTES = 64 * 1024 * 1024
"""Size of the log from which on reads are held back to empty it."""

PATIENCE = 5.0
"""Seconds that a running read has to end before it must begin anew."""

INTERVAL = 0.5
"""Seconds between looks at the log."""

PAUSE = 2.0
"""Seconds between attempts to empty the log where one failed: another process reads the
file, or one write followed the other."""

_BUSY_TIMEOUT_MS = 200
"""How long emptying waits for the writer, or for a foreign reader. It holds the lock for
writing meanwhile, so all writes wait as long."""

_WARN_EVERY = 60.0

_log = logging.getLogger(__name__)


class Checkpointer:
    """Watches the log of one database and checkpoints it."""

    def __init__(self, path: Path, readers: ReaderPool) -> None:
        """Prepare for the database at ``path``, read through ``readers``."""
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._readers = readers
        self._connection: aiosqlite.Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._pause_until = 0.0
        self._warned = 0.0

    async def open(self) -> None:
        """Begin to watch."""
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
        size = self._wal_bytes()
        if size >= LARGE_BYTES and time.monotonic() >= self._pause_until:
            async with self._readers.none_reading(PATIENCE):
                # Copying waits for nobody. What it cannot copy, a foreign reader needs.
                emptied = await self._checkpoint("PASSIVE") and await self._checkpoint("TRUNCATE")
            if not emptied:
                self._pause_until = time.monotonic() + PAUSE
                self._warn(size)
        elif size >= PASSIVE_BYTES:
            await self._checkpoint("PASSIVE")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self.run_once()
            except aiosqlite.Error as exc:
                # A full disk, say. The log keeps everything; the next look tries again.
                _log.warning("checkpoint failed, trying again: %s", exc)

    async def _checkpoint(self, mode: str) -> bool:
        """Tell whether nobody was in the way and the whole log was copied."""
        if self._connection is None:
            return False
        rows = await self._connection.execute_fetchall(f"PRAGMA wal_checkpoint({mode})")
        busy, size, copied = next(iter(rows))
        return not busy and size == copied

    def _wal_bytes(self) -> int:
        try:
            return self._wal.stat().st_size
        except OSError:
            return 0

    def _warn(self, size: int) -> None:
        now = time.monotonic()
        if now - self._warned >= _WARN_EVERY:
            self._warned = now
            _log.warning(
                "the write-ahead log has %d MiB and could not be emptied, trying again; if "
                "that goes on, another process is reading the file: end it",
                size >> 20,
            )
