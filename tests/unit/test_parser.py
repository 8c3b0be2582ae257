from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unicodedata2 import category

from sagastore_server.search.parser import parse_query
from sagastore_server.search.query_tokens import MAX_NESTING
from sagastore_server.storage.query import And, Condition, Not, Or, Phrase, Prefix, TextQuery
from tests.support.reference_search import text_matches
from tests.support.strategies import storable_text

UNPRINTABLE = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}


def p(*terms: str) -> Phrase:
    return Phrase(terms)


def both(*parts: Condition) -> And:
    return And(parts)


def either(*parts: Condition) -> Or:
    return Or(parts)


a, b, c, d = (p(letter) for letter in "abcd")

EXAMPLES: dict[str, Condition | None] = {
    "!!!": None,
    '""': None,
    '"': None,
    "-": None,
    "*": None,
    "- -": None,
    "rust": p("rust"),
    "Rust ASYNC": both(p("rust"), p("async")),
    "rust rust": p("rust"),
    "running": p("run"),
    '"exactly this"': p("exact", "this"),
    '"exactly this': both(p("exact"), p("this")),
    'a"b"c': both(a, b, c),
    "“exactly this”": p("exact", "this"),
    "«exactly this»": p("exact", "this"),
    "-rust": Not(p("rust")),
    "async -rust": both(p("async"), Not(p("rust"))),
    'async -"old rust"': both(p("async"), Not(p("old", "rust"))),
    "--rust": p("rust"),
    "- rust": p("rust"),
    'a -"b': both(a, b),
    'a"b"-c': both(a, b, c),
    "a-b": p("a", "b"),
    "-a-b": Not(p("a", "b")),
    "pre*": Prefix("pre"),
    "running*": Prefix("running"),
    "-pre*": Not(Prefix("pre")),
    "pre**": Prefix("pre"),
    "*pre": p("pre"),
    "foo.ba*": both(p("foo"), Prefix("ba")),
    "-foo.ba*": Not(both(p("foo"), Prefix("ba"))),
    '"pre*"': p("pre"),
    "北京*": p("北", "京"),
    "foo_bar": p("foo", "bar"),
    "v1.85": p("v1", "85"),
    "a OR b": either(a, b),
    "a OR a": a,
    "a b OR c -d": either(both(a, b), both(c, Not(d))),
    "a or b": both(a, p("or"), b),
    'a "OR" b': both(a, p("or"), b),
    "a -OR b": both(a, Not(p("or")), b),
    "!!! OR a": a,
    "a OR !!!": a,
    "stems:x": p("stem", "x"),
    "-a OR -b": either(Not(a), Not(b)),
}

OPERATORS: dict[str, Condition | None] = {
    "a AND b": both(a, b),
    "a AND b c": both(a, b, c),
    "a and b": both(a, p("and"), b),
    "a not b": both(a, p("not"), b),
    "a And b": both(a, p("and"), b),
    '"AND"': p("and"),
    "AND.": p("and"),
    "NOT a": Not(a),
    "NOT a b": both(Not(a), b),
    "a NOT b": both(a, Not(b)),
    "a AND NOT b": both(a, Not(b)),
    "a OR NOT b": either(a, Not(b)),
    "NOT NOT a": a,
    "NOT -a": a,
    'NOT "a b"': Not(p("a", "b")),
    "NOT fo*": Not(Prefix("fo")),
    "a OR b AND c": either(a, both(b, c)),
    "a AND b OR c": either(both(a, b), c),
    "a OR b c OR d": either(a, both(b, c), d),
    "NOT a OR b": either(Not(a), b),
    "(a OR b) c": both(either(a, b), c),
    "(a OR b) AND (c OR d)": both(either(a, b), either(c, d)),
    "(a OR b)(c OR d)": both(either(a, b), either(c, d)),
    "NOT (a OR b)": Not(either(a, b)),
    "-(a OR b)": Not(either(a, b)),
    "-(a -b)": Not(both(a, Not(b))),
    "(-a)": Not(a),
    '(-"a b" c)': both(Not(p("a", "b")), c),
    '("a b" OR c)': either(p("a", "b"), c),
    '"a"("b" OR c)': both(a, either(b, c)),
    "((a OR b))": either(a, b),
    "(a OR (b OR c))": either(a, b, c),
    "a (b (c))": both(a, b, c),
    "NOT (NOT (a b))": both(a, b),
}

LONE_OPERATORS: dict[str, Condition | None] = {
    "AND": p("and"),
    "OR": p("or"),
    "NOT": p("not"),
    "AND a": both(p("and"), a),
    "OR a": both(p("or"), a),
    "a AND": both(a, p("and")),
    "a OR": both(a, p("or")),
    "a NOT": both(a, p("not")),
    "NOT NOT": Not(p("not")),
    "NOT AND": both(p("not"), p("and")),
    "NOT OR a": either(p("not"), a),
    "a OR OR b": either(both(a, p("or")), b),
    "a AND OR b": either(both(a, p("and")), b),
    "a OR AND b": both(a, p("or"), b),
    "OR OR a": either(p("or"), a),
    "AND OR NOT": either(p("and"), p("not")),
    "(OR a)": both(p("or"), a),
    "(a OR) b": both(a, p("or"), b),
    "(NOT) a": both(p("not"), a),
    "a OR (NOT)": either(a, p("not")),
}

PARENTHESES: dict[str, Condition | None] = {
    "(": None,
    ")": None,
    "()": None,
    "-()": None,
    "NOT ()": None,
    ")(": None,
    "(a": a,
    "a)": a,
    "((a)": a,
    "(a))": a,
    "a) OR (b": either(a, b),
    "(a OR b": either(a, b),
    "-(a b": both(Not(a), b),
    "() OR a": a,
    "a OR ()": a,
    "a AND () b": both(a, b),
    "a -() b": both(a, b),
    "(!!!) a": a,
    "NOT !!! a": a,
    "a OR NOT !!!": a,
    "(!!! OR a) b": both(a, b),
    "NOT (!!! a)": Not(a),
    "(a -)": a,
    "foo(bar)": p("foo", "bar"),
    "foo()": p("foo"),
    "-foo(bar)": Not(p("foo", "bar")),
    "(foo(bar) OR a)": either(p("foo", "bar"), a),
    "f(a) OR f(b)": either(p("f", "a"), p("f", "b")),
    "f()(a)": p("f", "a"),
    "foo(a b) c": both(p("foo", "a"), b, c),
    "(foo(a b) OR c) d": both(either(both(p("foo", "a"), b), c), d),
    "(a)b": p("a", "b"),
    "(a OR b)c": either(a, p("b", "c")),
    "(a)OR(b)": p("a", "or", "b"),
    '"(a OR b)"': p("a", "or", "b"),
    "NEAR(a b)": both(p("near", "a"), b),
}


@pytest.mark.parametrize("text", list(EXAMPLES | OPERATORS | LONE_OPERATORS | PARENTHESES))
def test_examples(text: str) -> None:
    expected = {**EXAMPLES, **OPERATORS, **LONE_OPERATORS, **PARENTHESES}[text]
    assert parse_query(text) == TextQuery(expected)


@pytest.mark.parametrize("text", ["", " \t\n"])
def test_blank_text_has_no_query(text: str) -> None:
    assert parse_query(text) is None


pieces = st.sampled_from(
    ["-", '"', "*", " ", "OR", " OR ", "AND", " AND ", "NOT", " NOT ", "a", "foo", "é", "北", "👍",
     ".", "_", "(", ")", " (", ") ", "-(", "NEAR(", "“"]
)  # fmt: skip


@given(storable_text | st.lists(pieces, max_size=40).map("".join))
def test_any_text_has_a_meaning(text: str) -> None:
    query = parse_query(text)
    assert parse_query(text) == query
    assert (query is None) is (not text.strip())
    if query is not None and query.condition is not None:
        _check(query.condition)


def _check(condition: Condition) -> None:
    """Check that a tree is as small as it can be without rules of logic, and has terms only."""
    if isinstance(condition, Not):
        assert not isinstance(condition.part, Not)
        _check(condition.part)
    elif isinstance(condition, And | Or):
        assert len(set(condition.parts)) == len(condition.parts) >= 2
        for part in condition.parts:
            assert type(part) is not type(condition)
            _check(part)
    else:
        terms = condition.terms if isinstance(condition, Phrase) else (condition.text,)
        assert terms
        # Not isprintable: Python does not know all letters that the analysis knows.
        assert all(term and not set(map(category, term)) & UNPRINTABLE for term in terms)
        assert all('"' not in term for term in terms)


LONG = [
    "(" * 100_000,
    ")" * 100_000,
    "()" * 50_000,
    "(" * 50_000 + ")" * 50_000,
    "( " * 50_000,
    "-(" * 50_000,
    "-(" * 33_000 + "a" + ")" * 33_000,
    "NOT " * 25_000,
    "NOT (" * 16_000 + "a" + ")" * 16_000,
    "a OR (b AND (" * 6_000 + "c" + ")" * 12_000,
    "AND OR NOT " * 9_000,
    "(a OR b) AND " * 7_000,
    "x(" * 50_000,
    ")(" * 50_000,
]


@pytest.mark.parametrize("text", LONG, ids=itertools.count())
def test_long_text_has_a_meaning(text: str) -> None:
    assert len(text) <= 100_000
    query = parse_query(text)
    assert query is not None
    if query.condition is not None:
        _check(query.condition)


def test_redundant_parentheses_may_nest_deeper_than_limit() -> None:
    for depth in (MAX_NESTING, MAX_NESTING + 1, 1000):
        assert parse_query("(" * depth + "a OR b" + ")" * depth) == parse_query("a OR b")
        assert parse_query("(" * depth + "a" + " OR b)" * depth) == parse_query("a OR b")


def test_parentheses_beyond_limit_are_ignored() -> None:
    within, beyond = "a (b OR " * MAX_NESTING, ")" * MAX_NESTING
    assert parse_query(f"{within}(c OR d) a{beyond}") == parse_query(f"{within}c OR d a{beyond}")
    shallower = "a (b OR " * (MAX_NESTING - 1), ")" * (MAX_NESTING - 1)
    assert parse_query("(c OR d) a".join(shallower)) != parse_query("c OR d a".join(shallower))


Words = frozenset[str]


class Meaning(NamedTuple):
    """A query text, and which sets of words it matches."""

    text: str
    matches: Callable[[Words], bool]


def _word(letter: str) -> Meaning:
    return Meaning(letter, lambda words: letter in words)


def _negated(one: Meaning, operator: str) -> Meaning:
    return Meaning(f"{operator}({one.text})", lambda words: not one.matches(words))


def _and(parts: list[Meaning], operator: str) -> Meaning:
    text = operator.join(f"({part.text})" for part in parts)
    return Meaning(text, lambda words: all(part.matches(words) for part in parts))


def _or(parts: list[Meaning]) -> Meaning:
    text = " OR ".join(part.text for part in parts)
    return Meaning(text, lambda words: any(part.matches(words) for part in parts))


meanings: st.SearchStrategy[Meaning] = st.recursive(
    st.sampled_from("abc").map(_word),
    lambda inner: st.one_of(
        st.builds(_negated, inner, st.sampled_from(["NOT ", "-"])),
        st.builds(_and, st.lists(inner, min_size=1, max_size=3), st.sampled_from([" ", " AND "])),
        st.builds(_or, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=MAX_NESTING,
)


@given(meanings)
def test_operators_mean_what_they_say(meaning: Meaning) -> None:
    query = parse_query(meaning.text)
    assert query is not None
    for size in range(4):
        for words in itertools.combinations("abc", size):
            matches = text_matches(" ".join(words), query)
            assert matches is meaning.matches(frozenset(words)), (meaning.text, words)


def test_wanted_is_what_can_match() -> None:
    query = parse_query("a b -c OR b d* OR -e")
    assert query is not None
    assert query.wanted == (p("a"), p("b"), Prefix("d"))
    query = parse_query("a NOT (b -c OR d) -(NOT (e OR a))")
    assert query is not None
    assert query.wanted == (p("a"), p("c"), p("e"))
    assert TextQuery(None).wanted == ()


def test_phrase_and_negated_prefix_differ() -> None:
    assert parse_query("a") != parse_query("-a*")
    assert parse_query("(a b) OR -c*") != parse_query("(a OR b) -c*")
