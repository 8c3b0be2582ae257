"""Each kind of search uses its index. ``SAGASTORE_TEST_ROWS`` sets how many rows there are."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

import pytest

from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.search import compile_search
from sagastore_server.search.parser import parse_query
from sagastore_server.storage.model import Position
from sagastore_server.storage.query import Criteria, Scan
from tests.support.backends import opened
from tests.support.drafts import NOW
from tests.support.postgres import execute

ROWS = int(os.environ.get("SAGASTORE_TEST_ROWS", "20000"))

# Words of very different frequency: w0 in every row, w9999 in few.
_FILL = """
INSERT INTO messages (id, provider, role, content, tags, timestamp, metadata, session_id,
    created_at, revision, terms, search)
SELECT 'm-' || lpad(n::text, 8, '0'), 'openai', 'user', 'text ' || n,
    jsonb_build_array('tag' || n % 5000, 'all'), to_timestamp({start} + n),
    jsonb_build_object('turn', n % 20, 'dialogue', n / 20), 'session-' || n / 20, now(), n,
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
        Criteria(), "idx_messages_timestamp", Scan(True, 50, Position(NOW + 5_000_000_000, "m"))
    ),
    "session, next page": Case(
        Criteria(session_id="session-77"),
        "idx_messages_session",
        Scan(False, 5, Position(NOW + 1_545_000_000, "m")),
    ),
}


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]


@pytest.mark.timeout(900)
async def test_each_search_uses_its_index(dsn: str) -> None:
    options = PostgreSQLOptions(dsn, pool_min=1, statement_timeout=600)
    async with opened(lambda: PostgreSQLStorage(options)) as backend:
        await execute(dsn, _FILL.format(start=NOW // 1_000_000, rows=ROWS))
        await execute(dsn, "VACUUM ANALYZE messages")
        wrong = {}
        for name, case in CASES.items():
            if case.rows > ROWS:
                continue
            sql, parameters = compile_search(case.criteria, case.scan)
            rows = await backend._pool.planned_rows(  # type: ignore[attr-defined]
                f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", parameters
            )
            nodes = _nodes(json.loads(rows[0][0])[0]["Plan"])
            used = {node["Index Name"] for node in nodes if "Index Name" in node}
            scans = [n for n in nodes if n["Node Type"] == "Seq Scan"]
            if case.uses not in used or scans:
                wrong[name] = (used, [node["Node Type"] for node in nodes])
        assert wrong == {}
