"""Borders of words in search, on every backend."""

from __future__ import annotations

import pytest
import unicodedata2

from sagastore_server.search.pager import Order, search_page
from sagastore_server.search.parser import parse_query
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.query import Criteria
from tests.support.drafts import draft, found, save_all

CONTENTS = {
    "caret": "$E = mc^2$ — a note",
    "backtick": "word`word2` ‹x›",
    "warning": "⚠️Warning: disk full",
    "keycap": "1️⃣ Primer",
    "trademark": "Acme™ sells Gizmo™",
    "footnote": "see the statement¹ and proof²",
    "half": "2½cups",
    "apostrophes": "don't don’t donʼt",
    "polish": "Łódź, Ørsted, Straße",
    "arabic": "العدد ٣٤٥",
    "cpp": "C++17 and C#",
    "version": "released v1.2.3",
    "plain-version": "released 1.2.3",
    "number": "1,234,567 rows",
    "mail": "an e-mail",
    "family": "the 👨\u200d👩\u200d👧 family",
    "hyphen": "soft\u00adhyphen",
}
QUERIES: dict[str, list[str]] = {
    "mc^2": ["caret"],
    "mc": ["caret"],
    "E = mc^2": ["caret"],
    "word": ["backtick"],
    "word2": ["backtick"],
    "warning": ["warning"],
    "⚠️": ["warning"],
    "⚠": ["warning"],
    "primer": ["keycap"],
    "1️⃣ primer": ["keycap"],
    "acme": ["trademark"],
    "Gizmo™": ["trademark"],
    "acmetm": [],
    "statement": ["footnote"],
    "proof": ["footnote"],
    "statement1": [],
    "cups": ["half"],
    "don't": ["apostrophes"],
    "donʼt": ["apostrophes"],
    "dont": [],
    "lodz orsted strasse": ["polish"],
    "łódź ørsted STRASSE": ["polish"],
    "345": ["arabic"],
    "۳۴۵": ["arabic"],
    "C++": ["cpp"],
    "C#": ["cpp"],
    "c": ["cpp"],
    "v1.2.3": ["version"],
    "1.2.3": ["plain-version"],
    "2.3": ["plain-version", "version"],
    "1,234,567": ["number"],
    "1.234.567": ["number"],
    "1234567": [],
    "e-mail": ["mail"],
    "e mail": ["mail"],
    "email": [],
    "👩": ["family"],
    "soft\u00adhyphen": ["hyphen"],
    '"soft hyphen"': ["hyphen"],
}
BORDERS = [
    char
    for number, char in enumerate(
        char
        for char in map(chr, range(1, 0x20000))
        if unicodedata2.category(char) != "Nd" and unicodedata2.category(char)[0] not in "CLM"
    )
    if char.isascii() or number % 40 == 0
]


@pytest.fixture(autouse=True)
async def messages(backend: StorageBackend) -> None:
    await save_all(backend, [draft(key, content) for key, content in CONTENTS.items()])


async def test_queries_find_words_beside_symbols(backend: StorageBackend) -> None:
    told = {query: sorted(await found(backend, query)) for query in QUERIES}
    assert told == QUERIES


async def test_marks_have_whole_characters(backend: StorageBackend) -> None:
    for query, expected in (
        ("👩", "the \x02👨‍👩‍👧\x03 family"),
        ("warning", "⚠️\x02Warning\x03: disk full"),
    ):
        criteria = Criteria(parse_query(query))
        ((hit,), _) = await search_page(backend, criteria, Order.RELEVANCE, 5, None)
        assert hit.snippet == expected


async def test_words_on_both_sides_of_any_symbol_are_found(backend: StorageBackend) -> None:
    drafts = [
        draft(f"{ord(char):05x}{end}", f"lorem{char}ipsum{end}")
        for char in BORDERS
        for end in ("", " é")
    ]
    await save_all(backend, drafts)
    ids = sorted(one.id for one in drafts)
    assert sorted(await found(backend, "lorem")) == ids
    assert sorted(await found(backend, "ipsum")) == ids
