"""A bare loop of asyncpg's COPY into the store's own schema, with all of its indexes.

    python -m tools.benchmarks.bare_postgres DSN inside|before NAME COUNT

One process and one connection, ``synchronous_commit=on``, a COPY and a commit for each
thousand messages. The rows hold what search needs, ``terms`` and ``search``. What is left
out is everything else: the network, checks, locks, the look at what is stored under the ids
and whether one was deleted, revisions from the sequence, and the answers.

``inside``: the terms are made in the loop, as whoever inserts a message has to.
``before``: they lie ready when the clock starts, which nobody's do.
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
    """Copy the messages, and print the seconds that it took."""
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
