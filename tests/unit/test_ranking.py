from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.search.parser import parse_query
from sagastore_server.search.ranking import (
    MARK_END,
    MARK_START,
    SNIPPET_LENGTH,
    score,
    score_and_snippet,
    snippet,
)
from sagastore_server.storage.query import TextQuery
from tests.support.reference_search import text_matches
from tests.support.strategies import storable_text


def _query(text: str) -> TextQuery:
    query = parse_query(text)
    assert query is not None
    return query


def _shown(query: str, content: str) -> str:
    return snippet(_query(query), content).replace(MARK_START, "[").replace(MARK_END, "]")


words = st.lists(st.sampled_from(["fox", "dogs", "café", "北京", "👍", "foo_bar"]), max_size=30)
contents = words.map(" ".join) | storable_text
queries = st.sampled_from(
    [
        "fox",
        "fox dog",
        "fox OR dog",
        '"fox dog"',
        "do*",
        "cafe",
        "北京",
        "👍",
        "foo_bar",
        "-fox dog",
        "fox (dog OR 北京)",
        "(fox OR cafe) NOT (dog OR 👍)",
    ]
)


@given(queries, contents)
def test_what_matches_scores(text: str, content: str) -> None:
    query = _query(text)
    value = score(query, content)
    assert value >= 0
    if text_matches(content, query):
        assert value > 0
        assert MARK_START in snippet(query, content)


@given(queries, contents)
def test_together_they_are_what_they_are_one_by_one(text: str, content: str) -> None:
    query = _query(text)
    assert score_and_snippet(query, content) == (score(query, content), snippet(query, content))
    assert score_and_snippet(None, content) == (0.0, snippet(None, content))


def test_order_of_scores() -> None:
    query = _query("fox")
    filler = "word " * 30
    assert score(query, "fox") > score(query, "fox " + filler) > score(query, "no match") == 0
    assert score(query, "fox fox " + filler) > score(query, "fox " + filler)
    both = _query("fox dog")
    assert score(both, "fox dog") > score(both, "fox fox")


def test_exclusion_does_not_score() -> None:
    assert score(_query("-fox"), "dog") == 0.0
    assert score(_query("dog -fox"), "dog") == score(_query("dog"), "dog")


@pytest.mark.parametrize(
    ("query", "content", "shown"),
    [
        ("fox", "The FOX, and foxes.", "The [FOX], and [foxes]."),
        ('"brown fox"', "fox brown fox", "fox [brown] [fox]"),
        ("cafe", "Un Café!", "Un [Café]!"),
        ("jump*", "He jumped", "He [jumped]"),
        ("北京", "我在北京", "我在[北][京]"),
        ("zebra", "no match here", "no match here"),
        ("-fox", "a dog", "a dog"),
        ("dog NOT fox", "a dog", "a [dog]"),
        ("dog NOT (fox -cat)", "fox, cat, dog", "fox, [cat], [dog]"),
        ("(dog OR cat) AND NOT NOT fox", "fox and cat", "[fox] and [cat]"),
        ("b", "a\nb\tc\x02\x03", "a [b] c"),
    ],
)
def test_snippets(query: str, content: str, shown: str) -> None:
    assert _shown(query, content) == shown


def test_a_snippet_stands_around_the_first_match() -> None:
    content = "before " * 100 + "fox " + "after " * 100
    shown = _shown("fox", content)
    assert shown.startswith("…before")
    assert "[fox] after" in shown
    assert shown.endswith("…")
    assert len(shown) < SNIPPET_LENGTH + 10


@given(st.none() | queries.map(_query), contents)
def test_a_snippet_is_a_part_of_the_text(query: TextQuery | None, content: str) -> None:
    shown = snippet(query, content)
    plain = shown.replace(MARK_START, "").replace(MARK_END, "")
    assert shown.count(MARK_START) == shown.count(MARK_END)
    whole = content.replace(MARK_START, "").replace(MARK_END, "")
    for blank in "\n\r\t":
        whole = whole.replace(blank, " ")
    # An ellipsis stands for what was cut off; the text may begin or end with one of its own.
    cut = plain.removeprefix("…"), plain.removesuffix("…")
    assert any(inner in whole for inner in (plain, *cut, cut[0].removesuffix("…")))


def test_an_extract_of_one_endless_word_is_short() -> None:
    found = snippet(parse_query("xx*"), "before " + "x" * 100_000)
    assert found.startswith("before \x02xxx")
    assert found.endswith("\x03…")
    assert len(found) < 250


@pytest.mark.parametrize("filler", ["北京 ", "é, ", "x ", "👍", "ab "])
def test_snippet_of_a_long_content_shows_the_match(filler: str) -> None:
    """Of a long content, only the part with the match is looked at closely."""
    content = f"{filler * 3000} the running fox {filler * 2000}"
    for query, shown in {
        "fox": "[fox]",
        '"running fox"': "[running] [fox]",
        "run*": "[running] fox",
        "fox OR nothing": "running [fox]",
    }.items():
        extract = _shown(query, content)
        assert extract.startswith("…")
        assert shown in extract
        assert extract.count("[") == shown.count("[")
        both = score_and_snippet(_query(query), content)
        assert both == (score(_query(query), content), snippet(_query(query), content))
