from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.search.parser import parse_query
from sagastore_server.storage.query import Alternative, Leaf, Phrase, Prefix, TextQuery
from tests.support.strategies import storable_text


def p(*terms: str) -> Phrase:
    return Phrase(terms)


def q(*options: tuple[tuple[Leaf, ...], tuple[Leaf, ...]]) -> TextQuery:
    return TextQuery(tuple(Alternative(*option) for option in options))


EXAMPLES: dict[str, TextQuery | None] = {
    "": None,
    " \t\n": None,
    "!!!": q(),
    '""': q(),
    '"': q(),
    "-": q(),
    "*": q(),
    "- -": q(),
    "rust": q(((p("rust"),), ())),
    "Rust ASYNC": q(((p("rust"), p("async")), ())),
    "rust rust": q(((p("rust"),), ())),
    "running": q(((p("run"),), ())),
    '"exactly this"': q(((p("exact", "this"),), ())),
    '"exactly this': q(((p("exact"), p("this")), ())),
    'a"b"c': q(((p("a"), p("b"), p("c")), ())),
    "“exactly this”": q(((p("exact", "this"),), ())),
    "«exactly this»": q(((p("exact", "this"),), ())),
    "-rust": q(((), (p("rust"),))),
    "async -rust": q(((p("async"),), (p("rust"),))),
    'async -"old rust"': q(((p("async"),), (p("old", "rust"),))),
    "--rust": q(((p("rust"),), ())),
    "- rust": q(((p("rust"),), ())),
    "a-b": q(((p("a", "b"),), ())),
    "-a-b": q(((), (p("a", "b"),))),
    "pre*": q(((Prefix("pre"),), ())),
    "running*": q(((Prefix("running"),), ())),
    "-pre*": q(((), (Prefix("pre"),))),
    "pre**": q(((Prefix("pre"),), ())),
    "*pre": q(((p("pre"),), ())),
    "foo.ba*": q(((p("foo"), Prefix("ba")), ())),
    "-foo.ba*": q(((), (p("foo", "ba"),))),
    '"pre*"': q(((p("pre"),), ())),
    "北京*": q(((p("北", "京"),), ())),
    "foo_bar": q(((p("foo", "bar"),), ())),
    "v1.85": q(((p("v1", "85"),), ())),
    "a OR b": q(((p("a"),), ()), ((p("b"),), ())),
    "a OR a": q(((p("a"),), ())),
    "a b OR c -d": q(((p("a"), p("b")), ()), ((p("c"),), (p("d"),))),
    "a or b": q(((p("a"), p("or"), p("b")), ())),
    "OR": q(((p("or"),), ())),
    "OR a": q(((p("or"), p("a")), ())),
    "a OR": q(((p("a"), p("or")), ())),
    "a OR OR b": q(((p("a"), p("or")), ()), ((p("b"),), ())),
    'a "OR" b': q(((p("a"), p("or"), p("b")), ())),
    "a -OR b": q(((p("a"), p("b")), (p("or"),))),
    "!!! OR a": q(((p("a"),), ())),
    "a OR !!!": q(((p("a"),), ())),
    "stems:x": q(((p("stem", "x"),), ())),
    "NEAR(a b)": q(((p("near", "a"), p("b")), ())),
    "a AND NOT b": q(((p("a"), p("and"), p("not"), p("b")), ())),
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples(text: str) -> None:
    assert parse_query(text) == EXAMPLES[text]


chunks = st.sampled_from(
    ["-", '"', "*", " ", "OR", " OR ", "a", "foo", "é", "北", "👍", ".", "_", "(", "“"]
)


@given(storable_text | st.lists(chunks, max_size=20).map("".join))
def test_any_text_has_a_meaning(text: str) -> None:
    query = parse_query(text)
    assert parse_query(text) == query
    assert (query is None) is (not text.strip())
    if query is None:
        return
    assert len(set(query.alternatives)) == len(query.alternatives)
    for option in query.alternatives:
        assert option.required or option.excluded
        for leaf in (*option.required, *option.excluded):
            terms = leaf.terms if isinstance(leaf, Phrase) else (leaf.text,)
            assert terms
            assert all(term and term.isprintable() and '"' not in term for term in terms)


def test_wanted_is_what_can_match() -> None:
    query = parse_query("a b -c OR b d* OR -e")
    assert query is not None
    assert query.wanted == (p("a"), p("b"), Prefix("d"))
