"""A role whose defaults contradict everything that the server relies on.

``ALTER ROLE … SET`` and ``ALTER DATABASE … SET`` change the same defaults; those of a role do not
affect the tests' own connections.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from urllib.parse import urlsplit

from tests.support.postgres import drop_schema, execute, server_dsn, with_parameter

DEFAULTS = {
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "statement_timeout": "1ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "synchronous_commit": "off",
    "search_path": "nowhere",
    "gin_fuzzy_search_limit": "1",
    "plan_cache_mode": "force_generic_plan",
    "jit": "on",
    "jit_above_cost": "0",
    "standard_conforming_strings": "off",
    "timezone": "Asia/Kathmandu",
    "datestyle": "German, DMY",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "client_min_messages": "debug1",
    "extra_float_digits": "-15",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "check_function_bodies": "off",
    "default_text_search_config": "pg_catalog.simple",
    "enable_seqscan": "off",
    "enable_indexscan": "off",
    "enable_hashjoin": "off",
    "from_collapse_limit": "1",
    "work_mem": "64kB",
}
"""Settings that every role may change (PostgreSQL 13 or newer)."""

POOLED = {
    name: value for name, value in DEFAULTS.items() if name != "default_transaction_read_only"
} | {"statement_timeout": "60s", "lock_timeout": "60s"}
"""Those that a role behind a pooler may have: docs/how-to/postgresql.md names the others."""

_PASSWORD = "hostile-defaults"
_numbers = itertools.count()


def _statements(role: str, defaults: dict[str, str]) -> str:
    settings = "; ".join(
        f"ALTER ROLE {role} SET {name} = {_literal(name, value)}"
        for name, value in defaults.items()
    )
    return f"CREATE ROLE {role} LOGIN PASSWORD '{_PASSWORD}'; {settings}"


def _literal(name: str, value: str) -> str:
    # Lists are not quoted as a whole.
    return value if name in {"search_path", "datestyle"} else f"'{value}'"


async def create_role(defaults: dict[str, str]) -> str:
    """Create a role with defaults; return its name."""
    role = f"hostile_{os.getpid()}_{next(_numbers)}"
    await execute(server_dsn(), _statements(role, defaults))
    return role


async def drop_role(role: str, *databases: str) -> None:
    """Drop a role and what it owns in the databases with these connection strings."""
    for dsn in (server_dsn(), *databases):
        await execute(dsn, f"DROP OWNED BY {role}")
    await execute(server_dsn(), f"DROP ROLE {role}")


def as_role(dsn: str, role: str) -> str:
    """Return a connection string with another user."""
    parts = urlsplit(dsn)
    address = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{role}:{_PASSWORD}@{address}").geturl()


@lru_cache(maxsize=1)
def _shared_role() -> str:
    role = f"hostile_{os.getpid()}"
    asyncio.run(execute(server_dsn(), _statements(role, DEFAULTS)))
    atexit.register(lambda: asyncio.run(drop_role(role)))
    return role


@asynccontextmanager
async def hostile_schema() -> AsyncIterator[str]:
    """Create an empty schema, yield its connection string for the role, and drop it."""
    role = await asyncio.to_thread(_shared_role)
    name = f"{role}_{next(_numbers)}"
    await execute(server_dsn(), f"CREATE SCHEMA {name} AUTHORIZATION {role}")
    try:
        # The first schema does not exist, and the second is none for tables.
        path = f"nowhere,pg_catalog,{name},public"
        yield with_parameter(as_role(server_dsn(), role), "search_path", path)
    finally:
        await drop_schema(server_dsn(), name)
