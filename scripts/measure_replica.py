"""Benchmark of the write path into PostgreSQL; prints one line per measurement.

Run it from the repository: ``.venv/bin/python -m scripts.measure_replica [ROWS]``. It uses the
PostgreSQL of the tests, or the one that SAGASTORE_TEST_POSTGRES_DSN names, in a new schema.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from sagastore_server.postgresql import journal_apply
from sagastore_server.postgresql.queries import MIGRATION
from sagastore_server.postgresql.rows import COLUMNS
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.runtime.worker_pool import WorkerPool
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.model import Message
from sagastore_server.storage.replication import BackfillMark
from tests.postgresql.targets import claimed
from tests.support.drafts import as_draft
from tests.support.migration_values import LEASE, finish, message, saved
from tests.support.postgres import execute, fresh_schema

BATCH = 1000
MARK = BackfillMark(BackfillState.RUNNING)
WORDS = [f"word{number}ing" for number in range(20_000)]
STAGING = MIGRATION["upsert"].replace("tags::jsonb", "tags").replace("metadata::jsonb", "metadata")


def text(number: int) -> Message:
    """Return a message of 60 words; equal numbers give equal messages."""
    chance = random.Random(number)  # noqa: S311 - made again the same
    content = " ".join(chance.choices(WORDS, k=60))
    return message(f"id-{number:08}", number + 1, content, session_id=f"s-{number // 20}")


async def staging(connection: Any, rows: list[Any]) -> None:
    """Store rows through a temporary table."""
    await connection.execute("CREATE TEMP TABLE new (LIKE messages) ON COMMIT DROP")
    await connection.copy_records_to_table("new", records=rows, columns=COLUMNS)
    head, _, tail = STAGING.partition("FROM unnest(")
    await connection.execute(f"{head} FROM new {tail[tail.index('WHERE NOT') :]}")


async def upsert(connection: Any, rows: list[Any]) -> None:
    """Store rows with ``unnest``."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    await connection.execute(MIGRATION["upsert"], *columns)


async def copying(rows: int) -> None:
    """Compare the ways to store a batch, with and without indexes."""
    messages = list(map(text, range(rows)))
    began = time.perf_counter()
    starts = range(0, rows, BATCH)
    pool = WorkerPool()
    batches = [
        await journal_apply.rows_once(messages[start : start + BATCH], pool) for start in starts
    ]
    await pool.close()
    print_measurement("analysis alone", rows / (time.perf_counter() - began), "rows/s")
    for store in (upsert, staging, journal_apply.fill):
        for late in (True, False):
            async with fresh_schema() as dsn, claimed(dsn) as replica:
                if not late:
                    await build_all(replica)
                began = time.perf_counter()
                for batch in batches:
                    await replica._holding(LEASE, partial(store, rows=batch))
                name = f"{store.__name__}, indexes {'late' if late else 'there'}"
                print_measurement(name, rows / (time.perf_counter() - began), "rows/s")
    async with fresh_schema() as dsn, claimed(dsn) as replica:
        began = time.perf_counter()
        for start in starts:
            await replica.copy(LEASE, messages[start : start + BATCH], MARK)
        print_measurement("copy(), total", rows / (time.perf_counter() - began), "rows/s")
        began = time.perf_counter()
        await build_all(replica)
        print_measurement("building the indexes afterwards", time.perf_counter() - began, "s")


async def build_all(replica: PostgreSQLTarget) -> None:
    """Build the missing indexes."""
    for index in await replica.indexes():
        await replica.build_index(index.name, ignore)


def ignore(share: float) -> None:
    """Ignore the progress."""
    del share


async def latency() -> None:
    """Compare one journal entry with one save and with a bare INSERT."""
    async with fresh_schema() as dsn, claimed(dsn) as replica:
        await build_all(replica)
        await timed("apply, one entry", lambda n: replica.apply(LEASE, [saved(text(n))]))
        await finish(replica, 10**9)
        await timed("save, one message", lambda n: replica.save(as_draft(text(10**6 + n))))
        await execute(dsn, "CREATE TABLE bare (id TEXT PRIMARY KEY, content TEXT)")
        async with replica._pool.connection() as connection:
            sql = "INSERT INTO bare VALUES ($1, $2)"
            await timed(
                "INSERT into a bare table", lambda n: connection.execute(sql, *text(n)[:4:3])
            )


async def timed(name: str, call: Callable[[int], Awaitable[object]], times: int = 1000) -> None:
    """Print the median duration of a call."""
    taken = []
    for number in range(times):
        began = time.perf_counter()
        await call(number)
        taken.append(time.perf_counter() - began)
    print_measurement(name, sorted(taken)[times // 2] * 1000, "ms (median)")


def print_measurement(name: str, value: float, unit: str) -> None:
    """Print a measurement."""
    sys.stdout.write(f"{name:32} {value:10,.2f} {unit}\n")
    sys.stdout.flush()


async def main() -> None:
    """Run all measurements."""
    await copying(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
    await latency()


if __name__ == "__main__":
    asyncio.run(main())
