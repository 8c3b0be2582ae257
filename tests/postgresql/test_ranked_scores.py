"""PostgreSQL's scores are those of ``search.ranking``, to the bit, for random texts and queries."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.search.parser import parse_query
from sagastore_server.search.ranking import score
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.model import OnConflict
from sagastore_server.storage.query import Criteria, Ranked, RankedScan, TextQuery
from tests.support import strategies
from tests.support.backends import opened
from tests.support.drafts import NOW, draft, walk
from tests.support.postgres import fresh_schema

WORDS = (
    *("a", "fox", "foxes", "dog", "run", "runs", "running", "runner", "category", "categories"),
    *("été", "ete", "naïve", "ﬁne", "Straße", "Привет", "приветы", "北京", "北", "ガギ", "กำ"),
    *(
        "שלום",
        "مرحبا",
        "👍🏽",
        "👨‍👩‍👧",
        "❤️",
        "½",
        "x" * 99,
        "x" * 150,
        "é" * 120,
        "don't",
        "v1.85.0",
    ),
    *("'", '"', "%", "_", "\\", ":*", "=run", "$1", "\n", "\u2028", "ﷺ"),
)
COUNT = 5

words = st.sampled_from(WORDS) | strategies.storable_text.filter(str.strip)
runs = st.builds(
    lambda word, times: " ".join([word] * times), words, st.sampled_from([1, 1, 1, 2, 3, 40])
)
contents = st.lists(runs, max_size=12).map(" ".join)
long_contents = st.builds(
    lambda parts, times: " ".join(parts * times), st.lists(words, min_size=1), st.integers(1, 300)
)
drafts = st.lists(contents | contents | long_contents, min_size=COUNT, max_size=COUNT)

phrases = st.lists(words, min_size=1, max_size=4).map(lambda parts: f'"{" ".join(parts)}"')
repeated = st.builds(lambda word, times: f'"{" ".join([word] * times)}"', words, st.integers(2, 4))
prefixes = words.flatmap(lambda word: st.integers(1, len(word)).map(lambda end: word[:end] + "*"))
# Longer than the stem, so that they match words as written.
unstemmed = st.sampled_from(
    ["foxe*", "running*", "runnin*", "categorie*", "categories*", "приветы*"]
)
terms = words | words | phrases | repeated | prefixes | unstemmed
queries = st.recursive(
    terms,
    lambda inner: st.builds(
        lambda parts, operator, form: form.format(operator.join(parts)),
        st.lists(inner, min_size=1, max_size=4),
        st.sampled_from([" ", " OR ", " OR ", " NOT "]),
        st.sampled_from(["{}", "{}", "({})", "-({})"]),
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def store(runner: asyncio.Runner) -> Iterator[StorageBackend]:
    async def begin() -> StorageBackend:
        dsn = await stack.enter_async_context(fresh_schema())
        return await stack.enter_async_context(
            opened(lambda: PostgreSQLStorage(PostgreSQLOptions(dsn)))
        )

    stack = AsyncExitStack()
    yield runner.run(begin())
    runner.run(stack.aclose())


# Scores at half of a step of the six decimals: 0.0859375, 0.0390625 and 0.1203125.
@example(
    [
        " ".join(["fox"] * times + ["w"] * (length - times))
        for times, length in ((1, 1080), (2, 4904), (21, 16_120), (1, 1), (1, 40))
    ],
    ["fox"],
    2,
)
# Prefixes of words whose stems are shorter.
@example(
    ["running runs", "categories category", "foxes running", "runner", "running running"],
    ["running*", "categorie* OR foxe*", "running* OR ru*"],
    3,
)
@example(["a a a a", "a  a", "a", "", "b a a b a a a"], ['"a a"', "a -b", "b OR -a", "a*"], 1)
@given(drafts, st.lists(queries, min_size=3, max_size=6), st.integers(1, COUNT))
@settings(max_examples=100 if strategies.QUICK else 3000)
def test_scores_and_order_are_those_of_python(
    runner: asyncio.Runner,
    store: StorageBackend,
    contents: list[str],
    queries: list[str],
    size: int,
) -> None:
    async def compare() -> None:
        # Half of them share a time, so that equal scores are ordered by sequence as well.
        batch = [
            draft(f"m-{number}", content, timestamp=NOW + number // 2)
            for number, content in enumerate(contents)
        ]
        await store.bulk_save(batch, OnConflict.REPLACE)
        for query in queries:
            text = parse_query(query)
            if text is not None and text.condition is not None:
                assert await _ranked(store, text, size) == await _expected(store, text), query

    runner.run(compare())


async def _expected(store: StorageBackend, text: TextQuery) -> list[Ranked]:
    pages = await walk(store, Criteria(text))
    messages = [message for page in pages for message in page.messages]
    ranked = [Ranked(score(text, message.content), message) for message in messages]
    return sorted(ranked, key=lambda one: one.rank, reverse=True)


async def _ranked(store: StorageBackend, text: TextQuery, size: int) -> list[Ranked]:
    """Return all pages of the only window."""
    scan = RankedScan(COUNT, size)
    found: list[Ranked] = []
    while True:
        page = await store.search_ranked(Criteria(text), scan)
        assert page is not None
        found += page.found
        if not page.more:
            return found
        scan = scan._replace(bottom=page.bottom, after=found[-1].rank)
