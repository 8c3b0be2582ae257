"""Replica: one standby of PostgreSQL that answers reads, and whether it is in rotation.

It is out of rotation for one of the reasons in `Out`, or in rotation. It is watched over a separate
connection: calmly, or quickly while a read waits for its watermark. A server that does not answer
within `SILENT_AFTER` loses all its connections, so that the reads on it end, and run elsewhere.

Two facts make a read correct, whatever happens between two looks at the server:

* The watermark that it is checked against was read before it began, over the same connection or
  while that was open (`watermark`).
* Its position comes from the server that answered it, which was a standby then.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import asyncpg
import structlog

from sagastore_server.config.connection import resolve_replica
from sagastore_server.interfaces.consistency import WalPosition
from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.postgresql.connecting import Connection, ConnectTimeoutError
from sagastore_server.postgresql.diagnosis import diagnosed
from sagastore_server.postgresql.errors import DRIVER_ERRORS, translated
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.pool import Pool
from sagastore_server.postgresql.primary_log import PrimaryLog
from sagastore_server.postgresql.queries import QUERIES
from sagastore_server.postgresql.replica_pool import (
    SILENT_AFTER,
    OtherDataError,
    ReplicaPool,
    replica_options,
)
from sagastore_server.postgresql.schema import SCHEMA_VERSION
from sagastore_server.postgresql.session import BEGIN_READ
from sagastore_server.postgresql.watermark import (
    Identity,
    Watermark,
    identity_of,
    located,
    position_of,
    watermark_of,
)
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.load import ReplicaLoad

CALM = 0.5
"""Seconds between two looks at a replica."""

_QUICK = 0.002
"""The same while a read waits for it. A standby replays a commit within some milliseconds."""

_PROVING = 0.1
"""The same before it is known to follow the primary."""

_WRONG_AGAIN = 30.0
"""Seconds after which a server of another cluster, or several at one address, are tried again."""

RECEIVER_SILENT_AFTER = 3.0
"""Seconds without a message to the receiver, although the primary has written something, after
which a replica leaves the rotation."""

_ERRORS = (*DRIVER_ERRORS, ValueError, StorageError)
"""Errors of a connection and of its parameters."""

_log = structlog.get_logger(__name__)


class Out(enum.Enum):
    """Why a replica is out of rotation: the value is what people read, with a remedy."""

    UNKNOWN = "it has not answered yet; wait"
    UNREACHABLE = "{}"
    OTHER_DATA = (
        "it is a server of another cluster, or another database than that of postgres; correct its "
        "connection string"
    )
    BALANCER = (
        "several servers answer at its address; name a server, not a load balancer, because each "
        "has replayed something else"
    )
    PRIVILEGE = "the role may not see its WAL receiver; GRANT pg_read_all_stats to the role"
    NO_POSITIONS = (
        "the primary tells this role no positions; GRANT EXECUTE ON FUNCTION pg_control_system(), "
        "pg_walfile_name(pg_lsn), pg_current_wal_flush_lsn() to the role"
    )
    SCHEMA = "it has not replayed the schema of this server yet; wait"
    PRIMARY = "it is the primary; name the standbys too, or make it a standby"
    NO_STANDBY = (
        "it accepts writes but is not the primary; stop it, then make it a standby with pg_rewind "
        "or a new base backup"
    )
    TIMELINE = "it is on timeline {} of PostgreSQL and the primary on {}; check what it follows"
    RECEIVER = "it receives no changes; check that it runs, primary_conninfo, and its log"
    NO_PRIMARY = "its lag is unknown, because the primary does not answer; check the primary"
    LAG = "it is {} s behind; check its disk, its processor and long queries on it"


class State(NamedTuple):
    """Why a replica is out of rotation."""

    reason: Out
    detail: str


def _out(reason: Out, *values: object) -> State:
    return State(reason, reason.value.format(*values))


class _NotFollowingError(Exception):
    """The server has replayed what the primary has not written, or follows a former one."""


class NotUsableError(Exception):
    """The read cannot run on this replica."""


class _BalancerError(Exception):
    """Several servers answer at the address."""


class ReplicaAnswer(NamedTuple):
    """Rows of a statement; their additional last columns have no meaning."""

    rows: list[Any]
    position: WalPosition
    """A position that includes everything the statement has seen."""


Fetch = Callable[[Connection, str], Awaitable[list[Any]]]
"""Runs a statement on a connection."""

Satisfied = Callable[[Watermark], bool]
"""Whether a watermark is enough for a read."""


class Replica:
    """A replica. Belongs to one event loop."""

    def __init__(
        self,
        number: int,
        options: PostgreSQLOptions,
        primary: Pool,
        log: PrimaryLog,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """Describe a replica, to which only `run` connects.

        Args:
            number: Its place in ``postgres_replicas``, from 1.
            options: Those of the store, with its connection string.
            primary: Connections to the primary.
            log: The positions of the primary.
            tracer: Records spans.

        """
        self.number = number
        dsn = options.replicas[number - 1]
        self.place = resolve_replica(dsn, os.environ).address
        """Host and database, for display."""
        self._options = replica_options(options, dsn)
        self._max_lag = options.replica_max_lag
        self._primary = primary
        self._log = log
        self._tracer = tracer
        self._pool: ReplicaPool | None = None
        self._identity: Identity | None = None
        """Identity of the server that is watched."""
        self._stranger_at: float | None = None
        """When another server answered at the same address."""
        self._has_schema = False
        self._is_proven = False
        """Whether it is known to follow the primary."""
        self._heard_at = 0.0
        """`time.monotonic` when its receiver was last known to work."""
        self._problem = _out(Out.UNKNOWN)
        self._reported: Out | None = None
        self._nudged = asyncio.Event()
        self.mark: Watermark | None = None
        """Its latest watermark; None while it does not answer."""
        self.on_mark: Callable[[], None] = lambda: None
        """Called when its watermark was read."""
        self.is_wanted: Callable[[], bool] = lambda: False
        """Whether a read waits for its watermark."""

    # ------------------------------------------------------------------ state

    def out(self, now: float) -> State | None:
        """Return why it is out of rotation; None: it is in rotation."""
        if self.mark is None:
            return _out(Out.NO_POSITIONS) if self._log.is_refused else self._problem
        return self._state(self.mark, now)

    def _state(self, mark: Watermark, now: float) -> State | None:
        """Return why a server with ``mark`` must not answer reads; None: it may."""
        return self._unfit(mark) or self._behind(mark, now)

    def _unfit(self, mark: Watermark) -> State | None:
        """Return why a server is no standby that can be used; None: it is."""
        if not mark.is_standby:
            primary = self._log.identity
            is_primary = primary is not None and mark.identity.is_server_of(primary)
            return _out(Out.PRIMARY if is_primary else Out.NO_STANDBY)
        if mark.has_receiver and not mark.timeline:
            return _out(Out.PRIVILEGE)
        return None if self._has_schema else _out(Out.SCHEMA)

    def _behind(self, mark: Watermark, now: float) -> State | None:
        """Return why a standby is too far behind; None: it is not."""
        if mark.timeline and mark.timeline != self._log.timeline:
            return _out(Out.TIMELINE, mark.timeline, self._log.timeline)
        lag, _ = self._log.lag(mark, now)
        silence = now - self._heard_at
        if silence > RECEIVER_SILENT_AFTER and (lag > 0 or not mark.has_receiver):
            return _out(Out.RECEIVER)
        if self._log.age(mark, now) > self._max_lag:
            return _out(Out.LAG, round(lag)) if lag else _out(Out.NO_PRIMARY)
        return None if self._is_proven else _out(Out.UNKNOWN)

    def load(self, now: float) -> ReplicaLoad:
        """Return its state for metrics and readiness."""
        mark, state = self.mark, self.out(now)
        follows = mark is not None and mark.is_standby
        lag, lag_bytes = self._log.lag(mark, now) if mark and follows else (0.0, 0)
        size, busy, most = (0, 0, self._options.pool_max) if self._pool is None else self._pool.use
        return ReplicaLoad(
            self.number,
            self.place,
            out="" if state is None else state.reason.name,
            detail="" if state is None else state.detail,
            lag_seconds=lag,
            lag_bytes=lag_bytes,
            timeline=0 if mark is None else mark.timeline,
            connections=size,
            connections_busy=busy,
            connections_most=most,
        )

    # ------------------------------------------------------------------ reads

    async def read(self, sql: str, fetch: Fetch, satisfied: Satisfied) -> ReplicaAnswer:
        """Run a read-only statement, if a watermark that was read before it is enough.

        Raises:
            NotUsableError: It is not, or the server must not answer reads.
            asyncpg.PostgresError, OSError, StorageError, ...: See ``errors.DRIVER_ERRORS``.

        """
        pool = self._pool
        if pool is None:
            raise NotUsableError
        async with pool.connection() as connection:
            with self._tracer.step("postgresql.read", {"db.system.name": "postgresql"}):
                if self._options.statement_cache:
                    mark = await self._mark_for(connection)
                    rows = await self._fetched(connection, mark, sql, fetch, satisfied)
                else:
                    # A pooler may assign another server to each transaction.
                    async with pool.transaction(connection, BEGIN_READ):
                        mark = await watermark_of(connection, await identity_of(connection))
                        rows = await self._fetched(connection, mark, sql, fetch, satisfied)
        position = position_of(mark.identity, rows[0][-1])
        if position is None:
            raise NotUsableError
        return ReplicaAnswer([] if rows[0][0] is None else rows, position)

    async def _mark_for(self, connection: Connection) -> Watermark:
        """Return a watermark that is valid for ``connection``."""
        mark, identity = self.mark, connection.identity
        if mark and mark.identity == identity and mark.begun > connection.opened_at:
            return mark
        return await watermark_of(connection, identity)

    async def _fetched(
        self, connection: Connection, mark: Watermark, sql: str, fetch: Fetch, satisfied: Satisfied
    ) -> list[Any]:
        primary = self._log.identity
        is_same = primary is not None and mark.identity.data == primary.data
        if not is_same or self._state(mark, time.monotonic()) or not satisfied(mark):
            raise NotUsableError
        return await fetch(connection, located(sql))

    # ------------------------------------------------------------------ watching

    def nudge(self) -> None:
        """Look at it now: a read waits for it, or has failed on it."""
        self._nudged.set()

    async def run(self) -> None:
        """Watch the replica until cancelled."""
        while True:
            pause = CALM
            try:
                async with self._opened() as pool, pool.dedicated() as connection:
                    await self._watch(pool, connection)
            except _BalancerError:
                self._problem, pause = _out(Out.BALANCER), _WRONG_AGAIN
            except _NotFollowingError:
                self._problem, pause = _out(Out.OTHER_DATA), _WRONG_AGAIN
            except OtherDataError:
                self._problem = _out(Out.OTHER_DATA)
            except _ERRORS:
                pass  # `_opened` has recorded it.
            self._report()
            await asyncio.sleep(pause)

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[ReplicaPool]:
        primary = await self._log.first_identity()
        self._identity = self._stranger_at = None
        self._has_schema = self._is_proven = False
        pool = ReplicaPool(
            self._options, self._primary.schema, primary.data, self._connected, self._tracer
        )
        try:
            await pool.open(logged=False)
            yield pool
        except _ERRORS as exc:
            self._problem = _unreachable(exc, pool)
            raise
        finally:
            # No reads begin here any more, and those that run get another server.
            self.mark = self._pool = None
            pool.drop()
            await pool.close()

    def _connected(self, identity: Identity) -> None:
        """Notice other servers at the same address. A pooler may change the server at any time."""
        if self._identity is None:
            self._identity = identity
        elif identity != self._identity and self._options.statement_cache:
            self._stranger_at = time.monotonic()
            self.nudge()

    async def _watch(self, pool: ReplicaPool, connection: Connection) -> None:
        while True:
            try:
                async with asyncio.timeout(SILENT_AFTER):
                    mark = await self._look(pool, connection)
            except TimeoutError as exc:
                pool.drop()  # A graceful end would wait for the server.
                raise ConnectTimeoutError from exc
            # The first server still answers, so the other one has not replaced it.
            if self._stranger_at is not None and self._stranger_at < mark.begun:
                raise _BalancerError
            self._prove()
            self._hear(mark)
            self.mark, self._pool = mark, pool
            self._report()
            self.on_mark()
            await self._pause()

    async def _look(self, pool: ReplicaPool, connection: Connection) -> Watermark:
        if not self._has_schema:
            self._has_schema = await _schema_of(pool, connection) >= SCHEMA_VERSION
        if self._options.statement_cache:
            return await watermark_of(connection, connection.identity)
        async with pool.transaction(connection, BEGIN_READ):
            return await watermark_of(connection, await identity_of(connection))

    def _prove(self) -> None:
        """Compare the preceding watermark with what the primary has written since.

        Raises:
            _NotFollowingError: The primary has not written that.

        """
        mark, primary = self.mark, self._log.identity
        if mark is None or primary is None:
            return
        precedes = self._log.precedes(mark)
        if precedes is False or mark.identity.data != primary.data:
            raise _NotFollowingError
        self._is_proven = self._is_proven or bool(precedes)

    def _hear(self, mark: Watermark) -> None:
        if mark.timeline:
            has_latest = self._log.lag(mark, mark.begun) == (0.0, 0)
            heard = mark.begun if has_latest else mark.begun - mark.silence
            self._heard_at = max(self._heard_at, heard)

    async def _pause(self) -> None:
        if self.is_wanted():
            await asyncio.sleep(_QUICK)
            return
        self._nudged.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALM if self._is_proven else _PROVING):
                await self._nudged.wait()

    def _report(self) -> None:
        """Log when it leaves the rotation or returns."""
        state = self.out(time.monotonic())
        reason = None if state is None else state.reason
        if reason is self._reported:
            return
        if state is None:
            _log.info("replica in rotation", replica=self.number, place=self.place)
        elif reason is not Out.UNKNOWN:
            place = self.place
            _log.warning(
                "replica out of rotation", replica=self.number, place=place, reason=state.detail
            )
        self._reported = reason


def _unreachable(error: BaseException, pool: Pool | None) -> State:
    connector = None if pool is None else pool.connector
    found = diagnosed(error, connector)
    if found is not None:
        return _out(Out.UNREACHABLE, f"{found.reason}; {found.advice}")
    return _out(Out.UNREACHABLE, error if isinstance(error, StorageError) else translated(error))


async def _schema_of(pool: ReplicaPool, connection: Connection) -> int:
    """Return the schema version that a server has replayed; 0 without a schema."""
    try:
        async with pool.transaction(connection, BEGIN_READ):
            return int(await connection.fetchval(QUERIES["ping"]) or 0)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return 0
