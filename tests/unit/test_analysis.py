from __future__ import annotations

import itertools
import re
import sqlite3
import string
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagastore_server.search import analysis, folding
from sagastore_server.search.analysis import (
    MAX_DISTINCT_BYTES,
    MAX_TERM,
    MAX_TERMS,
    analyze,
    located,
    stem,
    tokenize,
)
from tests.support.hostile_texts import BEYOND, LAST, WITHIN
from tests.support.strategies import storable_text

TEXTS = [
    "The quick brown fox, jumping over 3 lazy dogs!",
    "Café naïve Ünïcödé Straße STRASSE ﬁne ²³",
    "foo_bar v1.85.0 jane.doe+tag@example.co.uk src/main.py C++ don't",
    "我们在北京 カタカナ ｶﾀｶﾅ ひらがな 서울 สวัสดี ລາວ ខ្មែរ မြန်မာ",
    "مَرْحَبًا שָׁלוֹם नमस्ते தமிழ் Привет Ёлка ὀδυσσεύς",
    "👍🏽 🎉🎉 👨‍👩‍👧 🇩🇪 ♥ ☃ ©",
    "a" * 300 + " " + "é" * 300,
]

scripts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
    | st.sampled_from("aAéÉßſİı\u0301\u0308\u093c\u0640\u200d\ufe0fﬁ½ⅷ①ｶﾞ㌀㍿北あア서👍🏽☃ΑΆς"),
    max_size=40,
)


@given(scripts)
def test_terms_hold_what_the_index_keeps_together(text: str) -> None:
    """FTS5's ``ascii`` tokenizer splits at every ASCII character but [A-Za-z0-9]."""
    terms = analyze(text)
    assert analyze(text) == terms
    for term in (*terms.stems, *terms.words, *tokenize(text)):
        assert 1 <= len(term) <= MAX_TERM
        strange = {char for char in term if char.isascii()} - set(
            string.digits + string.ascii_lowercase
        )
        assert not strange
        assert not any(char.isspace() for char in term)
        assert "\x00" not in term


@given(st.lists(scripts, max_size=5))
def test_the_index_has_exactly_the_terms(texts: list[str]) -> None:
    """What is put into FTS5 comes out as the same terms at the same places."""
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE VIRTUAL TABLE t USING fts5 (stems, tokenize = 'ascii')")
        connection.execute("CREATE VIRTUAL TABLE v USING fts5vocab (t, instance)")
        for number, text in enumerate(texts):
            connection.execute(
                "INSERT INTO t (rowid, stems) VALUES (?, ?)",
                (number, " ".join(analyze(text).stems)),
            )
        rows = connection.execute('SELECT term FROM v ORDER BY doc, "offset"').fetchall()
    connection.close()
    assert [row[0] for row in rows] == [term for text in texts for term in analyze(text).stems]


@given(scripts)
def test_words_are_the_terms_whose_stem_differs(text: str) -> None:
    tokens = tokenize(text)
    terms = analyze(text)
    assert terms.stems == [stem(token) for token in tokens]
    assert terms.words == list(dict.fromkeys(one for one in tokens if stem(one) != one))


@given(scripts)
def test_folding_is_stable(text: str) -> None:
    """A term, analysed again, is itself: what is shown can be searched."""
    tokens = tokenize(text)
    assert tokenize(" ".join(tokens)) == tokens


@given(scripts)
def test_case_and_form_do_not_matter(text: str) -> None:
    for form in ("NFC", "NFD"):
        assert tokenize(unicodedata.normalize(form, text)) == tokenize(text)


@given(st.text(string.ascii_letters + string.digits + " .,_-'"))
def test_ascii_is_analysed_like_any_text(text: str) -> None:
    """There is a short way for ASCII; it must not lead elsewhere."""
    assert tokenize(text + " é")[:-1] == tokenize(text)
    assert tokenize(text) == re.findall("[a-z0-9]+", text.lower())


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_located_tokens_are_those_of_the_text(text: str) -> None:
    assert located(text)[0] == tokenize(text)


@given(st.text(string.ascii_letters + string.digits + " .,_-'") | st.just("a" * (MAX_TERM + 1)))
def test_each_token_of_ascii_stands_where_it_is_told(text: str) -> None:
    tokens, places = located(text)
    assert tokens == tokenize(text)
    for token, (start, end) in zip(tokens, places, strict=True):
        assert text[start:end].lower()[:MAX_TERM] == token


@given(storable_text)
def test_tokens_stand_within_the_text(text: str) -> None:
    last = (0, 0)
    tokens, places = located(text)
    for _, (start, end) in zip(tokens, places, strict=True):
        assert (start, end) == last or last[1] <= start < end <= len(text)
        last = (start, end)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        (" \t\n", []),
        ("...!?", []),
        ("Hello, World", ["hello", "world"]),
        ("foo_bar", ["foo", "bar"]),
        ("v1.85", ["v1", "85"]),
        ("don't", ["don", "t"]),
        ("C++", ["c"]),
        ("Café", ["cafe"]),
        ("CAFE\u0301", ["cafe"]),
        ("Straße", ["strasse"]),
        ("ﬁne", ["fine"]),
        ("Ｆｕｌｌ", ["full"]),
        ("北京", ["北", "京"]),
        ("a北b", ["a", "北", "b"]),
        ("서울", ["서", "울"]),
        ("ｶ", ["カ"]),
        ("👍", ["👍"]),
        ("ok👍ok", ["ok", "👍", "ok"]),
        ("مَرْحَبًا", ["مرحبا"]),
        ("שָׁלוֹם", ["שלום"]),
        ("Ёлка", ["елка"]),
        ("x" * 101, ["x" * 100]),
    ],
)
def test_examples(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("running", "run"),
        ("runs", "run"),
        ("categories", "categori"),
        ("the", "the"),
        ("as", "as"),
        ("42", "42"),
        ("v1s", "v1s"),
        ("елка", "елка"),
    ],
)
def test_stems(word: str, expected: str) -> None:
    assert stem(word) == expected


PIECES = ["a" * 900, "é" * 4000, "\u0928" + "\u093c" * 29, "\u0301" * 20, "北京" * 2500, " ", "-"]
PIECES += ["word ", "ωρα ", "👍🏽", "서울", "ｶﾞ", "é, " * 1500]
JOINING = ["ﬁ", "\u1100\u1161\u11a8", "\ufdfa"]
"""What folding joins, or divides."""
pieces = st.sampled_from(PIECES + JOINING)
long_texts = st.lists(pieces, max_size=12).map("".join)


@settings(max_examples=60, deadline=None)
@given(long_texts)
def test_pieces_have_the_tokens_of_the_text(text: str) -> None:
    """Unless a word or a row of marks is longer than a piece, dividing a text changes nothing."""
    ends = list(analysis._piece_ends(text))
    assert ends == sorted(set(ends))
    assert ends[-1:] == ([len(text)] if text else [])
    for at, start in enumerate([0, *ends[:-1]]):
        assert list(analysis._piece_ends(text, start)) == ends[at:]
    if not re.search("[^ ,-]{12000}|[\u0301\u093c]{30}", text):
        folded = folding.fold(text).split()
        assert tokenize(text) == [token[:MAX_TERM] for token in folded]


@settings(max_examples=60, deadline=None)
@given(long_texts, st.integers(0, 20_000))
def test_places_of_long_texts_are_those_of_their_tokens(text: str, start: int) -> None:
    tokens, places = located(text)
    found = list(places)
    assert len(found) == len(tokens)
    first, rest = places.near(start)
    assert first <= start
    assert list(rest)[: len(tokens)] == found[first:]
    for token, (begin, end) in itertools.islice(zip(tokens, found, strict=True), 200):
        assert 0 <= begin < end <= len(text)
        assert token in tokenize(text[begin:end]) or any(joining in text for joining in JOINING)


@pytest.mark.parametrize("name", WITHIN)
def test_hostile_text_within_bounds_keeps_every_term(name: str) -> None:
    assert tokenize(WITHIN[name]())[-1] == LAST


@pytest.mark.parametrize("name", BEYOND)
def test_terms_are_bounded(name: str) -> None:
    text = BEYOND[name]()
    tokens = tokenize(text)
    assert LAST not in tokens
    assert len(tokens) <= MAX_TERMS
    stems, words = analyze(text)
    lexemes = {*stems, *["=" + word for word in words]}
    assert sum(len(one.encode()) for one in lexemes) <= MAX_DISTINCT_BYTES


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("abéжあ👍9", min_size=1, max_size=8), max_size=60), st.integers(1, 200))
def test_bound_leaves_the_longest_first_part(words: list[str], bound: int) -> None:
    tokens = [token for word in words for token in tokenize(word)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "MAX_DISTINCT_BYTES", bound)
        kept = analysis._bounded(tokens)

    def size(part: list[str]) -> int:
        return sum(map(analysis._bytes_of, set(part)))

    assert kept == tokens[: len(kept)]
    assert size(kept) <= bound
    assert kept == tokens or size(tokens[: len(kept) + 1]) > bound


def test_many_marks_take_linear_time() -> None:
    """Normalization alone would sort a million marks for an hour; a test has two minutes."""
    assert tokenize("e" + "\u0301\u0323" * 499_999) == ["e"]
    assert tokenize("e" + "\u0301\u0323" * 400 + "a") == ["ea"]


def test_threads_do_not_spoil_each_others_words() -> None:
    """Both stores' writers and the backfill analyse text, each in threads of their own."""
    parts = ("vari", "nation", "relat", "hope", "form"), ("al", "iz", "ful", "abil", "ment", "ous")
    context = ("", "ing", "ness", "ation", "ities", "ly", "ed")
    words = ["".join(word) for word in itertools.product(*parts, context)]
    # Past the cache, which would hide it: a wrong stem would be remembered.
    uncached = stem.__wrapped__
    expected = [uncached(word) for word in words]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            found = threads.map(lambda _: [uncached(word) for word in words], range(24))
            assert all(stems == expected for stems in found)
    finally:
        sys.setswitchinterval(interval)


def test_characters_that_are_terms() -> None:
    assert all(map(folding.is_single, "北あア서ส👍"))
    assert not any(map(folding.is_single, ["a", "1", "é", "я", "北京", "", "م"]))


def test_all_of_unicode() -> None:
    """No character at all brings what would split or break the index."""
    allowed = set(string.digits + string.ascii_lowercase)
    characters = [
        chr(code)
        for code in range(1, 0x110000)
        if unicodedata.category(chr(code)) not in {"Cn", "Co", "Cs"}
    ]
    for start in range(0, len(characters), 4096):
        for token in tokenize("é".join(characters[start : start + 4096])):
            assert all(not char.isascii() or char in allowed for char in token), hex(start)
            assert not any(char.isspace() for char in token), hex(start)
