"""Baseline: a loop of asyncpg's COPY into the store's own schema with all indexes.

    python -m tools.benchmarks.bare_postgres DSN inside|before NAME COUNT

One process, one connection, ``synchronous_commit=on``, one COPY and commit per thousand messages.
The rows contain the search columns ``terms`` and ``search``. Everything else is left out: network,
validation, locks, the lookup of stored ids and tombstones, revisions from the sequence, and
answers.

``inside``: the terms are computed in the loop, as every insert of a message requires. ``before``:
the terms are computed before the clock starts, which no real insert can do.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.pool import Connection, Pool
from sagastore_server.postgresql.rows import COLUMNS, Row, row_of, search_columns
from sagastore_server.postgresql.schema import prepare
from sagastore_server.storage.model import Message
from tools.benchmarks.messages import chunks, stored_messages


def _row_of(message: Message) -> Row:
    return row_of(message, search_columns(message.content))


async def _copy(connection: Connection, rows: list[Row]) -> None:
    await connection.copy_records_to_table("messages", records=rows, columns=COLUMNS)


async def main() -> None:
    """Copy the messages and print the elapsed seconds."""
    dsn, terms, name, count = sys.argv[1:]
    batches = chunks(stored_messages(name, 0, int(count)))
    pool = Pool(PostgreSQLOptions(dsn, pool_min=1, pool_max=2))
    await pool.open()
    await prepare(pool, "the database")
    async with pool.connection() as connection:
        if terms == "before":
            ready = [list(map(_row_of, batch)) for batch in batches]
            began = time.perf_counter()
            for rows in ready:
                await _copy(connection, rows)
        else:
            began = time.perf_counter()
            for batch in batches:
                await _copy(connection, list(map(_row_of, batch)))
        seconds = time.perf_counter() - began
    await pool.close()
    sys.stdout.write(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    asyncio.run(main())
