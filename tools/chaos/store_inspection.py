"""Direct inspection of each store during a round.

``durable_on`` is a claim about the stores that answers of the service cannot confirm, because the
service answers from either store.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from pathlib import Path

import asyncpg

from tools.chaos.cluster import Cluster
from tools.chaos.history import History
from tools.chaos.values import Shown

_WITHIN = 2.0
"""Seconds that a query may take; a store that is down or frozen cannot be inspected."""

_SELECT = "SELECT id, revision FROM messages"


async def inspect_store(cluster: Cluster, history: History, rng: random.Random) -> None:
    """Inspect one of the stores from time to time until cancelled."""
    while True:
        await asyncio.sleep(rng.uniform(0.3, 1.5))
        store = rng.choice(["SQLITE", "POSTGRESQL"])
        operation = history.begin(-1, "Peek", {"store": store})
        try:
            async with asyncio.timeout(_WITHIN):
                if store == "SQLITE":
                    rows = await asyncio.to_thread(_of_the_file, cluster.path)
                else:
                    rows = await _of_postgresql(cluster.testbed.dsn(cluster.database))
        except (OSError, sqlite3.Error, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
            operation.refused("", type(exc).__name__)
        else:
            items = [Shown(id, "", "", revision, None, 0) for id, revision in rows]
            operation.ok({"items": items})


async def _of_postgresql(dsn: str) -> list[tuple[str, int]]:
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(_SELECT)]
    finally:
        connection.terminate()


def _of_the_file(path: Path) -> list[tuple[str, int]]:
    """Read the file while its server runs; returns nothing once the file is an archive."""
    uri = f"{path.as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1.0)) as connection:
        return connection.execute(_SELECT).fetchall()
