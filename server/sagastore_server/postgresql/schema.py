"""Brings a database into the state that this server expects, or refuses it."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import NamedTuple

from sagastore_server.postgresql.pool import Connection, Pool
from sagastore_server.postgresql.queries import MIGRATION, QUERIES
from sagastore_server.postgresql.rows import search_columns
from sagastore_server.search.analysis import FINGERPRINT
from sagastore_server.storage.errors import CannotOpenError
from sagastore_server.storage.phase import Phase

_OLDEST_SERVER = 130000
"""``server_version_num`` of the oldest PostgreSQL whose planner knows our operators (13)."""

_REINDEX_ROWS = 500

COMPATIBLE_FROM = {1: 1, 2: 2}
"""By version of the schema: the oldest server version that can use it as well."""

_TABLES = (
    "messages",
    "tombstones",
    "quarantine",
    "files",
    "store_state",
    "migration",
    "legacy_extra",
)

MIGRATES_FROM = 2
"""The version of the schema that can tell of a migration."""


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


async def prepare(pool: Pool, place: str) -> int:
    """Create or upgrade the schema where needed, and return its version.

    Servers that start together do it one after the other. A server whose role may not
    create anything can start on a schema that is there. ``place`` names the database.

    Raises:
        CannotOpenError: The database is not ours to use; it is as it was.

    """
    async with pool.connection() as connection:
        await check_server(connection)
        async with pool.transaction(connection, "BEGIN READ ONLY"):
            version = await version_of(connection)
            finished = await _refuse_target(connection, version, place)
        if version < SCHEMA_VERSION:
            async with pool.transaction(connection, QUERIES["begin"]):
                version = await upgrade(connection)
                # A migration may have begun while the lock was waited for.
                await _refuse_target(connection, version, place)
        if finished:
            await _drop_guard(pool, connection)
        await refresh_terms(pool, connection)
        return version


async def _refuse_target(connection: Connection, version: int, place: str) -> bool:
    """Refuse a database whose truth is elsewhere; tell whether a migration has ended here."""
    record = None
    if version >= MIGRATES_FROM:
        record = await connection.fetchrow(MIGRATION["record"])
    if record is None:
        return False
    phase, host = Phase(record["phase"]), host_of(record["holder"])
    if phase is Phase.POSTGRES_ONLY:
        return True
    raise CannotOpenError(
        f"{place} is the target of a migration in phase {phase.slug}; the messages are in the "
        f"SQLite file{' on ' + host if host else ''} that it comes from; start with --sqlite as "
        "well, or finish the migration first"
    )


def host_of(holder: str) -> str:
    """Return the machine in the name of a holder, ``host:device:inode``."""
    return holder.rsplit(":", 2)[0]


async def _drop_guard(pool: Pool, connection: Connection) -> None:
    """Remove a guard that was left because somebody was reading when the migration ended."""
    async with pool.transaction(connection, QUERIES["begin"]):
        if await connection.fetchval(MIGRATION["guards"]):
            await connection.execute(MIGRATION["drop_guard"])


async def check_server(connection: Connection) -> None:
    """Refuse a PostgreSQL that this server cannot work with.

    Raises:
        CannotOpenError: It is too old, or the database has another encoding than UTF8.

    """
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


async def version_of(connection: Connection) -> int:
    """Return the version of the schema, 0 for none.

    Raises:
        CannotOpenError: This server cannot use it.

    """
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


async def upgrade(connection: Connection) -> int:
    """Apply the steps that are missing, within a transaction; return the version then.

    Raises:
        CannotOpenError: Somebody else's tables, or a schema that this server cannot use.

    """
    await connection.execute(QUERIES["lock_schema"])
    # Another server may have done it while this one waited for the lock.
    version = await version_of(connection)
    if version == 0:
        await check_room(connection)
    for number, sql in STEPS:
        if number > version:
            await connection.execute(sql)
            await connection.execute(QUERIES["note_version"], number, COMPATIBLE_FROM[number])
    if version == 0:
        await connection.execute(QUERIES["set_state"], "analysis", FINGERPRINT)
        await connection.execute(QUERIES["set_state"], "store_id", str(uuid.uuid4()))
    return max(version, SCHEMA_VERSION)


async def check_room(connection: Connection) -> None:
    """Refuse a database where others have tables of our names.

    Raises:
        CannotOpenError: It names them.

    """
    found = [row[0] for row in await connection.fetch(QUERIES["foreign_tables"], list(_TABLES))]
    if found:
        raise CannotOpenError(
            f"the database has tables that SagaStore did not make ({', '.join(found)}); "
            "give it a database, or a schema, of its own"
        )


Enter = Callable[[Connection], Awaitable[object]]
"""What a transaction does first."""


async def _nothing(_: Connection) -> None:
    """Enter a transaction that needs nothing first."""


async def refresh_terms(pool: Pool, connection: Connection, enter: Enter = _nothing) -> None:
    """Make the terms anew if another analysis made them; can be interrupted and repeated.

    Every transaction begins with ``enter``.
    """
    if await connection.fetchval(QUERIES["get_state"], "analysis") == FINGERPRINT:
        return
    after: str | None = ""
    while after is not None:
        async with pool.transaction(connection, QUERIES["begin"]):
            await enter(connection)
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
