"""Messages of the maximum size, and the bound of the index: every write succeeds, and every
backend finds the same."""

from __future__ import annotations

import pytest

from sagastore_server.search.analysis import tokenize
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.model import OnConflict
from sagastore_server.storage.query import Criteria, Scan
from sagastore_server.storage.validation import MAX_CONTENT
from tests.support.backends import KINDS
from tests.support.drafts import draft, found, save_all
from tests.support.hostile_texts import BEYOND, LAST, WITHIN

TEXTS = WITHIN | BEYOND
SOME = {"prose", "han", "stemmed words"}
"""Texts for the kinds that are compositions of the two stores."""
CASES = [
    (kind, name)
    for kind in sorted(KINDS)
    for name in TEXTS
    if kind in {"sqlite", "postgresql", "memory"} or name in SOME
]


@pytest.mark.parametrize(("kind", "name"), CASES, indirect=["kind"])
async def test_bound_of_index_is_the_same(backend: StorageBackend, name: str) -> None:
    text = TEXTS[name]()
    assert len(text) == MAX_CONTENT
    await backend.save(draft("large", text))
    assert (await backend.get("large")).content == text
    tokens = tokenize(text)
    if tokens[-1] == LAST:
        assert name in WITHIN
        assert await found(backend, LAST) == ["large"]
        assert await found(backend, f'"{" ".join(tokens[-2:])}"') == ["large"]
    else:
        assert name in BEYOND
        assert await found(backend, LAST) == []
        assert await found(backend, f"{LAST[:3]}*") == []
        assert await found(backend, f"-{LAST}") == ["large"]
        # The last words that are indexed, alone, as a phrase and by prefix.
        assert await found(backend, tokens[-1]) == ["large"]
        assert await found(backend, " ".join(tokens[-2:])) == ["large"]
        if not tokens[-1].isascii():
            assert await found(backend, f'"{tokens[-2]} {tokens[-1]}"') == ["large"]
    # The index names what it removes: a wrong term would damage it.
    await backend.save(draft("large", "small now"))
    assert await found(backend, "small") == ["large"]
    assert await found(backend, tokens[-1]) == []


async def test_content_without_text_is_served(backend: StorageBackend) -> None:
    calls = '{"tool_calls": [{"name": "find"}]}'
    await save_all(
        backend,
        [draft("empty", "", metadata=calls), draft("blank", " \n\u2003"), draft("word", "fox")],
    )
    assert (await backend.get("empty")).content == ""
    assert (await backend.get("blank")).content == " \n\u2003"
    assert await found(backend, "fox") == ["word"]
    assert await found(backend, "-fox") == ["empty", "blank"]
    assert await found(backend, Criteria(metadata=calls)) == ["empty"]
    await backend.save(draft("word", ""))
    assert await found(backend, "fox") == []
    assert (await backend.save(draft("word", ""))).created is False
    page = await backend.list_session("s-1", Scan(False, 10))
    assert [message.id for message in page.messages] == ["empty", "blank", "word"]


LARGE_METADATA = {
    "text": '{"k": "' + "é" * 524_200 + '"}',
    "keys": "{" + ", ".join(f'"{number:06}": {number}' for number in range(50_000)) + "}",
    "numbers": '{"k": [' + ", ".join(["1.5"] * 200_000) + "]}",
}


@pytest.mark.parametrize("name", LARGE_METADATA)
async def test_largest_metadata_is_found(backend: StorageBackend, name: str) -> None:
    metadata = LARGE_METADATA[name]
    await save_all(backend, [draft("large", metadata=metadata), draft("small")])
    assert (await backend.get("large")).metadata == metadata
    assert await found(backend, Criteria(metadata=metadata)) == ["large"]
    part = {"keys": '{"049999": 49999}', "numbers": '{"k": [1.50]}'}.get(name, metadata)
    assert await found(backend, Criteria(metadata=part)) == ["large"]
    assert await found(backend, Criteria(metadata='{"k": ["x"]}')) == []


async def test_batch_of_large_messages_is_stored(backend: StorageBackend) -> None:
    text = WITHIN["hexadecimal"]()
    drafts = [draft(f"m-{number}", f"n{number} {text}"[:MAX_CONTENT]) for number in range(3)]
    assert await backend.bulk_save(drafts, OnConflict.REPLACE) == (3, 0, 0)
    assert await backend.bulk_save(drafts, OnConflict.REPLACE) == (0, 3, 0)
    assert await found(backend, "n1") == ["m-1"]
    assert await found(backend, f"{1000:012x}") == ["m-0", "m-1", "m-2"]
    await backend.delete("m-1")
    assert await found(backend, "n1") == []
    assert await found(backend, f"{1000:012x}") == ["m-0", "m-2"]
