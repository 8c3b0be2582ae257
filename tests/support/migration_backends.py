"""Sources and targets for the contract suites of the migration.

A suite gets a place, which creates stores on the same durable contents one after the other and
offers operations that the contract lacks.
"""

from __future__ import annotations

import abc
import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import asyncpg

from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.batch import BLOCK
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.schema import SCHEMA_VERSION
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.sqlite.files import register_owner_function
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.model import Message
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import AuxiliaryRows, MigrationSource, MigrationTarget
from tests.simulation.models.postgres import PostgresServer
from tests.simulation.models.process import Process
from tests.simulation.models.source import ModelSource
from tests.simulation.models.source_disk import SourceDisk
from tests.simulation.models.target import ModelTarget
from tests.support.drafts import NOW, draft
from tests.support.migration_values import (
    LEASE,
    SOURCE,
)
from tests.support.postgres import execute, fresh_schema

B = TypeVar("B", bound=StorageBackend)


def now() -> int:
    """Return the wall clock in microseconds."""
    return time.time_ns() // 1000


@asynccontextmanager
async def opened(backend: B) -> AsyncIterator[B]:
    """Open a store for the duration of the context."""
    try:
        await backend.open()
        yield backend
    finally:
        await backend.close()


# ---------------------------------------------------------------------- sources


class SourcePlace(abc.ABC):
    """Durable contents of a source."""

    @abc.abstractmethod
    def make(self) -> MigrationSource:
        """Return a source that is not open yet."""

    @abc.abstractmethod
    def put(self, rows: AuxiliaryRows) -> None:
        """Add the auxiliary rows of a legacy file while no source is open."""


class SQLitePlace(SourcePlace):
    """SQLite file."""

    def __init__(self, path: Path) -> None:
        """Use the file at ``path``."""
        self.path = path

    def make(self) -> SQLiteSource:
        """See the base class."""
        return SQLiteSource(self.path)

    def put(self, rows: AuxiliaryRows) -> None:
        """See the base class."""
        with closing(sqlite3.connect(self.path)) as plain, plain:
            register_owner_function(plain)
            plain.executemany(
                "INSERT INTO quarantine VALUES (?, ?, ?, ?, ?)",
                [(*row[:4], row.row.decode()) for row in rows.quarantine],
            )
            plain.executemany(
                "INSERT INTO legacy_extra VALUES (?, ?, ?)",
                [(*row[:2], json.loads(row.value)["value"]) for row in rows.extras],
            )


class ModelSourcePlace(SourcePlace):
    """Model of a SQLite file, without pauses."""

    def __init__(self) -> None:
        """Start with a file that does not exist."""
        self.disk = SourceDisk(Random(1), scale=0)

    def make(self) -> ModelSource:
        """See the base class."""
        return ModelSource(self.disk, Process("server"), now)

    def put(self, rows: AuxiliaryRows) -> None:
        """See the base class."""
        self.disk.quarantine += rows.quarantine
        self.disk.extras += rows.extras


SOURCES: dict[str, Callable[[Path], SourcePlace]] = {
    "model": lambda folder: ModelSourcePlace(),
    "sqlite": lambda folder: SQLitePlace(folder / "messages.db"),
}

# ---------------------------------------------------------------------- targets


class TargetPlace(abc.ABC):
    """Durable contents of a target."""

    @abc.abstractmethod
    def make(self) -> MigrationTarget:
        """Return a target that is not open yet."""

    @abc.abstractmethod
    async def expire_lease(self) -> None:
        """Let the lease expire."""

    @abc.abstractmethod
    async def use_before(self, stored: Sequence[str], buried: Sequence[str]) -> None:
        """Use the database as a PostgreSQL-only store before any migration.

        ``stored`` are the ids that it contains afterwards, ``buried`` those that were deleted.
        """

    @abc.abstractmethod
    async def cut(self) -> None:
        """Terminate every connection of the targets."""

    @abc.abstractmethod
    async def tombstones(self) -> dict[str, int]:
        """Return the revision of the latest deletion by id."""

    @asynccontextmanager
    async def claimed(self) -> AsyncIterator[MigrationTarget]:
        """Open a target that ``LEASE`` holds, in DUAL_WRITE."""
        async with opened(self.make()) as target:
            await target.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
            yield target


class PostgreSQLPlace(TargetPlace):
    """Schema of a PostgreSQL database."""

    def __init__(self, dsn: str, statement_cache: int = 100) -> None:
        """Use the first schema of the search path."""
        self.dsn = dsn
        self._options = PostgreSQLOptions(
            dsn, pool_min=1, pool_max=8, statement_cache=statement_cache
        )

    def make(self) -> PostgreSQLTarget:
        """See the base class."""
        return PostgreSQLTarget(self._options)

    async def expire_lease(self) -> None:
        """See the base class."""
        await execute(self.dsn, "UPDATE migration SET lease_until = now() - interval '1 second'")

    async def use_before(self, stored: Sequence[str], buried: Sequence[str]) -> None:
        """See the base class."""
        async with opened(PostgreSQLStorage(self._options)) as backend:
            for key in (*buried, *stored):
                await backend.save(draft(key))
            for key in buried:
                await backend.delete(key)

    async def cut(self) -> None:
        """See the base class."""
        connection: Any = await asyncpg.connect(self.dsn)
        try:
            rows = await connection.fetch(
                "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'sagastore' AND datname = current_database()"
            )
            # A connection that is being terminated may still answer.
            there = "SELECT FROM pg_stat_activity WHERE pid = ANY($1::int[])"
            pids = [pid for pid, _ in rows]
            while await connection.fetch(there, pids):  # noqa: ASYNC110 - there is no notification
                await asyncio.sleep(0.01)
        finally:
            await connection.close()

    async def tombstones(self) -> dict[str, int]:
        """See the base class."""
        connection: Any = await asyncpg.connect(self.dsn)
        try:
            return dict(await connection.fetch("SELECT id, revision FROM tombstones"))
        finally:
            await connection.close()


class ModelTargetPlace(TargetPlace):
    """Model of PostgreSQL, without pauses."""

    def __init__(self) -> None:
        """Start with an empty database."""
        self.server = PostgresServer(Random(1), scale=0)

    def make(self) -> ModelTarget:
        """See the base class."""
        return ModelTarget(self.server, Process("server"), now)

    async def expire_lease(self) -> None:
        """See the base class."""
        self.server.lease_until = asyncio.get_running_loop().time() - 1

    async def use_before(self, stored: Sequence[str], buried: Sequence[str]) -> None:
        """See the base class."""
        server = self.server
        server.schema = SCHEMA_VERSION

        def revision() -> int:
            """Take a block, of which each transaction uses the first revision."""
            server.revision += BLOCK
            return server.revision - BLOCK + 1

        for key in (*buried, *stored):
            one = draft(key)
            server.rows[key] = Message(*one[:5], NOW, *one[6:8], now(), *[revision()] * 2)
        for key in buried:
            del server.rows[key]
            server.tombs[key] = revision()

    async def cut(self) -> None:
        """See the base class."""
        self.server.cut()

    async def tombstones(self) -> dict[str, int]:
        """See the base class."""
        return dict(self.server.tombs)


def _postgresql(statement_cache: int) -> Callable[[], AbstractAsyncContextManager[TargetPlace]]:
    @asynccontextmanager
    async def place() -> AsyncIterator[TargetPlace]:
        async with fresh_schema() as dsn:
            yield PostgreSQLPlace(dsn, statement_cache)

    return place


@asynccontextmanager
async def _model_target() -> AsyncIterator[TargetPlace]:
    yield ModelTargetPlace()


TARGETS: dict[str, Callable[[], AbstractAsyncContextManager[TargetPlace]]] = {
    "model": _model_target,
    "postgresql": _postgresql(100),
    # As behind PgBouncer in transaction mode: no prepared statements, no session settings.
    "postgresql-pooled": _postgresql(0),
}
