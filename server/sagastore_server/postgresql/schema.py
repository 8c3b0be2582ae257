"""Schema of a PostgreSQL store: creates or upgrades it, or refuses the database.

Other servers may use the database during an upgrade, if they are compatible with the result:

* Each step is a transaction, which only changes definitions. What takes time, such as a change of
  all rows, follows online (``reanalysis``). Steps up to `LAST_OFFLINE` are older than this rule.
* Its locks are waited for briefly (``ddl_locks``).
* A step that excludes servers locks the messages against their writes (``compatibility``).
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

from sagastore_server.postgresql.ddl_locks import TableInUseError, TableLocks, patiently
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

LAST_OFFLINE = 5
"""The last step that reads or changes all rows in the transaction that locks their table."""

PATIENCE = 60.0
"""Seconds for which an upgrade waits for a table that is in use."""

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
    compatible_from: int
    """The oldest schema version whose servers can use the result."""

    @property
    def tables(self) -> list[str]:
        """The existing tables whose definitions it changes, in the order of locking."""
        changed: dict[str, bool] = {}
        for created, *others in _TABLE.findall(self.sql):
            # A new table may have the name of one that the step has renamed.
            changed.setdefault("".join((created, *others)), not created)
        return [table for table, exists in changed.items() if exists]


def _load() -> list[Step]:
    files = resources.files(__package__).joinpath("schema").iterdir()
    numbered = [(re.match(r"(\d{4})_\w+\.sql$", file.name), file) for file in files]
    steps = [
        Step(int(match[1]), file.read_text(encoding="utf-8"), COMPATIBLE_FROM[int(match[1])])
        for match, file in numbered
        if match
    ]
    return sorted(steps)


_TABLE = re.compile(
    r"^(?:CREATE TABLE (\w+)|ALTER TABLE (\w+)|CREATE (?:UNIQUE )?INDEX \w+ ON (\w+))", re.MULTILINE
)
"""A table that a statement creates, changes, or gives an index."""

STEPS = _load()

LATE_INDEX = re.compile(r"^CREATE INDEX (\w+) (ON messages [^;]+);$", re.MULTILINE)
"""Name and definition of an index that a migration builds after it has copied the rows."""

SCHEMA_VERSION = STEPS[-1].number


async def prepare(pool: Pool, place: str, steps: Sequence[Step] = STEPS) -> int:
    """Create or upgrade the schema if needed, and return its version.

    Servers that start together run it one after the other. On an up-to-date schema it needs no
    CREATE privilege. ``place`` is the name of the database in error messages.

    Raises:
        CannotOpenError: The database cannot be used, or a table was in use for `PATIENCE` seconds;
            its schema is valid.

    """
    async with pool.connection() as connection:
        await check_server(connection)
        async with pool.transaction(connection, BEGIN_READ):
            version = await version_of(connection, steps)
            finished = await _refuse_target(connection, version, place)
    if version < steps[-1].number:
        # The time limit of a statement is too short for a step that changes all rows.
        offline = 0 < version < LAST_OFFLINE
        async with pool.dedicated() if offline else pool.connection() as connection:
            version = await _upgrade_beside_others(pool, connection, place, steps)
    if finished:
        async with pool.connection() as connection:
            await _drop_guard(pool, connection)
    return version


async def _upgrade_beside_others(
    pool: Pool, connection: Connection, place: str, steps: Sequence[Step]
) -> int:
    """Upgrade step by step, while other servers may use the database."""

    async def next_step(locks: TableLocks) -> int:
        version = await upgrade(locks, steps, one_step=True)
        # A migration may have started while this server waited for the lock.
        await _refuse_target(locks.connection, version, place)
        return version

    version = 0
    while version < steps[-1].number:
        try:
            version = await patiently(pool, connection, next_step, PATIENCE)
        except TableInUseError as exc:
            raise CannotOpenError(f"{place}: {exc}; other servers go on serving") from exc
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
        "first"
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


async def version_of(connection: Connection, steps: Sequence[Step] = STEPS) -> int:
    """Return the schema version, or 0 without a schema.

    Raises:
        CannotOpenError: This server cannot use the schema.

    """
    version, compatible_from = await _versions(connection)
    supported = steps[-1].number
    if compatible_from > supported:
        raise CannotOpenError(
            f"the schema of the database has version {version}, which needs a server that supports "
            f"version {compatible_from} or newer; this one supports up to {supported}: run a "
            "newer server"
        )
    return version


async def _versions(connection: Connection) -> tuple[int, int]:
    """Return the version and the highest ``compatible_from``; 0 without a schema."""
    if not await connection.fetchval(QUERIES["has_versions"]):
        return 0, 0
    version, compatible_from = await connection.fetchrow(QUERIES["ping"])
    return version or 0, compatible_from or 0


async def upgrade(
    locks: TableLocks, steps: Sequence[Step] = STEPS, *, one_step: bool = False
) -> int:
    """Apply missing steps, in an open transaction; return the resulting version.

    Args:
        locks: Takes the locks of the transaction.
        steps: All steps.
        one_step: Whether to apply only the next one, unless there is no schema yet.

    Raises:
        CannotOpenError: Foreign tables, or a schema that this server cannot use.
        asyncpg.LockNotAvailableError: A table is in use.

    """
    connection = locks.connection
    await connection.execute(QUERIES["lock_schema"])
    # Another server may have applied them while this one waited for the lock.
    version = await version_of(connection, steps)
    missing = [step for step in steps if step.number > version]
    if version == 0:
        await check_table_names(connection)
    elif one_step:
        missing = missing[:1]
    is_target = version >= MIGRATES_FROM and await connection.fetchval(MIGRATION["unfinished"])
    for step in missing:
        if version > 0:
            await _lock_for(step, locks)
        # In a migration target the backfill builds the indexes, without blocking writes.
        await connection.execute(LATE_INDEX.sub("", step.sql) if is_target else step.sql)
        if step.number == _FILES:
            await convert_files(connection)
        await connection.execute(QUERIES["note_version"], step.number, step.compatible_from)
    if version == 0:
        await connection.execute(QUERIES["raise_analysis"], ANALYSIS_STATE, str(ANALYSIS_VERSION))
        await connection.execute(QUERIES["set_state"], "store_id", str(uuid.uuid4()))
    await locks.end_limit()
    return missing[-1].number if missing else version


async def _lock_for(step: Step, locks: TableLocks) -> None:
    """Lock what the step changes; and the messages against writes, if it excludes servers."""
    if step.number <= LAST_OFFLINE:
        await locks.connection.execute("SET LOCAL statement_timeout = 0")
    _, compatible_from = await _versions(locks.connection)
    if step.compatible_from > compatible_from and "messages" not in step.tables:
        await locks.take(["messages"], "EXCLUSIVE")
    await locks.take(step.tables)


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
