"""Faults that set PostgreSQL back to an earlier state while the server runs.

- *Data directory*: a base backup is taken; some moments later PostgreSQL is stopped, its data
  directory is replaced by the backup, and it is started again. All connections are lost.
- *Rows*: one transaction restores the rows and the migration record. No connection is lost, as when
  a dump is restored into a running database.

Neither happens while PostgreSQL is the only store or about to become it, because no other copy of
its writes exists. Rows are restored only while PostgreSQL answers no reads: without a lost
connection the server detects the change at its next lease renewal, and reads are stale until then
(docs/explanation/reliability.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg

from sagastore_server.sqlite.migration_state import load_state
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import MigrationState
from tools.chaos.cluster import POSTGRES, Cluster
from tools.chaos.fault_registry import Scene, fault, mostly_up

DIRECTORY, ROWS = "PostgreSQL set back", "PostgreSQL's rows restored"
"""The two kinds of fault. They count only where they were carried out."""

_TABLES = (
    "messages",
    "sessions",
    "tombstones",
    "quarantine",
    "files",
    "file_tombstones",
    "legacy_extra",
    "migration",
)
_FOLLOWS = {Phase.DUAL_WRITE, Phase.BACKFILL}
"""Phases in which PostgreSQL is replicated to and answers no reads."""
_WITHIN = 8.0
"""Seconds in which a running server detects it; a stopped or frozen one needs longer."""

_EXPECTED_ERRORS = (
    OSError,
    RuntimeError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""Errors that simultaneous faults of PostgreSQL cause here."""


@fault(DIRECTORY, (0.2, 1.5), weight=3, needs="clock")
async def _data_directory(scene: Scene) -> AsyncIterator[None]:
    """Replace the data directory; in some cases the server detects it late."""
    cluster, testbed = scene.cluster, scene.cluster.testbed
    backup = testbed.folder / f"base-{scene.rng.getrandbits(32):x}"
    how = scene.rng.choice(["at once", "server frozen", *["frozen, deliveries late"] * 2])
    await mostly_up(scene)
    try:
        async with testbed.turn:
            taken = await asyncio.to_thread(testbed.postgres.base_backup, backup, 20.0)
        known = taken and await _phase_of(cluster) in {*_FOLLOWS, Phase.READ_POSTGRES}
        yield
        if known:
            async with _delay_detection(scene, how), testbed.turn:
                await _replace(scene, backup, how)
    except _EXPECTED_ERRORS as exc:
        raise OSError(f"setting PostgreSQL back failed: {exc!r}") from exc
    finally:
        shutil.rmtree(backup, ignore_errors=True)


@contextlib.asynccontextmanager
async def _delay_detection(scene: Scene, how: str) -> AsyncIterator[None]:
    """Keep the server from detecting the lost connections at once.

    If deliveries are delayed as well, only reads access PostgreSQL for a moment.
    """
    if how == "at once":
        yield
        return
    with scene.cluster.switch("delivery", 0.9 if how == "frozen, deliveries late" else 0.0):
        await asyncio.sleep(0.05)
        scene.cluster.supervisor.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            scene.cluster.supervisor.signal(signal.SIGCONT)


async def _replace(scene: Scene, backup: Path, how: str) -> None:
    cluster, testbed = scene.cluster, scene.cluster.testbed
    last = await _phase_of(cluster)
    scene.marks.mark_set_back(ends=False, how=how)
    replaced = False
    try:
        await asyncio.to_thread(testbed.postgres.stop)
        testbed.proxy.cut(POSTGRES)
        # While stopped, it cannot become the only store; a change in progress may have completed by
        # now.
        if last != Phase.POSTGRES_ONLY and not _completing(cluster.path):
            await asyncio.to_thread(testbed.postgres.replace_data, backup)
            replaced = True
    finally:
        await asyncio.to_thread(testbed.recover)
        scene.marks.mark_set_back(ends=True, how=how, name=DIRECTORY if replaced else "")


@fault(ROWS, (0.2, 1.5), weight=2)
async def _rows(scene: Scene) -> AsyncIterator[None]:
    """Restore rows and record in one transaction while the server stays connected."""
    cluster = scene.cluster
    await mostly_up(scene)
    try:
        async with _connected(cluster) as connection:
            await _snapshot_rows(connection)
            yield
            async with asyncio.timeout(2):
                applied = await _restore_rows(scene, connection)
            if applied is not None:
                await _wait_until_reapplied(connection, applied)
                scene.marks.mark_set_back(ends=True, how="rows", name=ROWS)
    except _EXPECTED_ERRORS as exc:
        raise OSError(f"restoring the rows failed: {exc!r}") from exc


_COLUMNS = """
SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
"""
"""Columns of a table that can be inserted: not the generated ones."""


async def _snapshot_rows(connection: asyncpg.Connection) -> None:
    async with connection.transaction(isolation="repeatable_read"):
        for table in _TABLES:
            # Temporary tables are invisible to others and end with the connection.
            await connection.execute(f"CREATE TEMP TABLE old_{table} AS TABLE {table}")


async def _restore_rows(scene: Scene, connection: asyncpg.Connection) -> int | None:
    """Restore the saved rows; return the previous journal position, None: not restored."""
    async with connection.transaction():
        # A lease holder proves its lease through this row, so nothing is written meanwhile.
        now = await connection.fetchrow("SELECT phase, applied, session FROM migration FOR UPDATE")
        old = await connection.fetchrow("SELECT phase, session FROM old_migration")
        if now is None or old is None or not {now[0], old[0]} <= _FOLLOWS:
            return None
        if now[2] != old[1] or not _only_follows(scene.cluster.path):
            return None
        scene.marks.mark_set_back(ends=False, how="rows")
        await connection.execute("SET LOCAL session_replication_role = replica")
        for table in _TABLES:
            columns = await connection.fetchval(_COLUMNS, table)
            await connection.execute(f"DELETE FROM {table}")
            await connection.execute(
                f"INSERT INTO {table} ({columns}) SELECT {columns} FROM old_{table}"
            )
    return int(now[1])


async def _wait_until_reapplied(connection: asyncpg.Connection, applied: int) -> None:
    """Wait until the server has applied the lost changes again."""
    until = time.monotonic() + _WITHIN
    while time.monotonic() < until:
        if (await connection.fetchval("SELECT applied FROM migration") or 0) >= applied:
            return
        await asyncio.sleep(0.05)


# ---------------------------------------------------------------------- the stores


@contextlib.asynccontextmanager
async def _connected(cluster: Cluster) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(cluster.testbed.dsn(cluster.database), timeout=2)
    try:
        yield connection
    finally:
        connection.terminate()


async def _phase_of(cluster: Cluster) -> int | None:
    """Return the phase in PostgreSQL's record; None: there is no record."""
    async with asyncio.timeout(3), _connected(cluster) as connection:
        if not await connection.fetchval("SELECT to_regclass('migration') IS NOT NULL"):
            return None
        phase: int | None = await connection.fetchval("SELECT phase FROM migration")
    return phase


def _state(path: Path) -> MigrationState | None:
    """Return the migration state in the file; None: it cannot be read."""
    uri = f"{path.as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1.0)) as connection:
            return load_state(connection)
    except (sqlite3.Error, StorageError):
        return None


def _completing(path: Path) -> bool:
    """Return whether the last step was started, or may have been."""
    state = _state(path)
    return state is None or state.completing or state.phase is Phase.POSTGRES_ONLY


def _only_follows(path: Path) -> bool:
    """Return whether PostgreSQL is only replicated to and answers no reads."""
    state = _state(path)
    return state is not None and state.phase in _FOLLOWS
