"""PostgreSQL set back: it is restored to an earlier state while the server runs.

Two ways. *Data directory*: a base backup is taken, and some moments later PostgreSQL is
stopped, its data directory replaced by that backup, and started again; all connections are
lost. *Rows*: one transaction puts the rows and the record of the migration back to what they
were, and no connection is lost, as where a dump is restored into the running database.

Neither is done while PostgreSQL is the only store or about to become it: nothing else has its
writes. Rows are put back only while PostgreSQL answers no reads: without a lost connection
the server learns of it when it next proves its lease, and reads are stale until then
(docs/reliability.md).
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

DIRECTORY, ROWS = "PostgreSQL set back", "PostgreSQL's rows put back"
"""The two kinds of fault. They count where they were carried out."""

_TABLES = ("messages", "tombstones", "quarantine", "files", "legacy_extra", "migration")
_FOLLOWS = {Phase.DUAL_WRITE, Phase.BACKFILL}
"""Phases in which PostgreSQL follows, and answers no reads."""
_WITHIN = 8.0
"""Seconds in which a server notices; one that is down, or frozen, needs longer."""

_EXPECTED_ERRORS = (
    OSError,
    RuntimeError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""What another fault that hurts PostgreSQL makes of this one."""


@fault(DIRECTORY, (0.2, 1.5), weight=3, needs="clock")
async def _data_directory(scene: Scene) -> AsyncIterator[None]:
    """Replace the data directory; now and then the server is late to hear of it."""
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
        raise OSError(f"PostgreSQL could not be set back: {exc!r}") from exc
    finally:
        shutil.rmtree(backup, ignore_errors=True)


@contextlib.asynccontextmanager
async def _delay_detection(scene: Scene, how: str) -> AsyncIterator[None]:
    """Keep the server from noticing at once that its connections are gone.

    Where deliveries are late as well, nothing but reads asks PostgreSQL for a moment.
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
    scene.marks.mark("set back", context=False, how=how)
    replaced = False
    try:
        await asyncio.to_thread(testbed.postgres.stop)
        testbed.proxy.cut(POSTGRES)
        # Stopped, it cannot take over any more; had that begun, it may have by now.
        if last != Phase.POSTGRES_ONLY and not _completing(cluster.path):
            await asyncio.to_thread(testbed.postgres.replace_data, backup)
            replaced = True
    finally:
        await asyncio.to_thread(testbed.recover)
        scene.marks.mark("set back", context=True, how=how, name=DIRECTORY if replaced else "")


@fault(ROWS, (0.2, 1.5), weight=2)
async def _rows(scene: Scene) -> AsyncIterator[None]:
    """Restore rows and record in one transaction, while the server is connected."""
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
                scene.marks.mark("set back", context=True, how="rows", name=ROWS)
    except _EXPECTED_ERRORS as exc:
        raise OSError(f"rows could not be put back: {exc!r}") from exc


async def _snapshot_rows(connection: asyncpg.Connection) -> None:
    async with connection.transaction(isolation="repeatable_read"):
        for table in _TABLES:
            # Temporary: nobody else sees them, and they go with the connection.
            await connection.execute(f"CREATE TEMP TABLE old_{table} AS TABLE {table}")


async def _restore_rows(scene: Scene, connection: asyncpg.Connection) -> int | None:
    """Restore what was remembered; return the journal position before, None: not restored."""
    async with connection.transaction():
        # Whoever holds the lease proves it by this row, so nothing is written meanwhile.
        now = await connection.fetchrow("SELECT phase, applied, session FROM migration FOR UPDATE")
        old = await connection.fetchrow("SELECT phase, session FROM old_migration")
        if now is None or old is None or not {now[0], old[0]} <= _FOLLOWS:
            return None
        if now[2] != old[1] or not _only_follows(scene.cluster.path):
            return None
        scene.marks.mark("set back", context=False, how="rows")
        await connection.execute("SET LOCAL session_replication_role = replica")
        for table in _TABLES:
            await connection.execute(f"DELETE FROM {table}")
            await connection.execute(f"INSERT INTO {table} SELECT * FROM old_{table}")
    return int(now[1])


async def _wait_until_reapplied(connection: asyncpg.Connection, applied: int) -> None:
    """Wait until the server has applied again what was lost."""
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
    """Return the state of the migration as the file has it; None: it cannot be read."""
    uri = f"{path.as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1.0)) as connection:
            return load_state(connection)
    except (sqlite3.Error, StorageError):
        return None


def _completing(path: Path) -> bool:
    """Tell whether the last step has begun, or whether that cannot be known."""
    state = _state(path)
    return state is None or state.completing or state.phase is Phase.POSTGRES_ONLY


def _only_follows(path: Path) -> bool:
    """Tell whether PostgreSQL follows, and answers no reads."""
    state = _state(path)
    return state is not None and state.phase in _FOLLOWS
