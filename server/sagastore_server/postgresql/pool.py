"""Connections to PostgreSQL, and how they are lent out.

Whoever needs one waits for a bounded time; a statement takes a bounded time; and a
peer that is gone without a word is noticed, so no call hangs on a database that is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import asyncpg

from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.postgresql.errors import is_connection_loss, translating
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.rows import as_it_is, decode_time, encode_time
from sagastore_server.storage.errors import CannotOpenError, UnavailableError

Connection = Any
"""An asyncpg connection, which has no published types."""

_NETWORK_MARGIN = 2.0
"""Seconds beyond the statement timeout after which the network is to blame."""

_CLOSE_TIMEOUT = 5.0
"""Seconds for reads under way when the pool is closed."""

_KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""A dead peer is noticed after 30 s on an idle connection."""

_UNACKNOWLEDGED_MS = 20_000
"""The same for what was sent and not acknowledged (TCP_USER_TIMEOUT)."""

_SYSTEM = {"db.system.name": "postgresql"}
"""What spans say of the database."""

_SOURCE = "SELECT source FROM pg_settings WHERE name = 'statement_timeout'"
_OF_THE_SESSION = {"client", "session"}
"""Where a setting comes from that a connection began with."""

T = TypeVar("T")


class Pool:
    """Lends out connections that know our types."""

    def __init__(self, options: PostgreSQLOptions, tracer: Tracer = NO_TRACER) -> None:
        """Prepare to connect; ``open`` does."""
        self._options = options
        self._tracer = tracer
        self._pool: Any = None
        self._closing = False
        self.on_loss: list[Callable[[], None]] = []
        """Called when PostgreSQL, or the network, has ended a connection."""
        self.waiting = 0
        """How many wait for a connection."""

    async def open(self) -> None:
        """Connect; also again, after ``close``.

        Raises:
            CannotOpenError: A pooler in between keeps no session, and is not expected.
            asyncpg.PostgresError, OSError, ...: See ``errors.DRIVER_ERRORS``, and
                ValueError for a connection string that cannot be read.

        """
        options = self._options
        self._closing = False
        pool = asyncpg.create_pool(
            options.dsn,
            min_size=min(options.pool_min, options.pool_max),
            max_size=options.pool_max,
            connection_class=_Connection,
            init=self._prepare,
            reset=_no_reset,
            timeout=options.acquire_timeout,
            command_timeout=options.statement_timeout + _NETWORK_MARGIN,
            statement_cache_size=options.statement_cache,
            server_settings=self._session_settings(),
        )
        try:
            await pool
        except BaseException:
            with contextlib.suppress(asyncpg.InterfaceError):
                pool.terminate()
            raise
        if self._closing:
            pool.terminate()
            raise UnavailableError("the store is closing; try again")
        self._pool = pool
        if options.statement_cache:
            await self._require_a_session()

    async def close(self) -> None:
        """Refuse new work, wait a moment for what is under way, and disconnect."""
        self._closing = True
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await pool.close()
        except (TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError, OSError):
            pool.terminate()

    async def rows(self, sql: str, *arguments: Any) -> list[Any]:
        """Return the rows of a statement that only reads, prepared once a connection."""

        async def read(connection: Connection) -> list[Any]:
            found: list[Any] = await connection.fetch(sql, *arguments)
            return found

        return await self._read(read)

    async def planned_rows(self, sql: str, arguments: Sequence[Any]) -> list[Any]:
        """As ``rows``, planned anew for these very arguments.

        A plan made once for all arguments suits neither rare nor common words.
        """

        async def read(connection: Connection) -> list[Any]:
            statement = await connection.prepare(sql, name="")
            found: list[Any] = await statement.fetch(*arguments)
            return found

        return await self._read(read)

    async def value(self, sql: str, *arguments: Any) -> Any:
        """Return the one value of a statement that only reads."""
        rows = await self.rows(sql, *arguments)
        return rows[0][0] if rows else None

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend out a connection.

        Raises:
            UnavailableError: None is to be had in time, or the pool is closing.

        """
        pool = self._pool
        if self._closing or pool is None:
            raise UnavailableError("the store is not open; try again")
        self.waiting += 1
        try:
            connection = await pool.acquire(timeout=self._options.acquire_timeout)
        finally:
            self.waiting -= 1
        try:
            yield connection
        finally:
            await pool.release(connection)

    @property
    def use(self) -> tuple[int, int, int]:
        """How many connections are open, are lent out, and may be."""
        pool = self._pool
        size, idle = (0, 0) if pool is None else (pool.get_size(), pool.get_idle_size())
        return size, size - idle, self._options.pool_max

    @contextlib.asynccontextmanager
    async def dedicated(self) -> AsyncIterator[Connection]:
        """Make a connection beside the pool, for a statement that may take hours.

        Behind PgBouncer the role must have no ``statement_timeout`` for that.

        Raises:
            UnavailableError: The pool is closing.

        """
        if self._closing or self._pool is None:
            raise UnavailableError("the store is not open; try again")
        settings = self._session_settings()
        if self._options.statement_cache:
            settings |= {"statement_timeout": "0", "lock_timeout": "0"}
        connection = await asyncpg.connect(
            self._options.dsn,
            connection_class=_Connection,
            timeout=self._options.acquire_timeout,
            statement_cache_size=self._options.statement_cache,
            server_settings=settings,
        )
        try:
            await self._prepare(connection)
            yield connection
        finally:
            # What runs is cancelled; if not even that can be said in time, the rest is let go.
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await connection.close(timeout=_CLOSE_TIMEOUT)

    def local_settings(self) -> str:
        """Return what a transaction must set where a session cannot be relied on."""
        if self._options.statement_cache:
            return ""
        return (
            f"; SET LOCAL statement_timeout = {self._timeout_ms}"
            f"; SET LOCAL idle_in_transaction_session_timeout = {self._timeout_ms}"
            "; SET LOCAL jit = off"
        )

    async def _read(self, read: Callable[[Connection], Awaitable[T]]) -> T:
        with translating():
            try:
                return await self._read_once(read)
            except Exception as exc:
                # The connection had died while it was idle: the next one is alive.
                if not is_connection_loss(exc) or self._closing:
                    raise
            return await self._read_once(read)

    async def _read_once(self, read: Callable[[Connection], Awaitable[T]]) -> T:
        async with self.connection() as connection:
            if self._options.statement_cache:
                with self._tracer.step("postgresql.read", _SYSTEM):
                    return await read(connection)
            # Behind PgBouncer only a transaction keeps its statements together.
            with self._tracer.step("postgresql.read", _SYSTEM):
                async with self.transaction(connection, "BEGIN READ ONLY"):
                    return await read(connection)

    @contextlib.asynccontextmanager
    async def transaction(self, connection: Connection, begin: str) -> AsyncIterator[None]:
        """Run a transaction; it is rolled back if anything is raised within."""
        await connection.execute(begin + self.local_settings())
        try:
            yield
        except BaseException:
            # What fails here, ends the connection, which ends the transaction.
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                if not connection.is_closed():
                    await connection.execute("ROLLBACK")
            raise
        await connection.execute("COMMIT")

    @property
    def _timeout_ms(self) -> int:
        return int(self._options.statement_timeout * 1000)

    async def _require_a_session(self) -> None:
        """Refuse a pooler that was told to drop our settings: it exchanges sessions, too."""
        async with self.connection() as connection:
            if await connection.fetchval(_SOURCE) not in _OF_THE_SESSION:
                raise CannotOpenError(
                    "something between this server and PostgreSQL drops the settings of "
                    "connections, as PgBouncer can; set postgres_statement_cache to 0"
                )

    def _session_settings(self) -> dict[str, str]:
        settings = {"application_name": "sagastore"}
        if self._options.statement_cache:
            settings |= {
                "statement_timeout": str(self._timeout_ms),
                "idle_in_transaction_session_timeout": str(self._timeout_ms),
                # Compiling takes longer than any statement of ours.
                "jit": "off",
            }
        return settings

    async def _prepare(self, connection: Connection) -> None:
        """Teach a new connection our types, within one transaction (see PgBouncer)."""
        async with self.transaction(connection, "BEGIN READ ONLY"):
            await connection.set_type_codec(
                "timestamptz",
                schema="pg_catalog",
                encoder=encode_time,
                decoder=decode_time,
                format="tuple",
            )
            await connection.set_type_codec(
                "tsvector",
                schema="pg_catalog",
                encoder=as_it_is,
                decoder=as_it_is,
                format="binary",
            )
        connection.add_termination_listener(lambda _: self._ended(connection))

    def _ended(self, connection: Connection) -> None:
        """Tell of a connection that this side has not ended.

        asyncpg connects again where it finds a lost connection in the pool, without a word.
        """
        if not connection.ended_here and not self._closing:
            for listener in self.on_loss:
                listener()


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that notices a dead peer, and knows whether this side has ended it."""

    __slots__ = ("ended_here",)

    def __init__(self, protocol: Any, transport: Any, *rest: Any) -> None:
        super().__init__(protocol, transport, *rest)
        self.ended_here = False
        _keep_alive(transport.get_extra_info("socket"))

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's
        """End the connection in good order."""
        self.ended_here = True
        await super().close(timeout=timeout)

    def terminate(self) -> None:
        """End the connection at once."""
        self.ended_here = True
        super().terminate()


def _keep_alive(sock: Any) -> None:
    if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (*_KEEPALIVE, ("TCP_USER_TIMEOUT", _UNACKNOWLEDGED_MS)):
        # Not every system has every one of them.
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _no_reset(_: Connection) -> None:
    """Spare the round trip that resets a connection: we leave nothing behind in it."""
