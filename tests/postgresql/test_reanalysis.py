"""Analysis of a database by a newer version: while servers use it, and with former servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.search.analysis import ANALYSIS_VERSION
from tests.postgresql.targets import fetched
from tests.support.backends import opened
from tests.support.drafts import draft, found, save_all
from tests.support.postgres import execute
from tests.support.reanalysis import (
    FORMER,
    FORMER_TERM,
    Gate,
    analysed,
    set_back_postgresql_analysis,
)
from tests.support.waiting import until

IDS = [f"m-{number:02}" for number in range(len(FORMER))]


@pytest.fixture
def gate() -> Iterator[Gate]:
    with pytest.MonkeyPatch.context() as patch:
        yield Gate(patch)


def _on(dsn: str) -> PostgreSQLStorage:
    return PostgreSQLStorage(PostgreSQLOptions(dsn, pool_min=1, pool_max=4))


async def _former(dsn: str, version: str = "2/snowball/unicode") -> None:
    async with opened(lambda: _on(dsn)) as store:
        drafts = [
            draft(key, content, session_id=None) for key, content in zip(IDS, FORMER, strict=True)
        ]
        await save_all(store, drafts)
    await set_back_postgresql_analysis(dsn, version)


async def test_words_of_the_former_version_are_found_until_the_row_is_analysed(
    dsn: str, gate: Gate
) -> None:
    await _former(dsn)
    async with opened(lambda: _on(dsn)) as store:
        assert store.reanalysis == (0, len(IDS))
        assert await found(store, "disk full") == ["m-04"]
        assert await found(store, "acme") == []
        await gate.let_pass(1)
        assert await found(store, "acme") == await found(store, "gizmo") == ["m-00"]
        assert await found(store, FORMER_TERM) == IDS[1:]
        await store.save(draft("m-05", "Changed™", session_id=None))
        assert await found(store, "changed") == ["m-05"]
        assert await found(store, FORMER_TERM) == IDS[1:5]
        gate.open()
        await analysed(store)
        assert await found(store, FORMER_TERM) == []
        for query, number in (("statement", 1), ("mc", 2), ("word2", 3), ("warning", 4)):
            assert await found(store, query) == [IDS[number]], query
    ((value,),) = await fetched(dsn, "SELECT value FROM store_state WHERE name = 'analysis'")
    assert value == str(ANALYSIS_VERSION)


async def test_several_servers_analyse_at_once(dsn: str) -> None:
    async with opened(lambda: _on(dsn)) as store:
        drafts = [draft(f"m-{n:04}", f"word{n}™", session_id=None) for n in range(2500)]
        await save_all(store, drafts)
    await set_back_postgresql_analysis(dsn)
    async with opened(lambda: _on(dsn)) as one, opened(lambda: _on(dsn)) as other:
        await one.save(draft("m-0001", "between", session_id=None))
        await other.delete("m-2400")
        await analysed(one, other)
        for store in (one, other):
            assert await found(store, FORMER_TERM) == []
            assert await found(store, "word2499") == ["m-2499"]
            assert await found(store, "between") == ["m-0001"]
            assert await found(store, "word1") == await found(store, "word2400") == []
    rows = await fetched(dsn, "SELECT count(*) FROM messages WHERE analysed_3 <> revision")
    assert rows == [(0,)]


async def test_row_that_a_server_of_the_former_version_writes_is_analysed(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagastore_server.postgresql.reanalysis.AGAIN", 0.01)
    await _former(dsn)
    await execute(
        dsn,
        "UPDATE sagastore_schema SET applied_at = applied_at - interval '1 hour' WHERE version < 6",
    )
    async with opened(lambda: _on(dsn)) as store:
        await analysed(store)
        # Its statement knows neither the column nor the new terms.
        await execute(
            dsn,
            "UPDATE messages SET content = 'Late™', terms = ' latetm ', search = 'latetm',"
            " revision = nextval('message_revisions') WHERE id = 'm-01'",
        )
        stale = True
        while stale:
            ((stale,),) = await fetched(
                dsn, "SELECT EXISTS (SELECT FROM messages WHERE analysed_3 <> revision)"
            )
        assert await found(store, "late") == ["m-01"]
        assert await found(store, "latetm") == []


async def test_database_of_a_newer_version_is_served_and_stays_as_it_is(dsn: str) -> None:
    await _former(dsn, "99")
    async with opened(lambda: _on(dsn)) as store:
        assert store.reanalysis is None
        assert await found(store, FORMER_TERM) == IDS
        await store.save(draft("new", "Fresh™", session_id=None))
        assert await found(store, "fresh") == ["new"]
    rows = await fetched(dsn, "SELECT count(*) FROM messages WHERE analysed_3 = 0")
    assert rows == [(len(IDS),)]
    ((value,),) = await fetched(dsn, "SELECT value FROM store_state WHERE name = 'analysis'")
    assert value == "99"


async def test_interrupted_reanalysis_continues(dsn: str, gate: Gate) -> None:
    await _former(dsn)
    async with opened(lambda: _on(dsn)):
        await gate.let_pass(2)
    rows = await fetched(dsn, "SELECT count(*) FROM messages WHERE analysed_3 <> revision")
    assert rows == [(len(IDS) - 2,)]
    gate.open()
    async with opened(lambda: _on(dsn)) as store:
        await until(lambda: store.reanalysis is None)
        assert await found(store, FORMER_TERM) == []
