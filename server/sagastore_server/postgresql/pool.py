"""Connection pool for PostgreSQL, with a time limit for every operation.

* Acquiring a connection has a timeout.
* A statement has a timeout.
* An unreachable peer is detected (``connecting``).

So no call hangs if the database is unreachable. Every connection uses the same schema, and has the
settings that the server relies on (``session``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import asyncpg

from sagastore_server.config.connection import resolve
from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.postgresql import session
from sagastore_server.postgresql.commit import Commits
from sagastore_server.postgresql.connecting import Connection, Connector, WatchedConnection
from sagastore_server.postgresql.diagnosis import ProblemLog
from sagastore_server.postgresql.errors import (
    DRIVER_ERRORS,
    is_connection_loss,
    is_demotion,
    translating,
)
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.positions import Commit, committed_at, examine
from sagastore_server.postgresql.primary import Role, role_of
from sagastore_server.postgresql.queries import QUERIES
from sagastore_server.postgresql.rows import decode_time, encode_time, unchanged
from sagastore_server.storage.errors import CannotOpenError, StorageError, UnavailableError

__all__ = ["Connection", "Pool"]

_NETWORK_MARGIN = 2.0
"""Seconds after the statement timeout at which the network counts as failed."""

_CLOSE_TIMEOUT = 5.0
"""Seconds that running reads have to finish when the pool closes."""

_SYSTEM = {"db.system.name": "postgresql"}
"""Attributes of the spans."""

_SOURCE = "SELECT source FROM pg_settings WHERE name = 'statement_timeout'"
_SESSION_SOURCES = {"client", "session"}
"""Sources in pg_settings of a setting that was sent with the connection."""

T = TypeVar("T")


class Pool:
    """Pool of connections with the type codecs of this package."""

    def __init__(
        self, options: PostgreSQLOptions, tracer: Tracer = NO_TRACER, *, schema: str = ""
    ) -> None:
        """Create a pool; only ``open`` connects.

        ``schema`` is the schema of the tables, as an identifier; empty: that of ``search_path``.
        """
        self._given_schema = schema
        self._options = options
        self._tracer = tracer
        self._pool: Any = None
        self.connector: Connector | None = None
        """Opens the connections; None before ``open``."""
        self._schema = ""
        """Schema of the tables, as an identifier. Known after the first connection."""
        self._version = 0
        """Major version of PostgreSQL. Known after the first connection."""
        self._problems = ProblemLog()
        self._closing = False
        self.commits = Commits(requires_standby=options.require_sync)
        """The commits of all its connections."""
        self.tells_positions = True
        """Whether reads and writes tell positions: if this is the only store."""
        self.on_loss: list[Callable[[], None]] = []
        """Called when PostgreSQL or the network has ended a connection, or has a new primary."""
        self.enter_timeline: Callable[[Connection, int], Awaitable[None]] | None = None
        """Prepares the database for writes on a new timeline, before the connection is used."""
        self._timeline = 0
        """The latest timeline that was prepared."""
        self.waiting = 0
        """Number of callers that wait for a connection."""

    async def open(self, *, logged: bool = True) -> None:
        """Connect. It can be called again after ``close``.

        ``logged``: whether a failure is logged; not if it ends the program with its cause.

        Raises:
            CannotOpenError: A connection pooler drops session settings.
            asyncpg.PostgresError, OSError, ...: See ``errors.DRIVER_ERRORS``; ValueError for an
                invalid connection string.

        """
        options = self._options
        self._closing = False
        self._schema = self._given_schema
        self.connector = self._new_connector()
        pool = asyncpg.create_pool(
            min_size=min(options.pool_min, options.pool_max),
            max_size=options.pool_max,
            connect=self._connect_for_pool,
            connection_class=WatchedConnection,
            reset=_no_reset,
        )
        try:
            with self._reported() if logged else contextlib.nullcontext():
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

    def _new_connector(self) -> Connector:
        """Return what opens the connections.

        Raises:
            ConnectionStringError: The connection string is invalid.

        """
        options = self._options
        return Connector(
            resolve(options.dsn, os.environ),
            options.acquire_timeout,
            options.statement_cache,
            self._report_loss,
        )

    async def close(self) -> None:
        """Refuse new work, wait up to `_CLOSE_TIMEOUT` for running work, and disconnect."""
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
        """Return the rows of a read-only statement, prepared once per connection."""

        async def read(connection: Connection) -> list[Any]:
            found: list[Any] = await connection.fetch(sql, *arguments)
            return found

        return await self.read(read)

    async def value(self, sql: str, *arguments: Any) -> Any:
        """Return the single value of a read-only statement; None without rows."""
        rows = await self.rows(sql, *arguments)
        return rows[0][0] if rows else None

    async def drawn(self, sql: str) -> Any:
        """Return the value of a statement that draws numbers from a sequence.

        It is executed again if the connection had died; the numbers drawn before are lost.
        """

        async def draw(connection: Connection) -> Any:
            return await connection.fetchval(sql)

        return await self.read(draw, session.BEGIN_WRITE)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Acquire a connection for the context.

        Raises:
            UnavailableError: The pool is closing.
            TimeoutError: No connection was free within the timeout.

        """
        pool = self._pool
        if self._closing or pool is None:
            raise UnavailableError("the store is not open; try again")
        with self._reported():
            self.waiting += 1
            try:
                connection = await pool.acquire(timeout=self._options.acquire_timeout)
            finally:
                self.waiting -= 1
            try:
                yield connection
            except asyncpg.PostgresError as exc:
                if is_demotion(exc):
                    connection.terminate()
                raise
            except asyncpg.InternalClientError:
                # PostgreSQL ended it as a statement began, or the driver lost track of its state.
                connection.terminate()
                self._report_loss()
                raise
            finally:
                await pool.release(connection)

    @property
    def schema(self) -> str:
        """Schema of the tables, as an identifier; empty before the first connection."""
        return self._schema

    @property
    def use(self) -> tuple[int, int, int]:
        """Open connections, connections in use, and the maximum."""
        pool = self._pool
        size, idle = (0, 0) if pool is None else (pool.get_size(), pool.get_idle_size())
        return size, size - idle, self._options.pool_max

    @contextlib.asynccontextmanager
    async def dedicated(self) -> AsyncIterator[Connection]:
        """Open a connection outside the pool, for a statement that can take hours.

        With PgBouncer, the role must have no ``statement_timeout``.

        Raises:
            UnavailableError: The pool is closing.

        """
        if self._closing or self._pool is None:
            raise UnavailableError("the store is not open; try again")
        settings = self._session_settings()
        if self._options.statement_cache:
            settings |= {"statement_timeout": "0"}
        with self._reported():
            connection = await self._connect(settings)
            try:
                yield connection
            finally:
                # Cancels a running statement. After the timeout the connection is dropped.
                with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    await connection.close(timeout=_CLOSE_TIMEOUT)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Log the driver's errors: what callers get does not name their cause."""
        try:
            yield
        except DRIVER_ERRORS as exc:
            if not self._closing:
                self._problems.report(exc, self.connector)
            raise

    def local_settings(self) -> str:
        """Return the settings of a transaction if session settings cannot be relied on."""
        if self._options.statement_cache:
            return ""
        return session.local_settings(self._timeout_ms, self._version, self._schema)

    async def read(
        self, read: Callable[[Connection], Awaitable[T]], begin: str = session.BEGIN_READ
    ) -> T:
        """Run a statement on a connection, and once more if the connection had died.

        ``begin`` begins its transaction, if it needs one because of a pooler.
        """
        with translating():
            try:
                return await self._read_once(read, begin)
            except Exception as exc:
                # The connection had died while idle: retry once on another one.
                if not is_connection_loss(exc) or self._closing:
                    raise
            return await self._read_once(read, begin)

    async def _read_once(self, read: Callable[[Connection], Awaitable[T]], begin: str) -> T:
        async with self.connection() as connection:
            if self._options.statement_cache:
                with self._tracer.step("postgresql.read", _SYSTEM):
                    return await read(connection)
            # With PgBouncer, only a transaction keeps its statements on one connection.
            with self._tracer.step("postgresql.read", _SYSTEM):
                async with self.transaction(connection, begin):
                    return await read(connection)

    @contextlib.asynccontextmanager
    async def transaction(
        self, connection: Connection, begin: str, *, acknowledged: bool = False, then: str = ""
    ) -> AsyncIterator[None]:
        """Run a transaction; roll it back if the context raises or the commit is refused.

        Args:
            connection: Runs it.
            begin: Statement that begins it.
            acknowledged: Whether its rows are then acknowledged as stored, so that they need
                the standby that ``postgres_require_sync`` asks for.
            then: Statements sent in one message with the commit, with a leading semicolon.

        Raises:
            UnavailableError: The standby has not confirmed the commit; the outcome is unknown.
            NotReplicatedError: The required standby does not stream; nothing was committed.

        """
        await connection.execute(begin + self.local_settings())
        try:
            yield
        except BaseException:
            await _roll_back(connection)
            raise
        try:
            if acknowledged:
                await self.commits.commit_write(connection, then)
            else:
                await self.commits.commit(connection)
        except (asyncpg.PostgresError, StorageError):
            # Refused before COMMIT: the transaction is still open. Or not confirmed: that of
            # ``then`` is.
            await _roll_back(connection)
            raise

    @contextlib.asynccontextmanager
    async def write(self, connection: Connection) -> AsyncIterator[Commit]:
        """Run a transaction whose rows are then acknowledged; as ``transaction``.

        The object of the context gets its position after the commit.
        """
        commit = Commit()
        if not self.tells_positions:
            async with self.transaction(connection, QUERIES["begin"], acknowledged=True):
                yield commit
            return
        # The same server must tell the position. Behind a pooler, only a transaction ensures that.
        then = "" if self._options.statement_cache else f"; {session.BEGIN_READ}"
        async with self.transaction(connection, QUERIES["begin"], acknowledged=True, then=then):
            yield commit
        try:
            commit.position = await committed_at(connection)
        finally:
            if then:
                await _roll_back(connection)

    @property
    def _timeout_ms(self) -> int:
        return int(self._options.statement_timeout * 1000)

    async def _require_a_session(self) -> None:
        """Refuse a pooler that ignores session settings, because it also shares sessions."""
        async with self.connection() as connection:
            if await connection.fetchval(_SOURCE) not in _SESSION_SOURCES:
                raise CannotOpenError(
                    "a connection pooler, for example PgBouncer, drops the session settings of "
                    "this server; set postgres_statement_cache to 0"
                )

    def _session_settings(self) -> dict[str, str]:
        if not self._options.statement_cache:
            return {}  # A pooler refuses them.
        path = {"search_path": self._schema} if self._schema else {}
        return session.session_settings(self._timeout_ms) | path

    async def _connect_for_pool(self, *_: Any, **__: Any) -> Connection:
        """Open a connection for the pool of the driver, whose arguments are not needed."""
        timeout = self._options.statement_timeout + _NETWORK_MARGIN
        return await self._connect(self._session_settings(), timeout)

    async def _connect(
        self, settings: dict[str, str], command_timeout: float | None = None
    ) -> Connection:
        assert self.connector is not None  # noqa: S101 - `open` has set it
        has_schema = "search_path" in settings

        async def prepare(connection: Connection) -> Role:
            connection.has_schema = has_schema
            role = await self._prepare(connection)
            if self.enter_timeline is not None and role.timeline > self._timeline:
                await self.enter_timeline(connection, role.timeline)
                self._timeline = role.timeline
            return role

        connection = await self.connector.connect(settings, prepare, command_timeout)
        connection.add_termination_listener(lambda _: self._ended(connection))
        return connection

    async def _prepare(self, connection: Connection) -> Role:
        """Prepare a new connection, in one transaction because of PgBouncer."""
        self._version = int(connection.get_server_version().major)
        begin = session.BEGIN_READ
        if self._options.statement_cache:
            begin += session.newer_settings(self._version)
        async with self.transaction(connection, begin):
            role = await role_of(connection)
            if role.timeline:
                await examine(connection)
            await self._choose_schema(connection)
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
                encoder=unchanged,
                decoder=unchanged,
                format="binary",
            )
        return role

    async def _choose_schema(self, connection: Connection) -> None:
        """Use the same schema on every connection, even if the defaults change meanwhile.

        Raises:
            CannotOpenError: No schema of search_path can be used.

        """
        if connection.has_schema:
            return
        if not self._schema:
            path, schema = await connection.fetchrow(session.FIND_SCHEMA)
            if schema is None:
                assert self.connector is not None  # noqa: S101 - it has opened the connection
                place = self.connector.parameters.address
                raise CannotOpenError(
                    f"PostgreSQL at {place}: schema {path} does not exist, or the role lacks the "
                    "privilege USAGE on it; create it, or correct search_path, in the connection "
                    "string or the defaults of the role"
                )
            self._schema = session.quoted(schema)
        if self._options.statement_cache:
            await connection.execute("SELECT set_config('search_path', $1, false)", self._schema)

    def _ended(self, connection: Connection) -> None:
        """Report a connection that this side has not ended.

        asyncpg itself replaces a lost connection in the pool without reporting it.
        """
        if not connection.ended_here:
            self._report_loss()

    def _report_loss(self) -> None:
        if not self._closing:
            for listener in self.on_loss:
                listener()


async def _roll_back(connection: Connection) -> None:
    # If the rollback fails, the connection ends, and with it the transaction.
    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        if not connection.is_closed():
            await connection.execute("ROLLBACK")


async def _no_reset(_: Connection) -> None:
    """Skip the reset of a connection and its round trip: no session state is left in it."""
