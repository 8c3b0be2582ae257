"""Connections for reading, apart from the writer: neither waits for the other.

A read holds its transaction only while its statement runs, never between two calls
of a client, so that the write-ahead log can be emptied.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from sagastore_server.sqlite.connect import message_from_row, prepare_reader
from sagastore_server.sqlite.errors import InterruptedReadError, translating
from sagastore_server.storage.errors import UnavailableError
from sagastore_server.storage.limits import PageBuilder
from sagastore_server.storage.model import Page

READERS = 4
"""Connections, each with a thread. SQLite reads without the GIL."""

_ROWS_AT_ONCE = 64
"""Rows fetched in one step: at most about 80 MiB, were all of the largest size."""

T = TypeVar("T")
Row = tuple[Any, ...]


class ReaderPool:
    """Lends out read-only connections, first come, first served."""

    def __init__(self, path: Path) -> None:
        """Prepare to read the file at ``path``; ``open`` opens it."""
        self._path = path
        self._idle: list[aiosqlite.Connection] = []
        # Counts the idle connections, and is fair: a queue would give a connection back
        # to the task that just released it, before those who wait.
        self._turns = asyncio.Semaphore(0)
        self._all: list[aiosqlite.Connection] = []
        self._closing = False
        self._holding = asyncio.Lock()
        self._admitting = asyncio.Event()
        self._admitting.set()

    async def open(self) -> None:
        """Open the connections; after a failure, ``close`` closes those that were."""
        for _ in range(READERS):
            connection = await aiosqlite.connect(self._path, isolation_level=None)
            self._all.append(connection)
            self._release(connection)
            await prepare_reader(connection)

    async def close(self) -> None:
        """Refuse new reads, interrupt those that run, and close the connections."""
        self._closing = True
        taken: list[aiosqlite.Connection] = []
        for connection in self._all:
            await connection.interrupt()
        await self._take_all(taken)
        self._all = []
        for connection in taken:
            await connection.close()
            # Who waits for it learns that the pool is closing.
            self._release(connection)

    async def rows(self, sql: str, parameters: Iterable[Any] = ()) -> list[Row]:
        """Return all rows of a statement that returns few."""
        parameters = tuple(parameters)

        async def read(connection: aiosqlite.Connection) -> list[Row]:
            return [tuple(row) for row in await connection.execute_fetchall(sql, parameters)]

        return await self._run(read)

    async def some(
        self, sql: str, parameters: Iterable[Any], most: int, at_once: int = _ROWS_AT_ONCE
    ) -> list[Row]:
        """Return the first rows of a statement, up to ``most`` bytes of values; at least one.

        ``at_once`` rows are fetched before they are weighed: few where rows may be large.
        """
        parameters = tuple(parameters)

        async def read(connection: aiosqlite.Connection) -> list[Row]:
            taken: list[Row] = []
            room = most
            async with connection.execute(sql, parameters) as cursor:
                while rows := await cursor.fetchmany(at_once):
                    for row in rows:
                        room -= sum(map(_weight, row))
                        if taken and room < 0:
                            return taken
                        taken.append(tuple(row))
            return taken

        return await self._run(read)

    async def page(self, sql: str, parameters: Iterable[Any], limit: int) -> Page:
        """Return a page of a statement's messages; it should yield ``limit + 1``."""
        parameters = tuple(parameters)

        async def read(connection: aiosqlite.Connection) -> Page:
            builder = PageBuilder(limit)
            async with connection.execute(sql, parameters) as cursor:
                while rows := await cursor.fetchmany(_ROWS_AT_ONCE):
                    if not all(builder.add(message_from_row(row)) for row in rows):
                        break
            return builder.page()

        return await self._run(read)

    @contextlib.asynccontextmanager
    async def none_reading(self, patience: float) -> AsyncIterator[None]:
        """Hold back new reads, and wait until none is running.

        A read that still runs after ``patience`` seconds is interrupted, and begins
        anew afterwards.
        """
        async with self._holding:
            taken: list[aiosqlite.Connection] = []
            self._admitting.clear()
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        await self._take_all(taken)
                for connection in self._all:
                    if connection not in taken:
                        await connection.interrupt()
                await self._take_all(taken)
                yield
            finally:
                self._admitting.set()
                for connection in taken:
                    self._release(connection)

    async def _take_all(self, taken: list[aiosqlite.Connection]) -> None:
        while len(taken) < len(self._all):
            taken.append(await self._acquire())

    async def _run(self, read: Callable[[aiosqlite.Connection], Awaitable[T]]) -> T:
        while True:
            await self._admitting.wait()
            self._check_open()
            connection = await self._acquire()
            try:
                self._check_open()
                with translating():
                    return await read(connection)
            except asyncio.CancelledError:
                # Nobody waits for the answer: do not let the statement run on.
                await connection.interrupt()
                await asyncio.shield(_let_go(connection))
                raise
            except InterruptedReadError:
                await _let_go(connection)
            finally:
                self._release(connection)

    async def _acquire(self) -> aiosqlite.Connection:
        await self._turns.acquire()
        return self._idle.pop()

    def _release(self, connection: aiosqlite.Connection) -> None:
        self._idle.append(connection)
        self._turns.release()

    def _check_open(self) -> None:
        if self._closing or not self._all:
            raise UnavailableError("the store is closing; try again")


def _weight(value: object) -> int:
    """Return about how many bytes a value takes, never too few."""
    if isinstance(value, str):
        return len(value) if value.isascii() else 4 * len(value)
    return len(value) if isinstance(value, bytes) else 8


async def _let_go(connection: aiosqlite.Connection) -> None:
    """Make the connection's thread forget the cursor of a read that was given up.

    The thread keeps its last result. While that is an open cursor, its snapshot stays,
    and SQLite interrupts every later statement of the connection as well. A commit
    outside of a transaction executes nothing, and takes the cursor's place.
    """
    await connection.commit()
