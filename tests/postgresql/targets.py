"""Helpers for tests of PostgreSQL as a migration target."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.storage.model import Message
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Criteria, Scan
from tests.support.migration_values import LEASE, SOURCE


def target_on(dsn: str, **options: Any) -> PostgreSQLTarget:
    return PostgreSQLTarget(PostgreSQLOptions(dsn, pool_min=1, pool_max=8)._replace(**options))


def plain(dsn: str, **options: Any) -> PostgreSQLStorage:
    return PostgreSQLStorage(PostgreSQLOptions(dsn, pool_min=1, pool_max=8)._replace(**options))


@asynccontextmanager
async def opened_plain(dsn: str, **options: Any) -> AsyncIterator[PostgreSQLStorage]:
    """Open a store without a migration."""
    backend = plain(dsn, **options)
    try:
        await backend.open()
        yield backend
    finally:
        await backend.close()


@asynccontextmanager
async def opened_target(dsn: str, **options: Any) -> AsyncIterator[PostgreSQLTarget]:
    """Open a replica without a claim."""
    replica = target_on(dsn, **options)
    try:
        await replica.open()
        yield replica
    finally:
        await replica.close()


@asynccontextmanager
async def claimed(dsn: str, **options: Any) -> AsyncIterator[PostgreSQLTarget]:
    """Open a replica that ``LEASE`` holds, in DUAL_WRITE."""
    async with opened_target(dsn, **options) as replica:
        await replica.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
        yield replica


async def buried_in(dsn: str) -> dict[str, int]:
    """Return the tombstones."""
    return dict(await fetched(dsn, "SELECT id, revision FROM tombstones"))


async def fetched(dsn: str, sql: str, *arguments: Any) -> list[Any]:
    """Run a statement on a separate connection."""
    connection = await asyncpg.connect(dsn)
    try:
        rows: list[Any] = await connection.fetch(sql, *arguments)
        return rows
    finally:
        await connection.close()


async def until_one_waits(dsn: str) -> None:
    """Wait until a statement in the schema's database waits for a lock."""
    waiting = "SELECT FROM pg_locks WHERE NOT granted"
    while not await fetched(dsn, waiting):  # noqa: ASYNC110 - locks have no event
        await asyncio.sleep(0.01)


async def found_by(replica: PostgreSQLTarget, criteria: Criteria) -> list[str]:
    page = await replica.search(criteria, Scan(False, 100))
    return [one.id for one in page.messages]


def ids_of(messages: Iterable[Message]) -> list[str]:
    return [one.id for one in messages]
