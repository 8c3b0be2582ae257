from __future__ import annotations

import contextlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.search import pager
from sagastore_server.search.pager import Cursor, InvalidCursorError, Order, search_page
from sagastore_server.search.parser import parse_query
from sagastore_server.search.ranking import score
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.limits import MAX_PAGE_BYTES
from sagastore_server.storage.model import Message, NewMessage
from sagastore_server.storage.query import Criteria, Hit
from tests.support.drafts import NOW, draft, save_all
from tests.support.memory import MemoryState, MemoryStorage
from tests.support.reference_search import place
from tests.support.strategies import storable_text

WORDS = Criteria(parse_query("fox OR dog"))


def _drafts(count: int, seed: int = 1) -> list[NewMessage]:
    chance = random.Random(seed)
    vocabulary = ["fox", "dog", "cat", "bird"]
    return [
        draft(
            f"m-{number:03}",
            " ".join(chance.choices(vocabulary, k=chance.randrange(1, 12))),
            timestamp=NOW + chance.randrange(count // 2),
        )
        for number in range(count)
    ]


@pytest.fixture
async def memory() -> MemoryStorage:
    storage = MemoryStorage(MemoryState())
    await storage.open()
    return storage


async def _walk(
    backend: StorageBackend, criteria: Criteria, order: Order, chance: random.Random
) -> list[Hit]:
    """Collect all pages, each of another size, with cursors that went through JSON."""
    hits: list[Hit] = []
    cursor: Cursor | None = None
    while True:
        size = chance.randrange(1, 9)
        page, cursor = await search_page(backend, criteria, order, size, cursor)
        hits += page
        assert len(page) <= size
        if cursor is None:
            return hits
        assert len(page) == size
        cursor = tuple(json.loads(json.dumps(cursor)))


def _ids(hits: list[Hit]) -> list[str]:
    return [hit.message.id for hit in hits]


def _matching(messages: list[Message]) -> list[Message]:
    found = [one for one in messages if {"fox", "dog"} & set(one.content.split())]
    return sorted(found, key=place, reverse=True)


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("criteria", [WORDS, Criteria()], ids=["words", "filters"])
@pytest.mark.parametrize("window", [1, 3, 10, 500])
async def test_pages_of_any_size_make_one_sequence(
    memory: MemoryStorage,
    monkeypatch: pytest.MonkeyPatch,
    order: Order,
    criteria: Criteria,
    window: int,
) -> None:
    monkeypatch.setattr(pager, "WINDOW", window)
    await save_all(memory, _drafts(60))
    whole, cursor = await search_page(memory, criteria, order, 500, None)
    assert cursor is None
    assert len(set(_ids(whole))) == len(whole)
    for seed in range(5):
        assert await _walk(memory, criteria, order, random.Random(seed)) == whole


async def test_chronological_orders(memory: MemoryStorage) -> None:
    await save_all(memory, _drafts(60))
    everything = list((await memory.batch_get([f"m-{n:03}" for n in range(60)])).values())
    expected = [one.id for one in _matching(everything)]
    newest, _ = await search_page(memory, WORDS, Order.NEWEST, 500, None)
    oldest, _ = await search_page(memory, WORDS, Order.OLDEST, 500, None)
    assert _ids(newest) == expected
    assert _ids(oldest) == expected[::-1]
    assert all(hit.score == score(WORDS.text, hit.message.content) for hit in newest)  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [1, 4, 7, 500])
async def test_relevance_ranks_within_windows(
    memory: MemoryStorage, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(pager, "WINDOW", window)
    await save_all(memory, _drafts(60))
    everything = list((await memory.batch_get([f"m-{n:03}" for n in range(60)])).values())
    matching = _matching(everything)
    assert WORDS.text is not None
    expected: list[tuple[float, Message]] = []
    for start in range(0, len(matching), window):
        ranked = [(score(WORDS.text, one.content), one) for one in matching[start : start + window]]
        expected += sorted(ranked, key=lambda rank: (rank[0], place(rank[1])), reverse=True)
    hits, _ = await search_page(memory, WORDS, Order.RELEVANCE, 500, None)
    assert [(hit.score, hit.message) for hit in hits] == expected


async def test_relevance_without_words_is_newest_first(memory: MemoryStorage) -> None:
    await save_all(memory, _drafts(20))
    relevance = await search_page(memory, Criteria(), Order.RELEVANCE, 7, None)
    assert relevance == await search_page(memory, Criteria(), Order.NEWEST, 7, None)
    assert all(hit.score == 0.0 for hit in relevance[0])


async def test_a_query_without_terms_finds_nothing(memory: MemoryStorage) -> None:
    await save_all(memory, _drafts(5))
    for order in Order:
        nothing = Criteria(parse_query("!!!"))
        assert await search_page(memory, nothing, order, 10, None) == ([], None)


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("window", [3, 10, 500])
async def test_pages_are_stable_while_others_write(
    memory: MemoryStorage, monkeypatch: pytest.MonkeyPatch, order: Order, window: int
) -> None:
    """What is there throughout comes exactly once, in its order."""
    monkeypatch.setattr(pager, "WINDOW", window)
    for seed in range(10):
        chance = random.Random(seed)
        prefix = f"{seed}-"
        drafts = [one._replace(id=prefix + one.id, session_id=prefix) for one in _drafts(60, seed)]
        await save_all(memory, drafts)
        criteria = WORDS._replace(session_id=prefix)
        before, _ = await search_page(memory, criteria, order, 500, None)
        going = {one.id for one in chance.sample(drafts, 20)}
        staying = [one for one in _ids(before) if one not in going]
        deletable = sorted(going)
        hits: list[Hit] = []
        cursor: Cursor | None = None
        while True:
            page, cursor = await search_page(
                memory, criteria, order, chance.randrange(1, 6), cursor
            )
            hits += page
            if cursor is None:
                break
            for _ in range(chance.randrange(3)):
                if deletable:
                    await memory.delete(deletable.pop(chance.randrange(len(deletable))))
            for _ in range(chance.randrange(4)):
                new = f"{prefix}new-{chance.randrange(10**9)}"
                content = " ".join(["fox"] * chance.randrange(1, 20))
                when = NOW + chance.randrange(-5, 40)
                await memory.save(draft(new, content, timestamp=when, session_id=prefix))
        seen = _ids(hits)
        assert len(set(seen)) == len(seen)
        kept = [one for one in seen if one in set(staying)]
        assert sorted(kept) == sorted(staying)
        if order is not Order.RELEVANCE or window == 500:
            assert kept == staying


async def test_a_page_of_ranked_large_messages_ends_early(memory: MemoryStorage) -> None:
    content = "fox " + "\xe9" * 90_000
    await save_all(memory, [draft(f"m-{number:02}", content) for number in range(20)])
    seen: list[str] = []
    cursor: Cursor | None = None
    while True:
        page, cursor = await search_page(memory, WORDS, Order.RELEVANCE, 20, cursor)
        assert page
        assert sum(hit.message.size for hit in page) <= MAX_PAGE_BYTES
        seen += _ids(page)
        if cursor is None:
            break
    assert seen == [f"m-{number:02}" for number in reversed(range(20))]


GARBAGE: list[tuple[object, ...]] = [
    (),
    (1,),
    ("1", 2),
    (1, "a"),
    (None, None),
    (1.5, 2),
    (1, 2, 3),
    (1, 2, None, None, "0", None, None),
    (1, None, None, None, 0.0, None, None),
    (None, 2, None, None, 0.0, None, None),
    (None, None, 1, None, 0.0, None, None),
    (None, None, None, None, 0.0, 1, None),
    (None, None, None, None, 0.0, 1, "a"),
    (None, None, None, None, None, None, None),
    ([1], 2),
    ({}, {}, {}, {}, {}, {}, {}),
    (True, 1, 2, 3, 0.5, 1, ["c"]),
]


@pytest.mark.parametrize("cursor", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize("order", Order)
async def test_garbage_cursors_are_refused(
    memory: MemoryStorage, order: Order, cursor: tuple[object, ...]
) -> None:
    await save_all(memory, _drafts(5))
    with pytest.raises(InvalidCursorError):
        await search_page(memory, WORDS, order, 10, cursor)  # type: ignore[arg-type]


@given(
    st.lists(
        st.none() | st.booleans() | st.integers() | st.floats() | storable_text, max_size=8
    ).map(tuple)
)
async def test_any_cursor_is_taken_or_refused(cursor: Cursor) -> None:
    memory = MemoryStorage(MemoryState())
    await memory.open()
    await save_all(memory, _drafts(3))
    for order in Order:
        with contextlib.suppress(InvalidCursorError):
            await search_page(memory, WORDS, order, 2, cursor)
