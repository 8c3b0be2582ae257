"""Ranked search: every backend gives the pages that ranking the contents gives."""

from __future__ import annotations

import random

import pytest

from sagastore_server.search.pager import Cursor, Order, search_page
from sagastore_server.search.parser import parse_query
from sagastore_server.search.ranking import score
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.model import NewMessage
from sagastore_server.storage.query import Criteria, Hit, RankedScan
from tests.support.drafts import NOW, draft, save_all

WORDS = [
    *("fox", "fox", "foxes", "dog", "running", "runs", "runner", "ran", "categories", "category"),
    *("été", "ete", "ﬁne", "北京", "北", "👍🏽", "a", "a", "naïve", "cats"),
]

QUERIES = [
    *("fox", "dog OR fox", "a", '"a a"', '"fox fox"', '"fox dog" OR runs', "run*", "running*"),
    *("categorie*", "cat* fox", "ru* OR do*", "fo* -dog", "-dog", "fox -runs", "fox OR -dog"),
    *("(fox dog) OR (cat* -runs)", "北京", "北*", "é*", "fin* OR fine", "👍", "a a a fox", "x*"),
    " OR ".join(["fox", *(f"w{number}" for number in range(40))]),
]


def _drafts(chance: random.Random, count: int) -> list[NewMessage]:
    drafts = [
        draft(
            f"m-{number:03}",
            " ".join(chance.choices(WORDS, k=chance.randrange(60))),
            timestamp=NOW + chance.randrange(count // 2),
        )
        for number in range(count)
    ]
    drafts[0] = drafts[0]._replace(content="fox " + "é" * 5_000)
    drafts[1] = drafts[1]._replace(content="fox dog " * 700)
    return drafts


@pytest.mark.parametrize("window", [37])
async def test_pages_have_order_and_scores_of_contents(
    backend: StorageBackend, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr("sagastore_server.search.pager.WINDOW", window)
    chance = random.Random(window)
    await save_all(backend, _drafts(chance, 150))
    for query in QUERIES:
        text = parse_query(query)
        assert text is not None
        newest = await _walk(backend, query, Order.NEWEST, chance)
        expected = []
        for start in range(0, len(newest), window):
            ranked = [
                hit._replace(score=score(text, hit.message.content))
                for hit in newest[start : start + window]
            ]
            ranked.sort(key=lambda hit: (hit.score, hit.message.position), reverse=True)
            expected += ranked
        found = await _walk(backend, query, Order.RELEVANCE, chance)
        assert [(hit.score, hit.message) for hit in found] == [
            (hit.score, hit.message) for hit in expected
        ], query


async def _walk(
    backend: StorageBackend, query: str, order: Order, chance: random.Random
) -> list[Hit]:
    """Return the hits of all pages, each of another size."""
    hits: list[Hit] = []
    cursor: Cursor | None = None
    while True:
        size = chance.randrange(10, 120)
        criteria = Criteria(parse_query(query))
        page, cursor = await search_page(backend, criteria, order, size, cursor)
        hits += page
        if cursor is None:
            return hits


async def test_a_window_of_large_contents_ends_early(
    backend: StorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagastore_server.search.windows.WINDOW_BYTES", 1000)
    monkeypatch.setattr("sagastore_server.postgresql.search.WINDOW_BYTES", 1000)
    contents = [f"fox {'é' * 450} {'fox ' * number}" for number in range(5)]
    await save_all(backend, [draft(f"m-{n}", one) for n, one in enumerate(contents)])
    found = await _walk(backend, "fox", Order.RELEVANCE, random.Random(1))
    # The last but one of them has 908 bytes; two have more than 1,000.
    assert [hit.message.id for hit in found] == ["m-4", "m-3", "m-2", "m-1", "m-0"]


async def test_an_empty_window(backend: StorageBackend) -> None:
    await save_all(backend, [draft("m-1", "dog")])
    page = await backend.search_ranked(Criteria(parse_query("fox")), RankedScan(10, 5))
    assert page is None or page == ([], False, None, None, False)
