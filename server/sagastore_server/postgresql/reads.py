"""PostgreSQLReads: the reads that answer clients, with their positions and requirements.

Each read notes its position in the context of its call, and meets the requirement of the call
(``interfaces.consistency``). Internal reads (migration, verification, counts, health) use the pool
directly.

A read that a replica may answer goes to the ``replicas`` first.

The primary has every acknowledged write, so it satisfies every requirement that can be satisfied;
what a replica has shown before it was acknowledged is awaited (``visibility``). Therefore the
position of an answer is compared after the read. That would not do for a replica, whose snapshot
may be older than the position that the same statement returns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from sagastore_server.interfaces.consistency import Level, WalPosition, note, required
from sagastore_server.interfaces.instruments import PRIMARY, Instruments
from sagastore_server.postgresql.pool import Connection, Pool
from sagastore_server.postgresql.positions import located, position_of, telling_system
from sagastore_server.postgresql.queries import QUERIES
from sagastore_server.postgresql.replica import Fetch
from sagastore_server.postgresql.replicas import Replicas
from sagastore_server.postgresql.requirements import check, resolved
from sagastore_server.postgresql.visibility import until_visible
from sagastore_server.runtime.read_batcher import ReadBatcher


class Answer(NamedTuple):
    """Rows of a statement; their additional columns have no meaning."""

    rows: list[Any]
    position: WalPosition | None
    """A position that includes everything the statement saw; None: not told."""


class _Found(NamedTuple):
    row: Any
    """None: there is no such row."""
    position: WalPosition | None


A = TypeVar("A", Answer, _Found)


class PostgreSQLReads:
    """Reads from the primary or a replica."""

    def __init__(
        self, pool: Pool, replicas: Replicas, instruments: Instruments | None = None
    ) -> None:
        """Read from the primary, to which ``pool`` connects, or from ``replicas``.

        ``instruments`` get the reads that the primary answers.
        """
        self._pool = pool
        self._replicas = replicas
        self._instruments = instruments or Instruments()
        self._gets: ReadBatcher[_Found] = ReadBatcher(self._messages)

    async def rows(self, sql: str, *arguments: Any) -> list[Any]:
        """Return the rows of a read-only statement, prepared once per connection.

        The first column must not be NULL (``positions.located``). Rows may have an additional last
        column.

        Raises:
            InvalidRequestError: The required position belongs to another PostgreSQL.
            UnavailableError: No primary with the required position can be found.

        """

        async def fetch(connection: Connection, statement: str) -> list[Any]:
            found: list[Any] = await connection.fetch(statement, *arguments)
            return found

        return await self._rows(sql, fetch)

    async def planned_rows(self, sql: str, arguments: Sequence[Any]) -> list[Any]:
        """As ``rows``, with a new plan for these arguments.

        A generic plan is slow for rare words or for common ones.
        """

        async def fetch(connection: Connection, statement: str) -> list[Any]:
            prepared = await connection.prepare(statement, name="")
            found: list[Any] = await prepared.fetch(*arguments)
            return found

        return await self._rows(sql, fetch)

    async def _rows(self, sql: str, fetch: Fetch) -> list[Any]:
        if self._pool.tells_positions:
            found = await self._replicas.rows(required(), sql, fetch)
            if found is not None:
                note(found.position)
                return found.rows
        return (await self._seen(lambda: self._answer(sql, fetch))).rows

    async def value(self, sql: str, *arguments: Any) -> Any:
        """Return the single value of a read-only statement; None without rows."""
        rows = await self.rows(sql, *arguments)
        return rows[0][0] if rows else None

    async def message(self, message_id: str) -> Any:
        """Return the row of a message, or None; concurrent reads share a statement.

        Raises as ``rows``.
        """
        if self._pool.tells_positions:
            answer = await self._replicas.message(required(), message_id)
            if answer is not None:
                note(answer.position)
                return answer.rows[0] if answer.rows else None

        async def read() -> _Found:
            # Found in any case: `_messages` answers for every id.
            return await self._gets.get(message_id) or _Found(None, None)

        return (await self._seen(read)).row

    async def _messages(self, ids: list[str]) -> Mapping[str, _Found]:
        async def fetch(connection: Connection, statement: str) -> list[Any]:
            found: list[Any] = await connection.fetch(statement, ids)
            return found

        answer = await self._answer(QUERIES["batch_get"], fetch)
        found = dict.fromkeys(ids, _Found(None, answer.position))
        for row in answer.rows:
            found[row[0]] = _Found(row, answer.position)
        return found

    async def _answer(self, sql: str, fetch: Fetch) -> Answer:
        if not self._pool.tells_positions:
            # Decided before the read: an answer that began in an earlier phase of a migration
            # may lack a write that was acknowledged meanwhile without a position.
            return Answer(await self._pool.read(lambda connection: fetch(connection, sql)), None)

        async def read(connection: Connection) -> Answer:
            system = telling_system(connection)
            if not system:
                return Answer(await fetch(connection, sql), None)
            rows = await fetch(connection, located(sql))
            position = position_of(system, rows[0][-1])
            return Answer([] if rows[0][0] is None else rows, position)

        return await self._pool.read(read)

    async def _seen(self, read: Callable[[], Awaitable[A]]) -> A:
        """Return an answer that meets the requirement of the call, and note its position."""
        level = required().level
        if level is not Level.LATEST and self._replicas.are_used:
            # Otherwise no position includes a commit that is not acknowledged.
            await until_visible(self._fetched)
        answer = await read()
        if level is not Level.LATEST:
            answer = await self._satisfying(answer, read)
        self._instruments.read_answered(PRIMARY, level)
        note(answer.position)
        return answer

    async def _fetched(self, sql: str) -> list[Any]:
        async def fetch(connection: Connection) -> list[Any]:
            found: list[Any] = await connection.fetch(sql)
            return found

        return await self._pool.read(fetch)

    async def _satisfying(self, answer: A, read: Callable[[], Awaitable[A]]) -> A:
        connector = self._pool.connector
        if connector is not None and _lacks_timeline(answer.position):
            await connector.look_for_promotion()
            answer = await read()
        least = _least(answer.position)
        if least is not None and answer.position is not None:
            check(least, answer.position)
        return answer


def _lacks_timeline(position: WalPosition | None) -> bool:
    """Return whether a later timeline is required than that of the server that answered."""
    least = _least(position)
    return least is not None and position is not None and least.timeline > position.timeline


def _least(position: WalPosition | None) -> WalPosition | None:
    """Return what is required of an answer at ``position``.

    Nothing is required of a server that tells no positions: it is the primary.
    """
    return None if position is None else resolved(required(), position.system).position
