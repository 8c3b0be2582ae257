"""Reader pool: reads are bounded and leave no statement open."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from sagastore_server.sqlite.readers import MOST_READ, ReaderPool
from sagastore_server.storage.limits import MAX_PAGE_BYTES

ENDLESS = (
    "WITH RECURSIVE endless (at) AS (SELECT 1 UNION ALL SELECT at + 1 FROM endless) "
    "SELECT CAST(at AS TEXT), 'openai', 'user', printf('%.*c', ?, 'x'), '[]', at, '{}', NULL, at,"
    " at, 7 FROM endless CROSS JOIN one"
)
"""Messages without end, which nothing but what the reader takes puts an end to."""


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[ReaderPool]:
    path = tmp_path / "any.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE one AS SELECT 1")
    pool = ReaderPool(path)
    await pool.open()
    try:
        yield pool
    finally:
        await pool.close()


def _log_can_be_emptied(pool: ReaderPool) -> bool:
    with closing(sqlite3.connect(pool._path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO one VALUES (2)")
        connection.execute("DELETE FROM one WHERE rowid > 1")
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint (TRUNCATE)").fetchone()
        return not busy


@pytest.mark.parametrize(("length", "limit"), [(100_000, 500), (100, 500), (1, 64), (1, 65)])
async def test_page_reads_are_bounded(pool: ReaderPool, length: int, limit: int) -> None:
    page = await pool.page(f"{ENDLESS} LIMIT ?", (length, limit + 1), limit)
    assert page.more
    size = sum(message.size for message in page.messages)
    assert len(page.messages) == limit or size + page.messages[-1].size > MAX_PAGE_BYTES
    assert size <= MAX_PAGE_BYTES
    assert [message.timestamp for message in page.messages] == list(
        range(1, len(page.messages) + 1)
    )
    assert _log_can_be_emptied(pool)


async def test_block_page_reports_row_count(pool: ReaderPool) -> None:
    page, rows = await pool.page_of_block(f"{ENDLESS} LIMIT ?", (100_000, 501), 500)
    assert (page.more, rows) == (True, 7)
    assert len(page.messages) < 40
    assert _log_can_be_emptied(pool)


@pytest.mark.parametrize("length", [1_000, 1_000_000, 2 * MOST_READ])
async def test_batch_ends_at_weight_limit(pool: ReaderPool, length: int) -> None:
    rows = await pool.some(ENDLESS, (length,), MOST_READ)
    taken = sum(len(row[3]) for row in rows)
    assert taken <= MOST_READ or len(rows) == 1
    assert taken + length + 100 * len(rows) > MOST_READ
    assert _log_can_be_emptied(pool)
