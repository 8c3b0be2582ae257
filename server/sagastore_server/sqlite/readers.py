"""Connections for reading, apart from the writer: neither waits for the other.

A read holds its transaction only while its statement runs, never between two calls
of a client, so that the write-ahead log can be emptied.
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
from sagastore_server.sqlite.connection import message_from_row, prepare_reader
from sagastore_server.sqlite.errors import InterruptedReadError, translating
from sagastore_server.storage.errors import UnavailableError
from sagastore_server.storage.limits import page_of
from sagastore_server.storage.model import Page

READERS = 4
"""Connections, each with a thread. SQLite reads without the GIL."""

_FEW = 64
"""Rows that are fetched whatever they weigh: at most about 80 MiB, were all of the largest size."""

MOST_READ = 4 * 1024 * 1024
"""Characters and bytes that a statement of many rows yields at most, but for the row that goes
beyond. Never less than what a page holds (``storage.limits``), so that the page is full then."""

_NOTHING = "SELECT 1 WHERE 0"
_NO_LIMIT = 2**31 - 1

T = TypeVar("T")
Row = tuple[Any, ...]


class _Cursor(sqlite3.Cursor):
    """Fetches many rows in one turn of its thread, and no more than are to be in memory.

    In turns of a few rows each, a thread that waits for its turn, and for the interpreter,
    takes longer for 500 rows than SQLite does.
    """

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


class _Connection(sqlite3.Connection):
    """Makes cursors that know when to stop."""

    def cursor(self, factory: Callable[[sqlite3.Connection], Any] | None = None) -> Any:
        return super().cursor(factory or _Cursor)


class _Reader(NamedTuple):
    """A connection with the one cursor that its longer reads go through.

    A cursor of its own for each read could be left open: when a read is cancelled just as
    its cursor arrives, nobody holds the cursor but the exception, and that for as long as
    somebody holds the exception. Until then its snapshot stays, and SQLite interrupts every
    later statement of the connection as well. This one cursor lets go of its statement
    whenever it is given the next.
    """

    connection: aiosqlite.Connection
    cursor: aiosqlite.Cursor

    async def rows(self, sql: str, parameters: Sequence[Any], most: int) -> list[Any]:
        """Return the rows of a statement that yields up to ``most``, or the first of them.

        If these are not all, they exceed MOST_READ. Few take one turn of the thread in all.
        """
        if most <= _FEW:
            return list(await self.connection.execute_fetchall(sql, parameters))
        await self.cursor.execute(sql, parameters)
        return list(await self.cursor.fetchmany(most))

    async def let_go(self) -> None:
        """End the statement, if one is open."""
        await self.cursor.execute(_NOTHING)


class ReaderPool:
    """Lends out read-only connections, first come, first served."""

    def __init__(self, path: Path, tracer: Tracer = NO_TRACER) -> None:
        """Prepare to read the file at ``path``; ``open`` opens it."""
        self._path = path
        self._tracer = tracer
        self._idle: list[_Reader] = []
        # Counts the idle connections, and is fair: a queue would give a connection back
        # to the task that just released it, before those who wait.
        self._turns = asyncio.Semaphore(0)
        self._all: list[_Reader] = []
        self.waiting = 0
        """How many reads wait for a connection."""
        self._closing = False
        self._holding = asyncio.Lock()
        self._admitting = asyncio.Event()
        self._admitting.set()

    async def open(self) -> None:
        """Open the connections; after a failure, ``close`` closes those that were."""
        for _ in range(READERS):
            connection = await aiosqlite.connect(
                self._path, isolation_level=None, factory=_Connection
            )
            reader = _Reader(connection, await connection.cursor())
            self._all.append(reader)
            self._release(reader)
            await prepare_reader(connection)

    async def close(self) -> None:
        """Refuse new reads, interrupt those that run, and close the connections."""
        self._closing = True
        taken: list[_Reader] = []
        for reader in self._all:
            await reader.connection.interrupt()
        await self._take_all(taken)
        self._all = []
        for reader in taken:
            await reader.connection.close()
            # Who waits for it learns that the pool is closing.
            self._release(reader)

    @property
    def size(self) -> int:
        """How many connections are open."""
        return len(self._all)

    @property
    def busy(self) -> int:
        """How many of them are lent out."""
        return max(0, len(self._all) - len(self._idle))

    async def rows(self, sql: str, parameters: Iterable[Any] = ()) -> list[Row]:
        """Return all rows of a statement that returns few."""
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
        """Return a page of a statement's messages; it yields up to ``limit + 1``."""
        rows = await self._up_to(sql, parameters, limit + 1)
        return page_of(map(message_from_row, rows), limit)

    async def page_of_block(
        self, sql: str, parameters: Iterable[Any], limit: int
    ) -> tuple[Page, int]:
        """Return a page as ``page`` does, and how many rows the block has; see ``search``."""
        rows = await self._up_to(sql, parameters, limit + 1)
        size: int = rows[0][-1]
        found = (message_from_row(row) for row in rows if row[0] is not None)
        return page_of(found, limit), size

    async def _up_to(self, sql: str, parameters: Iterable[Any], most: int) -> list[Row]:
        parameters = tuple(parameters)
        return await self._run(lambda reader: reader.rows(sql, parameters, most))

    @contextlib.asynccontextmanager
    async def none_reading(self, patience: float) -> AsyncIterator[None]:
        """Hold back new reads, and wait until none is running.

        A read that still runs after ``patience`` seconds is interrupted, and begins
        anew afterwards.
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
                # Nobody waits for the answer: do not let the statement run on.
                await reader.connection.interrupt()
                await asyncio.shield(reader.let_go())
                raise
            except InterruptedReadError:
                await reader.let_go()
            except BaseException:
                with contextlib.suppress(aiosqlite.Error):
                    await reader.let_go()
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
    """Return about how many bytes a value takes, never too few."""
    if isinstance(value, str):
        return len(value) if value.isascii() else 4 * len(value)
    return len(value) if isinstance(value, bytes) else 8
