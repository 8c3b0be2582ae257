"""Parity of search: every query from the sample's texts has equal answers on both stores."""

from __future__ import annotations

import pytest

from sagastore_server.search.pager import Order
from tests.parity.compare import QUERIES, SAMPLE, both, difference, make_queries, order_of, texts_of
from tests.support import strategies

COUNT = 200 if strategies.QUICK else QUERIES


@pytest.mark.timeout(600)
async def test_queries_match_same_messages_on_both_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    # Several windows of relevance for the common words of some hundred messages.
    monkeypatch.setattr("sagastore_server.search.pager.WINDOW", 60)
    async with both([SAMPLE]) as (sqlite, postgresql):
        queries = make_queries(await texts_of(sqlite), COUNT)
        assert len(queries) == COUNT
        order = await order_of(sqlite)
        assert len(set(order)) == len(order) > 100
        assert await order_of(postgresql) == order
        told = {
            query: await difference(sqlite, postgresql, query, list(Order)) for query in queries
        }
    assert {query: line for query, line in told.items() if line} == {}
