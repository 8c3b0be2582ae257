from __future__ import annotations

import itertools
import string
from functools import cache

import pytest

from sagastore_server.search.parser import parse_query
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.canonical_json import canonical_object
from sagastore_server.storage.model import NewMessage, OnConflict
from sagastore_server.storage.query import Criteria, Not, Phrase, Scan, TextQuery
from tests.support.drafts import NOW, draft, found, save_all

TEXTS = {
    "fox": "The quick brown fox jumps over the lazy dog.",
    "foxes": "Foxes were JUMPING; quickly!",
    "cafe": "A Café in São Paulo, naïve and über",
    "snake": "call foo_bar(baz) from src/main.py, then foo bar",
    "version": "Rust v1.85.0 and Python 3.11",
    "mail": "write to jane.doe+tag@example.co.uk today",
    "han": "我们在北京学习中文",
    "kana": "カタカナとひらがな",
    "hangul": "서울에서 만나요",
    "thai": "สวัสดีครับ",
    "arabic": "مَرْحَبًا بالعالم",
    "hebrew": "שָׁלוֹם עולם",
    "hindi": "नमस्ते दुनिया",
    "russian": "Привет, мир! Ёлка",
    "emoji": "well done 👍🏽 🎉🎉 party",
    "stops": "to be or not to be",
    "words": "cats categories",
    "controls": "new\nline\ttab\x01x",
    "operators": "AND OR NOT NEAR and or",
    "full": "Ｆｕｌｌｗｉｄｔｈ ﬁne ²",
}

QUERIES = {
    "fox": ["fox", "foxes"],
    "FOXES": ["fox", "foxes"],
    "quick fox": ["fox", "foxes"],
    "fox quick": ["fox", "foxes"],
    '"quick fox"': [],
    '"quick brown fox"': ["fox"],
    '"brown quick"': [],
    '"the the"': [],
    "jump -lazy": ["foxes"],
    'fox -"lazy dog"': ["foxes"],
    'fox -"dog lazy"': ["fox", "foxes"],
    "fox OR party": ["emoji", "fox", "foxes"],
    "fox lazy OR party": ["emoji", "fox"],
    "fox -lazy OR party -done": ["foxes"],
    "qui*": ["fox", "foxes"],
    "jumpin*": ["foxes"],
    "cat*": ["words"],
    "categorie*": ["words"],
    "categori*": ["words"],
    "categor*": ["words"],
    "cats": ["words"],
    "-cat*": sorted(set(TEXTS) - {"words"}),
    "cafe": ["cafe"],
    "CAFÉ": ["cafe"],
    "cafe\u0301": ["cafe"],
    "naive uber sao": ["cafe"],
    "foo_bar": ["snake"],
    "foo-bar": ["snake"],
    "bar foo": ["snake"],
    "main.py": ["snake"],
    "py.main": [],
    "v1.85": ["version"],
    "v1.85.0": ["version"],
    "v1.8": [],
    "v1.8*": ["version"],
    "3.11": ["version"],
    "11.3": [],
    "jane.doe+tag@example.co.uk": ["mail"],
    "jane.doe": ["mail"],
    "doe.jane": [],
    "北京": ["han"],
    "京北": [],
    "学习 北京": ["han"],
    "中": ["han"],
    "中*": ["han"],
    "カタ": ["kana"],
    "ｶﾀｶﾅ": ["kana"],
    "ひら": ["kana"],
    "서울": ["hangul"],
    "울서": [],
    "만나*": ["hangul"],
    "สวัสดี": ["thai"],
    "مرحبا": ["arabic"],
    "بالعالم": ["arabic"],
    "שלום": ["hebrew"],
    "नमस्ते": ["hindi"],
    "ПРИВЕТ": ["russian"],
    "приве*": ["russian"],
    "ёлка": ["russian"],
    "👍": ["emoji"],
    "🎉": ["emoji"],
    "🎉🎉": ["emoji"],
    "🎉🎉🎉": [],
    "👍 -🎉": [],
    "to be": ["stops"],
    '"or not to"': ["stops"],
    "line": ["controls"],
    '"new line tab x"': ["controls"],
    "near": ["operators"],
    "NOT": ["operators", "stops"],
    "NEAR AND": ["operators"],
    "fullwidth fine 2": ["full"],
    "nothinglikethis": [],
    "-nothinglikethis": sorted(TEXTS),
    "-fox -party -the": sorted(set(TEXTS) - {"fox", "foxes", "emoji"}),
    "-fox OR dog": sorted(set(TEXTS) - {"foxes"}),
    "-fox -nothing OR -party": sorted(TEXTS),
    "fox -fox": [],
    "fox AND lazy": ["fox"],
    "fox and lazy": [],
    "fox AND (lazy OR jumping)": ["fox", "foxes"],
    "(fox OR party) AND (lazy OR done)": ["emoji", "fox"],
    "(fox OR party) -(lazy OR done)": ["foxes"],
    "(fox OR party)(lazy OR quickly)": ["fox", "foxes"],
    "fox NOT lazy": ["foxes"],
    "NOT fox NOT party NOT the": sorted(set(TEXTS) - {"fox", "foxes", "emoji"}),
    "NOT (fox OR party OR the)": sorted(set(TEXTS) - {"fox", "foxes", "emoji"}),
    "NOT (fox lazy)": sorted(set(TEXTS) - {"fox"}),
    "NOT NOT fox": ["fox", "foxes"],
    "NOT -fox": ["fox", "foxes"],
    "lazy OR NOT fox": sorted(set(TEXTS) - {"foxes"}),
    "lazy OR NOT (fox OR party)": sorted(set(TEXTS) - {"foxes", "emoji"}),
    'NOT "lazy dog" fox': ["foxes"],
    'NOT "quick fox" fox': ["fox", "foxes"],
    'fox NOT ("lazy dog" OR party)': ["foxes"],
    'fox ("brown fox" OR NOT lazy)': ["fox", "foxes"],
    'NOT ("lazy dog" OR "foxes were")': sorted(set(TEXTS) - {"fox", "foxes"}),
    '"lazy dog" OR NOT (fox OR "done 👍")': sorted(set(TEXTS) - {"foxes", "emoji"}),
    "NOT (qui* OR cat*)": sorted(set(TEXTS) - {"fox", "foxes", "words"}),
    "part* OR (jump* NOT lazy)": ["emoji", "foxes"],
    "fox OR party done OR lazy": ["emoji", "fox", "foxes"],
    "fox AND": [],
    "AND OR": ["operators"],
    "NOT to": sorted(set(TEXTS) - {"mail", "stops"}),
    "to NOT": ["stops"],
    "(fox": ["fox", "foxes"],
    "fox) OR (party": ["emoji", "fox", "foxes"],
    "foo_bar(baz)": ["snake"],
    "(foo_bar(baz) OR nothing) main": ["snake"],
    "NOT !!!": [],
    "fox NOT !!!": ["fox", "foxes"],
    "fox AND (!!! OR lazy)": ["fox"],
    "fox OR ()": ["fox", "foxes"],
    "!!!": [],
    "!!! OR fox": ["fox", "foxes"],
    "": sorted(TEXTS),
    "   ": sorted(TEXTS),
}


@pytest.fixture
async def library(backend: StorageBackend) -> StorageBackend:
    await save_all(backend, [draft(name, text) for name, text in TEXTS.items()])
    return backend


async def test_query_returns_expected_messages(library: StorageBackend) -> None:
    """One store for all queries, so that each must exclude the other messages."""
    wrong = {}
    for query, expected in QUERIES.items():
        answer = await found(library, query)
        assert answer == sorted(answer, key=list(TEXTS).index)
        if sorted(answer) != expected:
            wrong[query] = (answer, expected)
    assert wrong == {}


HOSTILE = [
    "'", '"', "''", '""', "';", "'; DROP TABLE messages; --", '" OR "1"="1', "a' OR 'a'='a",
    "*", "**", "-", "--", "-*", "- fox", "-- fox", "fox-", "(", ")", "()", "(fox", "fox)",
    "fox AND", "AND", "OR", "OR OR", "OR fox", "fox OR", "NOT", "NOT fox", "NEAR",
    "AND fox", "NOT NOT", "fox NOT", "fox AND OR dog", "-(fox", "-(", "NOT (", "((", ")) ((",
    "()()", "fox AND ()", "(fox OR", "(NOT) (OR)", "NOT(fox)", "fox)dog(", "-(-(fox", '("fox)"',
    '(")"', "NEAR(fox dog)",
    "NEAR(fox dog, 5)", "fox NEAR/3 dog", "stems:fox", "stems : fox", "{stems words} : fox",
    "facts:x", "-facts:x", "content:fox", "^fox", "fox + dog", "fox & dog", "fox | dog", "!fox",
    "fox <-> dog",
    "fox:*", "fox:*AB", "%", "_", "f_x", "f%", "?", "?1", ":a", "@a", "$1", "$$", "\\",
    "\\'", "\\x00", "\x01", "\x1f", "\x7f", "\n", "\t", "\r\n", "\ufeff", "\u200b", "\u2028",
    "fox\u0000dog".replace("\u0000", "\ufffd"), "\u0301", "\u202e fox", "\U0010ffff", "\ue000",
    '"fox', 'fox"', '"fox" "', '-"', '-""', '"*"', '"fox*"', '"fox"*', "fox**", "*fox", "f*x",
    "“fox”", "«fox»", "ﷺ", "ß", "İ", "ſ", "K", "½", "①", "🇩🇪", "👨‍👩‍👧‍👦", "e\u0301\u0301\u0301",
    "1e309", "0x41", "NULL", "null", "true", "{}", "[]", '{"a": 1}', "<script>", "../../etc/passwd",
]  # fmt: skip


async def test_malformed_query_is_not_an_error(library: StorageBackend) -> None:
    for query in HOSTILE:
        await found(library, query)
        await found(library, f"fox {query}")
        await found(library, f"{query} OR fox")
    assert len(await found(library, "")) == len(TEXTS)


LONG_QUERIES = [
    " ".join(f"word{number}" for number in range(10_000)),
    " OR ".join(f"w{number}" for number in range(10_000)),
    " ".join(f"-word{number}" for number in range(10_000)),
    " OR ".join(f"-word{number}" for number in range(5_000)),
    " ".join(f"w{number}*" for number in range(10_000)),
    "-" * 100_000,
    "(" * 100_000,
    '"' * 100_000,
    "a" * 100_000,
    "a" * 99_999 + "*",
    '"' + "a " * 49_999 + '"',
    "a OR " * 20_000,
    "a-" * 50_000,
    "-a-b OR " * 12_500,
    "中" * 100_000,
    "👍" * 100_000,
    "中 " * 50_000,
    "\U0001d400 " * 50_000,
    "x." * 50_000,
    "()" * 50_000,
    "NOT " * 25_000,
    "-(" * 33_000 + "a" + ")" * 33_000,
    "NOT (" * 16_000 + "fox" + ")" * 16_000,
    "a OR (b AND (" * 6_000 + "c" + ")" * 12_000,
    " AND ".join(f"(a{number} OR b{number})" for number in range(4_000)),
    " OR ".join(f"(a{number} -b{number})" for number in range(4_500)),
    " AND ".join(f"(NOT a{number} OR b{number})" for number in range(4_000)),
    " ".join(f'("a{number} b" OR -"c d{number}")' for number in range(3_500)),
    " ".join(f'-("a{number} b" c{number}*)' for number in range(4_500)),
    " ".join(
        itertools.islice(map("".join, itertools.product(string.ascii_lowercase, repeat=3)), 17_576)
    ),
]

parsed = cache(parse_query)
"""Parsing them takes longer than the searches; every kind of backend gets the same."""


async def test_long_queries_are_not_errors(
    library: StorageBackend, subtests: pytest.Subtests
) -> None:
    for number, query in enumerate(LONG_QUERIES):
        with subtests.test(number=number):
            assert len(query) <= 100_000
            page = await library.search(Criteria(parsed(query)), Scan(True, 50))
            assert len(page.messages) <= 50


async def test_long_query_matches_all_words(backend: StorageBackend) -> None:
    words = [f"word{number}" for number in range(1500)]
    text = " ".join(words)
    await save_all(backend, [draft("all", text), draft("most", " ".join(words[:-1]))])
    assert await found(backend, text) == ["all"]
    assert await found(backend, " OR ".join(words)) == ["all", "most"]
    assert await found(backend, f'"{text}"') == ["all"]
    assert await found(backend, "word1 " + " ".join(f"-{word}" for word in words[-500:])) == []


async def test_query_without_condition_matches_nothing(library: StorageBackend) -> None:
    assert await found(library, Criteria(TextQuery(None))) == []
    assert await found(library, Criteria(TextQuery(None), session_id="s-1")) == []


async def test_negation_of_absent_word_matches_everything(library: StorageBackend) -> None:
    anything = TextQuery(Not(Phrase(("nothinglikethis",))))
    assert len(await found(library, Criteria(anything))) == len(TEXTS)


async def test_long_word_is_found_by_prefix(backend: StorageBackend) -> None:
    await save_all(backend, [draft("long", "x" * 5000), draft("han", "中" * 5000)])
    assert await found(backend, "x" * 5000) == ["long"]
    assert await found(backend, "x" * 50 + "*") == ["long"]
    assert await found(backend, "中" * 4000) == ["han"]
    assert await found(backend, "中" * 5001) == []


async def test_index_reflects_every_change(backend: StorageBackend) -> None:
    async def matching() -> list[list[str]]:
        tags = await found(backend, Criteria(tags=("t",)))
        metadata = await found(backend, Criteria(metadata='{"k": 1}'))
        return [await found(backend, "alpha"), await found(backend, "beta"), tags, metadata]

    one = draft("m", "alpha", tags=("t",), metadata='{"k": 1}')
    steps: list[tuple[NewMessage | None, list[list[str]]]] = [
        (one, [["m"], [], ["m"], ["m"]]),
        (one._replace(content="beta"), [[], ["m"], ["m"], ["m"]]),
        (one._replace(content="beta", tags=()), [[], ["m"], [], ["m"]]),
        (one._replace(content="beta", tags=(), metadata="{}"), [[], ["m"], [], []]),
        (one._replace(provider="other"), [["m"], [], ["m"], ["m"]]),
        (None, [[], [], [], []]),
        (one._replace(content="alpha beta"), [["m"], ["m"], ["m"], ["m"]]),
        (None, [[], [], [], []]),
    ]
    for step, expected in steps:
        if step is None:
            await backend.delete("m")
        else:
            await backend.save(step)
        assert await matching() == expected
    for step, expected in steps:
        if step is None:
            await backend.delete("m")
        else:
            await backend.bulk_save([step], OnConflict.REPLACE)
        assert await matching() == expected


async def test_each_criterion_filters(backend: StorageBackend) -> None:
    base = draft("base", "word")
    variants = [
        base,
        base._replace(id="provider", provider="Anthropic"),
        base._replace(id="role", role="assistant"),
        base._replace(id="session", session_id=None),
        base._replace(id="empty", session_id=""),
        base._replace(id="time", timestamp=NOW + 10),
    ]
    await save_all(backend, variants)
    everything = {one.id for one in variants}

    async def missing(criteria: Criteria) -> set[str]:
        with_text = criteria._replace(text=parse_query("word"))
        answer = await found(backend, criteria)
        assert answer == await found(backend, with_text)
        return everything - set(answer)

    assert await missing(Criteria()) == set()
    assert await missing(Criteria(provider="anthropic")) == {"provider"}
    assert await missing(Criteria(role="user")) == {"role"}
    assert await missing(Criteria(session_id="s-1")) == {"session", "empty"}
    assert await missing(Criteria(session_id="")) == everything - {"empty"}
    assert await missing(Criteria(start=NOW)) == set()
    assert await missing(Criteria(start=NOW + 1)) == everything - {"time"}
    assert await missing(Criteria(start=NOW + 10)) == everything - {"time"}
    assert await missing(Criteria(end=NOW + 10)) == {"time"}
    assert await missing(Criteria(end=NOW + 11)) == set()
    assert await missing(Criteria(start=NOW, end=NOW)) == everything
    assert await missing(Criteria(start=NOW + 5, end=NOW)) == everything
    assert await missing(Criteria(provider="a' OR 1=1")) == everything
    assert await missing(Criteria(provider="ANTHROPIC")) == everything


async def test_criteria_are_combined_with_and(backend: StorageBackend) -> None:
    base = draft("base", "word", tags=("t", "u"), metadata='{"k": 1}')
    variants = [
        base._replace(id="base2"),
        base._replace(id="text", content="other"),
        base._replace(id="tags", tags=("t",)),
        base._replace(id="provider", provider="google"),
        base._replace(id="role", role="system"),
        base._replace(id="session", session_id="s-2"),
        base._replace(id="early", timestamp=NOW - 1),
        base._replace(id="late", timestamp=NOW + 1),
        base._replace(id="metadata", metadata='{"k": 2}'),
    ]
    await save_all(backend, [base, *variants])
    criteria = Criteria(
        parse_query("word"), ("u", "t"), "anthropic", "user", "s-1", NOW, NOW + 1, '{"k": 1}'
    )
    assert await found(backend, criteria) == ["base", "base2"]
    newest = await backend.search(criteria, Scan(True, 1))
    assert ([message.id for message in newest.messages], newest.more) == (["base2"], True)
    negative = criteria._replace(text=parse_query("-word"))
    assert await found(backend, negative) == ["text"]


async def test_tags_criterion(backend: StorageBackend) -> None:
    await save_all(
        backend,
        [
            draft("none"),
            draft("ab", tags=("a", "b")),
            draft("ba", tags=("b", "a", "b")),
            draft("a", tags=("a",)),
            draft("odd", tags=("a b", 'q"', "back\\slash", "ü", "u\u0308", "😀", "[]", "1", "A")),
        ],
    )
    for tags, expected in {
        (): ["none", "ab", "ba", "a", "odd"],
        ("a",): ["ab", "ba", "a"],
        ("a", "b"): ["ab", "ba"],
        ("b", "a", "b"): ["ab", "ba"],
        ("A",): ["odd"],
        ("a b",): ["odd"],
        ("u\u0308",): ["odd"],
        ("U\u0308",): [],
        ('q"', "back\\slash", "ü", "😀", "[]", "1"): ["odd"],
        ("1.0",): [],
        ("a", "c"): [],
        ("*",): [],
        ("",): [],
    }.items():
        assert await found(backend, Criteria(tags=tags)) == expected, tags


CONTAINMENT = [
    # Whether the left contains the right; PostgreSQL 18 agrees (test_canonical_json.py).
    ("{}", "{}", True),
    ('{"a": 1}', "{}", True),
    ("{}", '{"a": 1}', False),
    ('{"a": 1}', '{"a": 1.0}', True),
    ('{"a": 1.50}', '{"a": 1.5}', True),
    ('{"a": 100}', '{"a": 1e2}', True),
    ('{"a": 0}', '{"a": -0.00}', True),
    ('{"a": 12345678901234567890123}', '{"a": 12345678901234567890124}', False),
    ('{"a": 0.1}', '{"a": 0.1000000000000000055}', False),
    ('{"a": 1}', '{"a": "1"}', False),
    ('{"a": 1}', '{"a": true}', False),
    ('{"a": 0}', '{"a": false}', False),
    ('{"a": null}', '{"a": null}', True),
    ('{"a": null}', '{"a": "null"}', False),
    ('{"b": 1}', '{"a": null}', False),
    ('{"a": true}', '{"a": "true"}', False),
    ('{"a": "x"}', '{"a": "X"}', False),
    ('{"a": "\u00e4"}', '{"a": "a\u0308"}', False),
    ('{"A": 1}', '{"a": 1}', False),
    ('{"a": {"b": 1, "c": 2}}', '{"a": {"b": 1}}', True),
    ('{"a": {"b": {"c": {"d": [1, {"e": 2}]}}}}', '{"a": {"b": {"c": {"d": [{"e": 2}]}}}}', True),
    ('{"a": {"b": 1}}', '{"b": 1}', False),
    ('{"a": {"b": 1}}', '{"a": {}}', True),
    ('{"a": 1}', '{"a": {}}', False),
    ('{"a": []}', '{"a": {}}', False),
    ('{"a": [1]}', '{"a": []}', True),
    ('{"a": 1}', '{"a": []}', False),
    ('{"a": [1, 2, 3]}', '{"a": [3, 1]}', True),
    ('{"a": [1, 2, 3]}', '{"a": [1, 1, 1]}', True),
    ('{"a": [1, 2]}', '{"a": [1, 4]}', False),
    ('{"a": [1, 2]}', '{"a": 1}', False),
    ('{"a": 1}', '{"a": [1]}', False),
    ('{"a": [[1, 2], [3]]}', '{"a": [[2], [3]]}', True),
    ('{"a": [[1, 2], [3]]}', '{"a": [[1, 3]]}', False),
    ('{"a": [[1]]}', '{"a": [1]}', False),
    ('{"a": [{"x": 1, "y": 2}]}', '{"a": [{"y": 2}]}', True),
    ('{"a": [{"x": 1}, {"y": 2}]}', '{"a": [{"x": 1, "y": 2}]}', False),
    ('{"a": [{"x": 1}, {"y": 2}]}', '{"a": [{"x": 1}, {"y": 2}, {}]}', True),
    ('{"a b": {"c\\"d": "e\\\\f\\n"}}', '{"a b": {"c\\"d": "e\\\\f\\n"}}', True),
    ('{"": {"": ""}}', '{"": {"": ""}}', True),
    ('{"😀": "😀"}', '{"😀": "😀"}', True),
]


async def test_metadata_criterion(backend: StorageBackend) -> None:
    canonical = [tuple(map(canonical_object, pair[:2])) for pair in CONTAINMENT]
    values = sorted({text for pair in canonical for text in pair})
    await save_all(
        backend, [draft(f"m-{at:03}", metadata=value) for at, value in enumerate(values)]
    )
    for (value, part), (_, _, expected) in zip(canonical, CONTAINMENT, strict=True):
        answer = await found(backend, Criteria(metadata=part))
        assert (f"m-{values.index(value):03}" in answer) is expected, (value, part)


async def test_metadata_criterion_with_many_values(backend: StorageBackend) -> None:
    many = ", ".join(f'"k{number:05}": {number}' for number in range(2000))
    items = ", ".join(str(number) for number in range(2000))
    await save_all(
        backend,
        [
            draft("many", metadata=canonical_object(f"{{{many}}}")),
            draft("items", metadata=canonical_object(f'{{"items": [{items}]}}')),
            draft("few", metadata='{"k01999": 1999}'),
            draft("other", metadata='{"k01999": 5000}'),
        ],
    )
    for part, expected in {
        '{"k01999": 1999}': ["many", "few"],
        '{"k01999": 5000}': ["other"],
        '{"items": [1999]}': ["items"],
        '{"items": [5000]}': [],
        canonical_object(f"{{{many}}}"): ["many"],
        canonical_object(f'{{"items": [{items}]}}'): ["items"],
    }.items():
        assert await found(backend, Criteria(metadata=part)) == expected
    assert await found(backend, Criteria(metadata='{"k00001": 1}', tags=("t",))) == []
