"""Late indexes: built after a migration has copied the rows, with progress.

Inserting into a table without them is several times as fast. Their definitions are in the files
of ``schema/`` only; a new store without a migration gets them from there at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import NamedTuple

from sagastore_server.postgresql.pool import Connection, Pool
from sagastore_server.postgresql.queries import MIGRATION
from sagastore_server.postgresql.schema import LATE_INDEX, STEPS
from sagastore_server.runtime.supervisor import awaited
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.replication import IndexState

_LOOK_EVERY = 0.5
"""Seconds between two queries of the progress of a build."""


def _load() -> dict[str, str]:
    found = (LATE_INDEX.findall(step.sql) for step in STEPS)
    return {name: definition for step in found for name, definition in step}


LATE = _load()
"""The text after ``CREATE INDEX name``, by name, in the order of building."""

# Phases of pg_stat_progress_create_index: the share of the whole at their start and end.
_SHARES = (
    ("building index: scanning table", 0.0, 0.4),
    ("building index: sorting live tuples", 0.4, 0.4),
    ("building index: loading tuples in tree", 0.4, 0.7),
    ("building index", 0.0, 0.7),
    ("waiting for writers before validation", 0.7, 0.7),
    ("index validation: scanning index", 0.7, 0.8),
    ("index validation: sorting tuples", 0.8, 0.8),
    ("index validation: scanning table", 0.8, 1.0),
    ("waiting for old snapshots", 1.0, 1.0),
    ("waiting for readers", 1.0, 1.0),
)


class IndexProgress(NamedTuple):
    """A row of ``pg_stat_progress_create_index``."""

    phase: str | None
    blocks_done: int | None
    blocks_total: int | None
    tuples_done: int | None
    tuples_total: int | None

    @property
    def share(self) -> float:
        """Approximate share of the build that is done, from 0 to 1."""
        for beginning, low, high in _SHARES:
            if (self.phase or "").startswith(beginning):
                return low + (high - low) * self._within
        return 0.0

    @property
    def _within(self) -> float:
        for done, total in (
            (self.blocks_done, self.blocks_total),
            (self.tuples_done, self.tuples_total),
        ):
            if total:
                return min((done or 0) / total, 1.0)
        return 0.0


async def states(pool: Pool) -> list[IndexState]:
    """Return whether each index exists and is complete, in the order of building."""
    found = dict(await pool.rows(MIGRATION["indexes"], list(LATE)))
    return [IndexState(name, bool(found.get(name))) for name in LATE]


async def drop(connection: Connection) -> None:
    """Drop the existing ones, in a transaction that has locked the table."""
    # Not IF EXISTS: it would also find an index of that name in another schema of the search_path.
    found = [row[0] for row in await connection.fetch(MIGRATION["indexes"], list(LATE))]
    if found:
        await connection.execute(f"DROP INDEX {', '.join(found)}")


async def build(pool: Pool, name: str, progress: Callable[[float], None]) -> None:
    """Build an index without blocking writes, unless it exists and is complete.

    It waits for a build that an earlier server process left running, and drops an incomplete
    index first.

    Args:
        pool: The connections.
        name: Name of the index.
        progress: Called with the share that is done, which never decreases.

    Raises:
        KeyError: There is no late index of this name.

    """
    definition = LATE[name]
    watch = awaited(_report_progress(pool, name, progress), name="postgresql-index-progress")
    try:
        async with pool.dedicated() as connection:
            while await pool.rows(MIGRATION["build_progress"], name):  # noqa: ASYNC110 - PostgreSQL has no event for it
                await asyncio.sleep(_LOOK_EVERY)
            valid = dict(await connection.fetch(MIGRATION["indexes"], list(LATE))).get(name)
            # Separate statements, because neither can run in a transaction.
            if valid is False:
                await connection.execute(f"DROP INDEX CONCURRENTLY {name}")
            if not valid:
                await connection.execute(f"CREATE INDEX CONCURRENTLY {name} {definition}")
    finally:
        watch.cancel()
        await asyncio.wait([watch])
    progress(1.0)


async def _report_progress(pool: Pool, name: str, progress: Callable[[float], None]) -> None:
    """Report the progress of a build until cancelled."""
    furthest = 0.0
    while True:
        with contextlib.suppress(StorageError):
            rows = await pool.rows(MIGRATION["build_progress"], name)
            furthest = max([furthest, *[IndexProgress(*row).share for row in rows]])
            progress(furthest)
        await asyncio.sleep(_LOOK_EVERY)
