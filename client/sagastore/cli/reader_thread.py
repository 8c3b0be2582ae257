"""Reading of a source in a thread, in parallel to sending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from sagastore.importers.base import Row

__all__ = ["read_ahead"]

_CHUNK_ROWS = 256
_CHUNK_BYTES = 4 << 20
_CHUNKS_AHEAD = 2


class _ReaderThread:
    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self._loop = asyncio.get_running_loop()
        self.chunks: asyncio.Queue[list[Row] | BaseException | None] = asyncio.Queue()
        self._room = threading.Semaphore(_CHUNKS_AHEAD)
        self._stopped = False

    def start(self) -> None:
        # Not a thread of the loop's executor: the loop waits for these when it closes,
        # and this thread may be blocked on a pipe.
        threading.Thread(target=self._run, name="reader", daemon=True).start()

    def taken(self) -> None:
        """Allow the thread to read another chunk."""
        self._room.release()

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stopped = True
        self._room.release()

    def _run(self) -> None:
        result: BaseException | None = None
        more = True
        while more:
            chunk: list[Row] = []
            try:
                more = self._take(chunk)
            except Exception as exc:  # noqa: BLE001 - raised where the rows are awaited
                # The rows before the damage are passed on first.
                result, more = exc, False
            if chunk:
                self._room.acquire()
                if self._stopped:
                    return
                self._pass_on(chunk)
        self._pass_on(result)

    def _take(self, chunk: list[Row]) -> bool:
        """Add some rows to `chunk`, limited by number and by bytes; return False at the end."""
        size = 0
        for row in self._rows:
            chunk.append(row)
            size += _size(row.raw)
            if size >= _CHUNK_BYTES or len(chunk) >= _CHUNK_ROWS:
                return True
        return False

    def _pass_on(self, item: list[Row] | BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self.chunks.put_nowait, item)
        except RuntimeError:
            self._stopped = True  # The loop is closed.


def _size(raw: Any) -> int:
    if isinstance(raw, bytes):
        return len(raw)
    return sum(len(value) for value in raw if isinstance(value, (str, bytes)))


async def read_ahead(rows: Iterator[Row]) -> AsyncGenerator[Row, None]:
    """Yield the rows; a thread reads a few chunks ahead."""
    reader = _ReaderThread(rows)
    reader.start()
    try:
        while True:
            chunk = await reader.chunks.get()
            if chunk is None:
                return
            if isinstance(chunk, BaseException):
                raise chunk
            for row in chunk:
                yield row
            reader.taken()
    finally:
        reader.stop()
