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

from sagastore_server.ports import tracing
from sagastore_server.sqlite.connect import message_from_row, prepare_reader
from sagastore_server.sqlite.errors import InterruptedReadError, translating
from sagastore_server.storage.errors import UnavailableError
from sagastore_server.storage.limits import PageBuilder
from sagastore_server.storage.model import Page

READERS = 4
"""Connections, each with a thread. SQLite reads without the GIL."""

_ROWS_AT_ONCE = 64
"""Rows fetched in one step: at most about 80 MiB, were all of the largest size."""

_NOTHING = "SELECT 1 WHERE 0"

T = TypeVar("T")
Row = tuple[Any, ...]


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

    async def first_rows(
        self, sql: str, parameters: Sequence[Any], most: int
    ) -> tuple[list[sqlite3.Row], bool]:
        """Begin a statement that yields up to ``most`` rows, and return what ``next_rows`` does.

        So few that they are fetched in one step take one turn of the thread in all.
        """
        if most <= _ROWS_AT_ONCE:
            return list(await self.connection.execute_fetchall(sql, parameters)), False
        await self.cursor.execute(sql, parameters)
        return await self.next_rows()

    async def next_rows(self, at_once: int = _ROWS_AT_ONCE) -> tuple[list[sqlite3.Row], bool]:
        """Return the next rows of the statement, and whether there may be more.

        Fewer than were asked for are the last: to ask again would be a turn of the thread.
        """
        rows = list(await self.cursor.fetchmany(at_once))
        return rows, len(rows) == at_once

    async def let_go(self) -> None:
        """End the statement, if one is open."""
        await self.cursor.execute(_NOTHING)


class ReaderPool:
    """Lends out read-only connections, first come, first served."""

    def __init__(self, path: Path) -> None:
        """Prepare to read the file at ``path``; ``open`` opens it."""
        self._path = path
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
            connection = await aiosqlite.connect(self._path, isolation_level=None)
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

    async def some(
        self, sql: str, parameters: Iterable[Any], most: int, at_once: int = _ROWS_AT_ONCE
    ) -> list[Row]:
        """Return the first rows of a statement, up to ``most`` bytes of values; at least one.

        ``at_once`` rows are fetched before they are weighed: few where rows may be large.
        """
        parameters = tuple(parameters)

        async def read(reader: _Reader) -> list[Row]:
            taken: list[Row] = []
            room = most
            await reader.cursor.execute(sql, parameters)
            more = True
            while more:
                rows, more = await reader.next_rows(at_once)
                for row in rows:
                    room -= sum(map(_weight, row))
                    if taken and room < 0:
                        if more:
                            await reader.let_go()
                        return taken
                    taken.append(tuple(row))
            return taken

        return await self._run(read)

    async def page(self, sql: str, parameters: Iterable[Any], limit: int) -> Page:
        """Return a page of a statement's messages; it yields up to ``limit + 1``."""
        parameters = tuple(parameters)

        async def read(reader: _Reader) -> Page:
            builder = PageBuilder(limit)
            rows, more = await reader.first_rows(sql, parameters, limit + 1)
            while all(builder.add(message_from_row(row)) for row in rows) and more:
                rows, more = await reader.next_rows()
            if more:
                await reader.let_go()
            return builder.page()

        return await self._run(read)

    async def page_of_block(
        self, sql: str, parameters: Iterable[Any], limit: int
    ) -> tuple[Page, int]:
        """Return a page as ``page`` does, and how many rows the block has; see ``search``."""
        parameters = tuple(parameters)

        async def read(reader: _Reader) -> tuple[Page, int]:
            builder = PageBuilder(limit)
            rows, more = await reader.first_rows(sql, parameters, limit + 1)
            size: int = rows[0][-1]
            while (
                all(builder.add(message_from_row(row)) for row in rows if row[0] is not None)
                and more
            ):
                rows, more = await reader.next_rows()
            if more:
                await reader.let_go()
            return builder.page(), size

        return await self._run(read)

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
                with translating(), tracing.step("sqlite.read", **{"db.system.name": "sqlite"}):
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
