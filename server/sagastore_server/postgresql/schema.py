"""Brings a database into the state that this server expects, or refuses it."""

from __future__ import annotations

import asyncio
import re
import uuid
from importlib import resources
from typing import NamedTuple

from sagastore_server.postgresql.pool import Connection, Pool
from sagastore_server.postgresql.queries import QUERIES
from sagastore_server.postgresql.rows import search_columns
from sagastore_server.search.analysis import FINGERPRINT
from sagastore_server.storage.errors import CannotOpenError

_OLDEST_SERVER = 130000
"""``server_version_num`` of the oldest PostgreSQL whose planner knows our operators (13)."""

_REINDEX_ROWS = 500

COMPATIBLE_FROM = {1: 1}
"""By version of the schema: the oldest server version that can use it as well."""


class Step(NamedTuple):
    """A numbered file of DDL."""

    number: int
    sql: str


def _load() -> list[Step]:
    files = resources.files(__package__).joinpath("schema").iterdir()
    numbered = [(re.match(r"(\d{4})_\w+\.sql$", file.name), file) for file in files]
    steps = [
        Step(int(match[1]), file.read_text(encoding="utf-8")) for match, file in numbered if match
    ]
    return sorted(steps)


STEPS = _load()
SCHEMA_VERSION = STEPS[-1].number


async def prepare(pool: Pool) -> int:
    """Create or upgrade the schema where needed, and return its version.

    Servers that start together do it one after the other. A server whose role may not
    create anything can start on a schema that is there.

    Raises:
        CannotOpenError: The database is not ours to use; it is as it was.

    """
    async with pool.connection() as connection:
        await _check_server(connection)
        async with pool.transaction(connection, "BEGIN READ ONLY"):
            version = await _version(connection)
        if version < SCHEMA_VERSION:
            async with pool.transaction(connection, QUERIES["begin"]):
                version = await _upgrade(connection)
        await _refresh_terms(pool, connection)
        return version


async def _check_server(connection: Connection) -> None:
    number = int(await connection.fetchval("SELECT current_setting('server_version_num')"))
    if number < _OLDEST_SERVER:
        raise CannotOpenError(
            f"PostgreSQL {number // 10000} is too old for SagaStore; 13 or newer is needed"
        )
    encoding = await connection.fetchval("SELECT current_setting('server_encoding')")
    if encoding != "UTF8":
        raise CannotOpenError(
            f"the database has the encoding {encoding}; SagaStore needs one with UTF8"
        )


async def _version(connection: Connection) -> int:
    """Return the version of the schema, 0 for none, or refuse what this server cannot use."""
    if not await connection.fetchval(QUERIES["has_versions"]):
        return 0
    row = await connection.fetchrow(QUERIES["versions"])
    if row is None:
        return 0
    version, compatible_from = row
    if compatible_from > SCHEMA_VERSION:
        raise CannotOpenError(
            f"the schema of the database has version {version}, and needs a server that knows "
            f"{compatible_from} or newer; this one knows {SCHEMA_VERSION}: run a newer server"
        )
    return int(version)


async def _upgrade(connection: Connection) -> int:
    """Apply the steps that are missing, within a transaction."""
    await connection.execute(QUERIES["lock_schema"])
    # Another server may have done it while this one waited for the lock.
    version = await _version(connection)
    if version == 0:
        await _check_room(connection)
    for number, sql in STEPS:
        if number > version:
            await connection.execute(sql)
            await connection.execute(QUERIES["note_version"], number, COMPATIBLE_FROM[number])
    if version == 0:
        await connection.execute(QUERIES["set_state"], "analysis", FINGERPRINT)
        await connection.execute(QUERIES["set_state"], "store_id", str(uuid.uuid4()))
    return max(version, SCHEMA_VERSION)


async def _check_room(connection: Connection) -> None:
    names = ["messages", "tombstones", "quarantine", "files", "store_state"]
    found = [row[0] for row in await connection.fetch(QUERIES["foreign_tables"], names)]
    if found:
        raise CannotOpenError(
            f"the database has tables that SagaStore did not make ({', '.join(found)}); "
            "give it a database, or a schema, of its own"
        )


async def _refresh_terms(pool: Pool, connection: Connection) -> None:
    """Make the terms anew if another analysis made them; can be interrupted and repeated."""
    if await connection.fetchval(QUERIES["get_state"], "analysis") == FINGERPRINT:
        return
    after: str | None = ""
    while after is not None:
        async with pool.transaction(connection, QUERIES["begin"]):
            after = await _refresh_some(connection, after)
    await connection.execute(QUERIES["set_state"], "analysis", FINGERPRINT)


async def _refresh_some(connection: Connection, after: str) -> str | None:
    """Make the terms of the next rows; return the last id, or None at the end."""
    rows = await connection.fetch(QUERIES["texts_after"], after, _REINDEX_ROWS)
    if not rows:
        return None
    columns = await asyncio.to_thread(lambda: [search_columns(row[1]) for row in rows])
    ids = [row[0] for row in rows]
    terms, search = zip(*columns, strict=True)
    await connection.execute(QUERIES["set_terms"], ids, list(terms), list(search))
    return str(ids[-1])
