"""Replicated rows, tests specific to PostgreSQL; see also tests/contract/migration."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sagastore_server.postgresql.rows import search_columns
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.search.analysis import ANALYSIS_VERSION
from sagastore_server.search.parser import parse_query
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Criteria
from sagastore_server.storage.replication import Entry
from tests.postgresql.targets import buried_in, claimed, fetched, found_by, opened_target
from tests.support.drafts import NOW
from tests.support.migration_values import LEASE, MARK, SOURCE, content_of, deleted, message, saved
from tests.support.postgres import execute
from tests.support.reanalysis import analysed, set_back_postgresql_analysis


@pytest.fixture(params=[100, 0])
async def replica(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[PostgreSQLTarget]:
    """Open a replica with a lease, with and without prepared statements."""
    async with claimed(dsn, statement_cache=request.param) as replica:
        yield replica


async def tamper(dsn: str, statement: str) -> None:
    """Change rows directly, without the lease."""
    await execute(dsn, f"SET sagastore.session = '{LEASE.session}'; {statement}")


async def applied_to(replica: PostgreSQLTarget) -> int:
    record = (await replica.inspect()).record
    assert record is not None
    return record.applied


# ------------------------------------------------------------------ the journal


async def test_bad_entry_rolls_back_batch(replica: PostgreSQLTarget) -> None:
    await replica.apply(LEASE, [saved(message("m-1", 1))])
    bad = [saved(message("m-2", 2)), deleted("m-1", 3), saved(message("m-3", 4, "zero \0 byte"))]
    with pytest.raises(Exception, match="failed to run the request"):
        await replica.apply(LEASE, bad)
    assert await content_of(replica) == {"m-1": message("m-1", 1)}
    assert await applied_to(replica) == 1


# ------------------------------------------------------------------ repairs

TAMPERINGS = {
    "same revision, different content": "UPDATE messages SET content = 'changed' WHERE id = 'm-1'",
    "greater revision": "UPDATE messages SET content = 'x', revision = 99 WHERE id = 'm-1'",
    "missing": "DELETE FROM messages WHERE id = 'm-1'",
    "missing, with a tombstone": "DELETE FROM messages WHERE id = 'm-1'; "
    "INSERT INTO tombstones VALUES ('m-1', 99, now())",
}
LIKE = "provider, role, content, tags, timestamp, metadata, session_id, created_at"


@pytest.mark.parametrize("kind", TAMPERINGS)
async def test_repair_restores_message(dsn: str, kind: str) -> None:
    async with claimed(dsn) as replica:
        wanted = message("m-1", 5)
        await replica.apply(LEASE, [saved(wanted), saved(message("m-2", 6))])
        await tamper(dsn, TAMPERINGS[kind])
        await replica.apply(LEASE, [saved(wanted, sequence=7)])
        if kind != "missing":
            assert (await content_of(replica)).get("m-1") != wanted
        await replica.apply(LEASE, [saved(wanted, sequence=8, forced=True)])
        assert await content_of(replica) == {"m-1": wanted, "m-2": message("m-2", 6)}
        assert await buried_in(dsn) == {}
        assert await found_by(replica, Criteria(parse_query("fox"))) == ["m-1", "m-2"]


@pytest.mark.parametrize("buried", [0, 3])
async def test_repair_removes_extra_message(dsn: str, buried: int) -> None:
    async with claimed(dsn) as replica:
        await replica.apply(LEASE, [saved(message("m-2", 2))])
        await tamper(
            dsn,
            f"INSERT INTO messages SELECT 'extra', {LIKE}, 99, terms, search, 99 FROM messages",
        )
        entry = Entry(4, "extra", None, buried, True, NOW)
        await replica.apply(LEASE, [entry])
        assert list(await content_of(replica)) == ["m-2"]
        assert await buried_in(dsn) == ({"extra": 3} if buried else {})


# ------------------------------------------------------------------ others


async def test_claim_rebuilds_terms_of_other_analysis(dsn: str) -> None:
    async with claimed(dsn) as replica:
        rows = [message(f"m-{n:04}", n + 1, f"word{n}") for n in range(1200)]
        await replica.copy(LEASE, rows, MARK)
    await set_back_postgresql_analysis(dsn, "older")
    async with opened_target(dsn) as replica:
        await replica.claim(LEASE, SOURCE, Phase.DUAL_WRITE, 2)
        await analysed(replica)
        assert await found_by(replica, Criteria(parse_query("word1199"))) == ["m-1199"]
        ((terms,),) = await fetched(dsn, "SELECT terms FROM messages WHERE id = 'm-0001'")
        assert terms == search_columns("word1")[0]
        ((analysis,),) = await fetched(dsn, "SELECT value FROM store_state WHERE name = 'analysis'")
        assert analysis == str(ANALYSIS_VERSION)
