from __future__ import annotations

import string
from collections.abc import Iterator
from hashlib import sha256

import pytest
import unicodedata2
from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.search import analysis
from sagastore_server.search.analysis import located, stem, tokenize
from sagastore_server.search.folding import cells, fold

ASSIGNED = [
    char
    for char in map(chr, range(1, 0x110000))
    if unicodedata2.category(char) not in {"Cn", "Cs", "Co"}
]
BORDERS = [
    char
    for char in (*ASSIGNED, *map(chr, range(0xE000, 0x110000, 61)))
    if unicodedata2.category(char) != "Nd" and unicodedata2.category(char)[0] not in "LM"
]
"""Every character that is no letter, digit or mark, and some that are private or not assigned."""

RECORDED = {3: "648aeb284bec8792f040f1898f85b342e7e850c838ba7f389270443de6d4f406"}
"""SHA-256 by analysis version: of what every assigned character becomes, and of some stems."""

letters = st.sampled_from("aZéßłÆıжあ北서स्क़نﷺ٣๓ｶﾞㄱㅏⅷ")
borders = st.sampled_from("^`'’ʼ™¹½№ ,\n\u200d\u200c\u00ad\u2060👍🏽⚠🇩©❤")
others = st.sampled_from("\ufe0f\u20e3\u034f\u0301\u093c\u3099\u094d\u05b8\U000e0100")
text_of_every_kind = st.text(letters | borders | others | st.sampled_from(ASSIGNED), max_size=30)


@pytest.mark.parametrize(("left", "right"), [("lorem", "ipsum"), ("жук", "été")])
def test_every_character_but_letters_digits_and_marks_is_a_border(left: str, right: str) -> None:
    (first,), (last,) = tokenize(left), tokenize(right)
    for start in range(0, len(BORDERS), 500):
        part = BORDERS[start : start + 500]
        for end in ("", " é"):
            tokens = tokenize("\n".join(f"{left}{char}{right}" for char in part) + end)
            assert tokens.count(first) == tokens.count(last) == len(part), hex(ord(part[0]))


def test_borders_are_the_same_in_ascii_and_other_text() -> None:
    for char in map(chr, range(1, 128)):
        for text in (f"foo{char}bar", f"{char}1{char}", f"{char}foo {char}"):
            assert tokenize(f"{text} é") == [*tokenize(text), "e"], hex(ord(char))


def test_located_agrees_for_every_character() -> None:
    for start in range(0, len(ASSIGNED), 90):
        check_places(" ".join(f"a{char}b {char}\u0301c" for char in ASSIGNED[start : start + 90]))


@given(text_of_every_kind)
def test_located_agrees_for_any_text(text: str) -> None:
    check_places(text)


def check_places(text: str) -> None:
    tokens, places = located(text)
    assert tokens == tokenize(text)
    found = list(places)
    assert len(found) == len(tokens), (text, tokens, found)
    last = (0, 0)
    for token, (start, end) in zip(tokens, found, strict=True):
        # A character that becomes several words is part of each of them.
        assert last[0] <= start < end, (text, found)
        assert last[1] <= end <= len(text), (text, found)
        assert token in tokenize(text[start:end]), (text, token)
        last = (start, end)


@given(text_of_every_kind)
def test_a_text_folds_as_its_cells_do(text: str) -> None:
    parts = list(cells(text))
    assert "".join(text[start:end] for start, end, _ in parts) == text
    assert "".join(folded for _, _, folded in parts).split() == fold(text).split()


@given(text_of_every_kind)
def test_folding_is_stable_for_any_text(text: str) -> None:
    tokens = tokenize(text)
    assert tokenize(" ".join(tokens)) == tokens


@given(text_of_every_kind)
def test_form_does_not_matter_for_any_text(text: str) -> None:
    for form in ("NFC", "NFD"):
        assert tokenize(unicodedata2.normalize(form, text)) == tokenize(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Acme™ sells Gizmo™", ["acme", "tm", "sells", "gizmo", "tm"]),
        ("see the statement¹ and proof²", ["see", "the", "statement", "1", "and", "proof", "2"]),
        ("2½ cups", ["2", "1", "2", "cups"]),
        ("№5", ["no", "5"]),
        ("Ⅷth", ["viii", "th"]),
        ("⚠️Warning", ["⚠", "warning"]),
        ("1️⃣First 1️⃣2️⃣", ["1", "first", "1", "2"]),
        ("葛\U000e0100飾", ["葛", "飾"]),
        ("co\u034fop A\u20dd", ["coop", "a"]),
        ("👨‍👩‍👧 👍🏽go", ["👨", "👩", "👧", "👍", "go"]),
        ("don't don’t donʼt don＇t", ["don", "t"] * 4),
        ("l’été", ["l", "ete"]),
        ("Łódź Ørsted đak Ðað þorn", ["lodz", "orsted", "dak", "dad", "thorn"]),
        ("Ægir œuvre Straße ẞ", ["aegir", "oeuvre", "strasse", "ss"]),
        ("ısı IŞIK İzmir", ["isi", "isik", "izmir"]),
        ("ħ ŧ ƶ ɓ ɗ ƙ ɨ ʉ ɵ ŋ ĸ ꜳ ȷ", [*"htzbdkiuonq", "aa", "j"]),
        ("٣٤٥ ۳۴۵ ३४५ ๓๔๕ ３４５ 𝟑𝟒𝟓", ["345"] * 6),
        ("می\u200cخواهم", ["میخواهم"]),
        ("क्\u200dष क्\u200cष", ["क्ष", "क्ष"]),
        ("foo\u200dbar foo\u200cbar", ["foo", "bar"] * 2),
        ("zero\u200bwidth soft\u00adhyphen", ["zero", "width", "soft", "hyphen"]),
        ("㎏ ℃ ㏂", ["kg", "c", "a", "m"]),
        ("ｶﾞｰ ㄱㅏ ﾡￂ", ["ガ", "ー", "가", "가"]),
    ],
)
def test_examples(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


def test_terms_are_those_of_the_recorded_version() -> None:
    """If this fails, raise ANALYSIS_VERSION: stores hold the terms of the recorded one.

    The digest does not depend on the interpreter, so CI compares it on every version of Python.
    """
    digest = sha256()
    for start in range(0, len(ASSIGNED), 1000):
        digest.update(fold("\n".join(ASSIGNED[start : start + 1000])).encode())
    digest.update(" ".join(stem(word) for word in words()).encode())
    assert digest.hexdigest() == RECORDED[analysis.ANALYSIS_VERSION]


def words() -> Iterator[str]:
    endings = ("", "s", "es", "ed", "ing", "ly", "ness", "ation", "ability", "ously", "fulness")
    for vowel in "aeiouy":
        for letter in string.ascii_lowercase:
            yield from (f"{letter}{vowel}{letter}{ending}" for ending in endings)
