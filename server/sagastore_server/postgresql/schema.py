"""Schema of a PostgreSQL store: creates or upgrades it, or refuses the database."""

from __future__ import annotations

import re
import uuid
from importlib import resources
from typing import NamedTuple

from sagastore_server.postgresql.file_conversion import convert_files
from sagastore_server.postgresql.pool import Connection, Pool
from sagastore_server.postgresql.queries import MIGRATION, QUERIES
from sagastore_server.postgresql.session import BEGIN_READ
from sagastore_server.search.analysis import ANALYSIS_VERSION
from sagastore_server.storage.errors import CannotOpenError
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.reanalysis import ANALYSIS_STATE

_OLDEST_SERVER = 130000
"""``server_version_num`` of PostgreSQL 13, the oldest whose planner supports the operators used."""

COMPATIBLE_FROM = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6}
"""By schema version: the oldest schema version whose servers can use it."""

_TABLES = (
    "messages",
    "tombstones",
    "quarantine",
    "files",
    "store_state",
    "migration",
    "legacy_extra",
    "sessions",
    "file_tombstones",
)

_FILES = 5
"""Schema step that replaces the table ``files``."""

HAS_SEQUENCES = 3
"""The first schema version with sequences, and with `backfill_attempt`."""

HAS_SESSIONS = 4
"""The first schema version with sessions."""

MIGRATES_FROM = 2
"""The first schema version with a record of a migration."""


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

LATE_INDEX = re.compile(r"^CREATE INDEX (\w+) (ON messages [^;]+);$", re.MULTILINE)
"""Name and definition of an index that a migration builds after it has copied the rows."""

SCHEMA_VERSION = STEPS[-1].number


async def prepare(pool: Pool, place: str) -> int:
    """Create or upgrade the schema if needed, and return its version.

    Servers that start together run it one after the other. On an up-to-date schema it needs no
    CREATE privilege. ``place`` is the name of the database in error messages.

    Raises:
        CannotOpenError: The database cannot be used; it is as it was.

    """
    async with pool.connection() as connection:
        await check_server(connection)
        async with pool.transaction(connection, BEGIN_READ):
            version = await version_of(connection)
            finished = await _refuse_target(connection, version, place)
        if version < SCHEMA_VERSION:
            async with pool.transaction(connection, QUERIES["begin"]):
                version = await upgrade(connection)
                # A migration may have started while this server waited for the lock.
                await _refuse_target(connection, version, place)
        if finished:
            await _drop_guard(pool, connection)
        return version


async def _refuse_target(connection: Connection, version: int, place: str) -> bool:
    """Refuse a migration target; return whether a migration to this database has finished."""
    record = None
    if version >= MIGRATES_FROM:
        record = await connection.fetchrow(MIGRATION["phase"])
    if record is None:
        return False
    phase, host = Phase(record["phase"]), host_of(record["holder"])
    if phase is Phase.POSTGRES_ONLY:
        return True
    raise CannotOpenError(
        f"{place} is the target of a migration in phase {phase.slug}; the messages are in its "
        f"SQLite file{' on ' + host if host else ''}; also set --sqlite, or finish the migration "
        "first, or set --forward to pass calls on to its server until then"
    )


def host_of(holder: str) -> str:
    """Return the host of a holder, ``host:device:inode``."""
    return holder.rsplit(":", 2)[0]


async def _drop_guard(pool: Pool, connection: Connection) -> None:
    """Remove a guard that a long read prevented from being removed when the migration ended."""
    async with pool.transaction(connection, QUERIES["begin"]):
        if await connection.fetchval(MIGRATION["guards"]):
            await connection.execute(MIGRATION["drop_guard"])


async def check_server(connection: Connection) -> None:
    """Refuse an unsupported PostgreSQL server or database.

    Raises:
        CannotOpenError: The server is too old, or the encoding of the database is not UTF8.

    """
    number = int(await connection.fetchval("SELECT current_setting('server_version_num')"))
    if number < _OLDEST_SERVER:
        raise CannotOpenError(
            f"PostgreSQL {number // 10000} is too old; SagaStore needs 13 or newer"
        )
    encoding = await connection.fetchval("SELECT current_setting('server_encoding')")
    if encoding != "UTF8":
        raise CannotOpenError(
            f"the database has the encoding {encoding}; SagaStore needs a database in UTF8"
        )


async def version_of(connection: Connection) -> int:
    """Return the schema version, or 0 without a schema.

    Raises:
        CannotOpenError: This server cannot use the schema.

    """
    if not await connection.fetchval(QUERIES["has_versions"]):
        return 0
    row = await connection.fetchrow(QUERIES["versions"])
    if row is None:
        return 0
    version, compatible_from = row
    if compatible_from > SCHEMA_VERSION:
        raise CannotOpenError(
            f"the schema of the database has version {version}, which needs a server that supports "
            f"version {compatible_from} or newer; this one supports up to {SCHEMA_VERSION}: run a "
            "newer server"
        )
    return int(version)


async def upgrade(connection: Connection) -> int:
    """Apply the missing steps, in an open transaction; return the resulting version.

    Raises:
        CannotOpenError: Foreign tables, or a schema that this server cannot use.

    """
    await connection.execute(QUERIES["lock_schema"])
    # Another server may have applied them while this one waited for the lock.
    version = await version_of(connection)
    if version == 0:
        await check_table_names(connection)
    target = version >= MIGRATES_FROM and await connection.fetchval(MIGRATION["unfinished"])
    for number, sql in STEPS:
        if number > version:
            # In a migration target the backfill builds the indexes, without blocking writes.
            await connection.execute(LATE_INDEX.sub("", sql) if target else sql)
            if number == _FILES:
                await convert_files(connection)
            await connection.execute(QUERIES["note_version"], number, COMPATIBLE_FROM[number])
    if version == 0:
        await connection.execute(QUERIES["raise_analysis"], ANALYSIS_STATE, str(ANALYSIS_VERSION))
        await connection.execute(QUERIES["set_state"], "store_id", str(uuid.uuid4()))
    return max(version, SCHEMA_VERSION)


async def check_table_names(connection: Connection) -> None:
    """Refuse a database with foreign tables whose names SagaStore needs.

    Raises:
        CannotOpenError: There are such tables.

    """
    found = [row[0] for row in await connection.fetch(QUERIES["foreign_tables"], list(_TABLES))]
    if found:
        raise CannotOpenError(
            f"the database has tables that SagaStore did not create ({', '.join(found)}); use "
            "another database or a separate schema"
        )
