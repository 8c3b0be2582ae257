"""Query plans: each search uses its index. ``SAGASTORE_TEST_ROWS`` sets the number of rows."""

from __future__ import annotations

import itertools
import json
import os
from typing import Any, NamedTuple

import pytest

from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.positions import located
from sagastore_server.postgresql.search import (
    FIRST_BLOCK,
    SearchStatement,
    compile_search,
    next_block,
    planner_must_guess,
)
from sagastore_server.search.parser import parse_query
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.model import Position
from sagastore_server.storage.query import Criteria, Scan
from tests.support.backends import opened
from tests.support.drafts import NOW
from tests.support.postgres import execute

ROWS = int(os.environ.get("SAGASTORE_TEST_ROWS", "20000"))

# Words of very different frequency: w0 in every row, w9999 in few.
_FILL = """
INSERT INTO messages (id, provider, role, content, tags, timestamp, metadata, session_id,
    created_at, revision, sequence, terms, search)
SELECT 'm-' || lpad(n::text, 8, '0'), 'openai', 'user', 'text ' || n,
    jsonb_build_array('tag' || n % 5000, 'all'), to_timestamp({start} + n),
    jsonb_build_object('turn', n % 20, 'dialogue', n / 20), 'session-' || n / 20, now(), n, n,
    ' common w' || n % 10000 || ' v' || n % 10000 || ' half' || n % 2 || ' ',
    array_to_tsvector(ARRAY['common', 'w' || n % 10000, 'v' || n % 10000, 'half' || n % 2])
FROM generate_series(1, {rows}) AS n
"""


class Case(NamedTuple):
    criteria: Criteria
    uses: str
    scan: Scan = Scan(True, 50)
    rows: int = 0
    """How many rows there must be until the planner expects to gain by the index."""


CASES = {
    "word": Case(Criteria(parse_query("w77")), "idx_messages_content_fts"),
    "two words": Case(Criteria(parse_query("common w77")), "idx_messages_content_fts"),
    "phrase": Case(Criteria(parse_query('"w77 v77"')), "idx_messages_content_fts"),
    "prefix": Case(Criteria(parse_query("w777*")), "idx_messages_content_fts", rows=300_000),
    "or": Case(
        Criteria(parse_query('w77 OR "w88 v88" OR w999*')), "idx_messages_content_fts", rows=300_000
    ),
    "group": Case(Criteria(parse_query("common (w77 OR w88)")), "idx_messages_content_fts"),
    "phrases in a group": Case(
        Criteria(parse_query('common ("w77 v77" OR NOT half0 w88)')), "idx_messages_content_fts"
    ),
    "exclusion": Case(Criteria(parse_query("w77 -half0")), "idx_messages_content_fts"),
    "common word": Case(Criteria(parse_query("common")), "idx_messages_timestamp"),
    "only exclusion": Case(Criteria(parse_query("-w77")), "idx_messages_timestamp"),
    "tags": Case(Criteria(tags=("tag77",)), "idx_messages_tags"),
    "metadata": Case(Criteria(metadata='{"dialogue": 77}'), "idx_messages_metadata"),
    "session": Case(Criteria(session_id="session-77"), "idx_messages_session"),
    "time": Case(Criteria(start=NOW + 10_000_000, end=NOW + 60_000_000), "idx_messages_timestamp"),
    "everything": Case(Criteria(), "idx_messages_timestamp"),
    "oldest first": Case(Criteria(), "idx_messages_timestamp", Scan(False, 50)),
    "next page": Case(
        Criteria(), "idx_messages_timestamp", Scan(True, 50, Position(NOW + 5_000_000_000, 1))
    ),
    "session, next page": Case(
        Criteria(session_id="session-77"),
        "idx_messages_session",
        Scan(False, 5, Position(NOW + 1_545_000_000, 1)),
    ),
}


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]


async def _explained(backend: StorageBackend, statement: SearchStatement) -> list[dict[str, Any]]:
    rows = await backend._pool.rows(  # type: ignore[attr-defined]
        f"EXPLAIN (ANALYZE, FORMAT JSON) {located(statement.sql)}", *statement.parameters
    )
    return _nodes(json.loads(rows[0][0])[0]["Plan"])


@pytest.mark.timeout(900)
async def test_search_uses_index(dsn: str) -> None:
    options = PostgreSQLOptions(dsn, pool_min=1, statement_timeout=600)
    async with opened(lambda: PostgreSQLStorage(options)) as backend:
        await execute(dsn, _FILL.format(start=NOW // 1_000_000, rows=ROWS))
        await execute(dsn, "VACUUM ANALYZE messages")
        wrong = {}
        for name, case in CASES.items():
            if case.rows > ROWS:
                continue
            block = 0 if planner_must_guess(case.criteria) else None
            nodes = await _explained(backend, compile_search(case.criteria, case.scan, block))
            used = {node["Index Name"] for node in nodes if "Index Name" in node}
            scans = [n for n in nodes if n["Node Type"] == "Seq Scan"]
            if case.uses not in used or scans:
                wrong[name] = (used, [node["Node Type"] for node in nodes])
        assert wrong == {}


PREFIXES = (
    "common*",
    "w1*",
    "w77*",
    "w9999*",
    "w7 OR w999*",
    "common* -half0",
    '"w5 v5" v5*',
    "x*",
)


async def test_prefix_scan_is_bounded(dsn: str) -> None:
    options = PostgreSQLOptions(dsn, pool_min=1, statement_timeout=600)
    async with opened(lambda: PostgreSQLStorage(options)) as backend:
        await execute(dsn, _FILL.format(start=NOW // 1_000_000, rows=20_000))
        await execute(dsn, "VACUUM ANALYZE messages")
        for query in PREFIXES:
            criteria, scan = Criteria(parse_query(query)), Scan(True, 50)
            assert planner_must_guess(criteria)
            near, lookup = [
                await _explained(backend, compile_search(criteria, scan, block))
                for block in (FIRST_BLOCK, 0)
            ]
            read = sum(node["Actual Rows"] for node in near if "Relation Name" in node)
            assert read <= FIRST_BLOCK
            used = {node["Index Name"] for node in lookup if "Index Name" in node}
            assert "idx_messages_timestamp" not in used


async def test_both_plans_return_same_rows(dsn: str) -> None:
    late = Position(NOW + 17_500_000_000, 1)
    scans = (Scan(True, 50), Scan(False, 50), Scan(True, 3), Scan(True, 50, late))
    options = PostgreSQLOptions(dsn, pool_min=1, statement_timeout=600)
    async with opened(lambda: PostgreSQLStorage(options)) as backend:
        await execute(dsn, _FILL.format(start=NOW // 1_000_000, rows=20_000))
        for query, scan in itertools.product(PREFIXES, scans):
            criteria = Criteria(parse_query(query))
            found = await backend.search(criteria, scan)
            rows = await backend._reads.planned_rows(  # type: ignore[attr-defined]
                *compile_search(criteria, scan)
            )
            ids = [row[0] for row in rows]
            assert [message.id for message in found.messages] == ids[: scan.limit], (query, scan)
            assert found.more == (len(ids) > scan.limit)


def test_next_block_has_required_size() -> None:
    assert next_block(FIRST_BLOCK, 26, 51) == 5884
    assert next_block(FIRST_BLOCK, 3, 51) == 0
    assert next_block(FIRST_BLOCK, 0, 51) == 0
    assert next_block(5884, 50, 51) == 0
