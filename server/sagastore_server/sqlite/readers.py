"""Pool of read-only connections. Readers and the writer do not wait for each other.

A read transaction lasts as long as its statement, never between two calls of a client, so that
the checkpointer can restart the write-ahead log.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import aiosqlite

from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.sqlite.connection import file_from_row, message_from_row, prepare_reader
from sagastore_server.sqlite.errors import InterruptedReadError, translating
from sagastore_server.storage.errors import UnavailableError
from sagastore_server.storage.files import FilePage
from sagastore_server.storage.limits import file_page_of, page_of
from sagastore_server.storage.model import Page

READERS = 4
"""Connections, each with a thread. SQLite releases the GIL while it reads."""

_FEW = 64
"""Rows that are fetched in a single call."""

MOST_READ = 4 * 1024 * 1024
"""Characters and bytes after which a statement with many rows ends, with the row that exceeds them.
Not less than a page (``storage.limits``), so that the page is full then, and more than a message
has, so that there are two rows if there is a next page."""

_NOTHING = "SELECT 1 WHERE 0"
_NO_LIMIT = 2**31 - 1

T = TypeVar("T")
Row = tuple[Any, ...]


class _Cursor(sqlite3.Cursor):
    """Cursor that fetches many rows in one call, with a limit on their size.

    A call per few rows would switch threads and wait for the GIL each time, which for 500 rows
    takes longer than SQLite does.
    """

    def fetchall(self) -> list[Any]:
        """Return all rows, fewer if they exceed MOST_READ, and end the statement."""
        return self.fetchmany(None)

    def fetchmany(self, size: int | None = 1) -> list[Any]:
        """Return up to ``size`` rows, fewer if they exceed MOST_READ, and end the statement."""
        rows: list[Row] = []
        room = MOST_READ
        for row in self:
            rows.append(row)
            room -= sum(len(value) for value in row if type(value) in _SIZED)
            if room < 0 or len(rows) == size:
                self.execute(_NOTHING)
                break
        return rows


_SIZED = (str, bytes)


class _SizeLimited(str):
    """SQL whose rows need not be fetched beyond MOST_READ."""

    __slots__ = ()


class _Connection(sqlite3.Connection):
    """Connection with size-limited cursors."""

    def cursor(self, factory: Callable[[sqlite3.Connection], Any] | None = None) -> Any:
        return super().cursor(factory or _Cursor)

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        # The cursors of `sqlite3.Connection.execute` have no limit.
        if type(sql) is _SizeLimited:
            return self.cursor().execute(sql, parameters)
        return super().execute(sql, parameters)


class _Reader(NamedTuple):
    """A connection with one cursor, which all its longer reads share.

    A new cursor per read could stay open: if a read is cancelled at the moment its cursor
    arrives, only the exception refers to the cursor. As long as that exception lives, the
    cursor keeps its snapshot, and SQLite interrupts every later statement of the connection.
    The shared cursor ends its statement when it gets the next.
    """

    connection: aiosqlite.Connection
    cursor: aiosqlite.Cursor

    async def rows(self, sql: str, parameters: Sequence[Any], most: int) -> list[Any]:
        """Return the rows of a statement that yields up to ``most`` rows.

        The result is incomplete only if it exceeds MOST_READ. Few rows take a single call.
        """
        if most <= _FEW:
            return list(await self.connection.execute_fetchall(_SizeLimited(sql), parameters))
        return await self.limited_rows(sql, parameters, most)

    async def limited_rows(self, sql: str, parameters: Sequence[Any], most: int) -> list[Any]:
        """Return up to ``most`` rows, fewer if they exceed MOST_READ."""
        await self.cursor.execute(sql, parameters)
        return list(await self.cursor.fetchmany(most))

    async def end_statement(self) -> None:
        """End the statement if one is open."""
        await self.cursor.execute(_NOTHING)


class ReaderPool:
    """Pool of read-only connections, assigned in the order of the requests."""

    def __init__(self, path: Path, tracer: Tracer = NO_TRACER) -> None:
        """Create a pool for the file at ``path``, which only ``open`` opens."""
        self._path = path
        self._tracer = tracer
        self._idle: list[_Reader] = []
        # Counts the idle connections and is fair: with a queue, the task that just released a
        # connection would get it again before the waiting tasks.
        self._turns = asyncio.Semaphore(0)
        self._all: list[_Reader] = []
        self.waiting = 0
        """Number of reads that wait for a connection."""
        self._closing = False
        self._holding = asyncio.Lock()
        self._admitting = asyncio.Event()
        self._admitting.set()

    async def open(self) -> None:
        """Open the connections. After a failure, ``close`` closes those that are open."""
        for _ in range(READERS):
            connection = await aiosqlite.connect(
                self._path, isolation_level=None, factory=_Connection
            )
            reader = _Reader(connection, await connection.cursor())
            self._all.append(reader)
            self._release(reader)
            await prepare_reader(connection)

    async def close(self) -> None:
        """Refuse new reads, interrupt the running ones, and close the connections."""
        self._closing = True
        taken: list[_Reader] = []
        for reader in self._all:
            await reader.connection.interrupt()
        await self._take_all(taken)
        self._all = []
        for reader in taken:
            await reader.connection.close()
            # Wakes the next waiting read, which then raises UnavailableError.
            self._release(reader)

    @property
    def size(self) -> int:
        """Number of open connections."""
        return len(self._all)

    @property
    def busy(self) -> int:
        """Number of connections in use."""
        return max(0, len(self._all) - len(self._idle))

    async def rows(self, sql: str, parameters: Iterable[Any] = ()) -> list[Row]:
        """Return all rows of a statement with few rows."""
        parameters = tuple(parameters)

        async def read(reader: _Reader) -> list[Row]:
            found = await reader.connection.execute_fetchall(sql, parameters)
            return [tuple(row) for row in found]

        return await self._run(read)

    async def some(self, sql: str, parameters: Iterable[Any], most: int) -> list[Row]:
        """Return the first rows of a statement, up to ``most`` bytes of values; at least one.

        ``most`` is no more than MOST_READ.
        """
        parameters = tuple(parameters)
        taken: list[Row] = []
        room = most
        for row in await self._run(lambda reader: reader.rows(sql, parameters, _NO_LIMIT)):
            room -= sum(map(_weight, row))
            if taken and room < 0:
                break
            taken.append(tuple(row))
        return taken

    async def page(self, sql: str, parameters: Iterable[Any], limit: int) -> Page:
        """Return a page of the messages of a statement that yields up to ``limit + 1`` rows."""
        rows = await self._up_to(sql, parameters, limit + 1)
        return page_of(map(message_from_row, rows), limit)

    async def file_page(self, sql: str, parameters: Iterable[Any], limit: int) -> FilePage:
        """Return a page of the file records of a statement whose last parameter is a limit.

        A single record may exceed MOST_READ, so that nothing is read after it. Then the first two
        are read again without that limit, which shows if more follow.
        """
        parameters = tuple(parameters)
        arguments = (*parameters, limit + 1)
        rows = await self._run(lambda reader: reader.limited_rows(sql, arguments, limit + 1))
        if len(rows) == 1 and sum(map(_weight, rows[0])) > MOST_READ:
            rows = await self.rows(sql, (*parameters, 2))
        return file_page_of(map(file_from_row, rows), limit)

    async def page_of_block(
        self, sql: str, parameters: Iterable[Any], limit: int
    ) -> tuple[Page, int]:
        """Return a page, as ``page`` does, and the size of the block; see ``search``."""
        rows = await self._up_to(sql, parameters, limit + 1)
        size: int = rows[0][-1]
        found = (message_from_row(row) for row in rows if row[0] is not None)
        return page_of(found, limit), size

    async def _up_to(self, sql: str, parameters: Iterable[Any], most: int) -> list[Row]:
        parameters = tuple(parameters)
        return await self._run(lambda reader: reader.rows(sql, parameters, most))

    @contextlib.asynccontextmanager
    async def none_reading(self, patience: float) -> AsyncIterator[None]:
        """Block new reads and wait until none is running.

        A read that still runs after ``patience`` seconds is interrupted and restarted afterwards.
        """
        async with self._holding:
            taken: list[_Reader] = []
            self._admitting.clear()
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        await self._take_all(taken)
                for reader in self._all:
                    if reader not in taken:
                        await reader.connection.interrupt()
                await self._take_all(taken)
                yield
            finally:
                self._admitting.set()
                for reader in taken:
                    self._release(reader)

    async def _take_all(self, taken: list[_Reader]) -> None:
        while len(taken) < len(self._all):
            taken.append(await self._acquire())

    async def _run(self, read: Callable[[_Reader], Awaitable[T]]) -> T:
        while True:
            await self._admitting.wait()
            self._check_open()
            reader = await self._acquire()
            try:
                self._check_open()
                with translating(), self._tracer.step("sqlite.read", {"db.system.name": "sqlite"}):
                    return await read(reader)
            except asyncio.CancelledError:
                # The caller is gone: stop the statement.
                await reader.connection.interrupt()
                await asyncio.shield(reader.end_statement())
                raise
            except InterruptedReadError:
                await reader.end_statement()
            except BaseException:
                with contextlib.suppress(aiosqlite.Error):
                    await reader.end_statement()
                raise
            finally:
                self._release(reader)

    async def _acquire(self) -> _Reader:
        self.waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self.waiting -= 1
        return self._idle.pop()

    def _release(self, reader: _Reader) -> None:
        self._idle.append(reader)
        self._turns.release()

    def _check_open(self) -> None:
        if self._closing or not self._all:
            raise UnavailableError("the store is closing; try again")


def _weight(value: object) -> int:
    """Return an upper bound for the bytes of a value."""
    if isinstance(value, str):
        return len(value) if value.isascii() else 4 * len(value)
    return len(value) if isinstance(value, bytes) else 8
