from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.search.facts import MAX_FACTS, OVERFLOW, metadata_facts, tag_fact
from sagastore_server.storage.canonical_json import canonical_object, contains, parse
from tests.support.strategies import storable_text
from tests.unit.test_canonical_json import objects, small


def _facts(text: str) -> set[str]:
    return set(metadata_facts(canonical_object(text)))


@given(st.lists(small, min_size=2, max_size=2))
def test_what_contains_has_the_facts(texts: list[str]) -> None:
    """A candidate is never missed: whatever contains a part has all facts of the part."""
    value, part = ('{"k": %s}' % text for text in texts)  # noqa: UP031 - braces all around
    if contains(parse(value), parse(part)):
        assert _facts(part) <= _facts(value)


@given(objects)
def test_facts_are_words_of_the_index(text: str) -> None:
    facts = metadata_facts(canonical_object(text))
    assert len(set(facts)) == len(facts)
    assert all(re.fullmatch("[0-9a-f]{16}", fact) for fact in facts)


@given(storable_text, storable_text)
def test_tags(one: str, other: str) -> None:
    assert re.fullmatch("[0-9a-f]{16}", tag_fact(one))
    assert (tag_fact(one) == tag_fact(other)) is (one == other)


def test_equal_values_have_equal_facts() -> None:
    assert _facts('{"a": 1}') == _facts('{"a": 1.0}') == _facts('{"a": 10e-1}')
    assert _facts('{"a": [1, 2]}') == _facts('{"a": [2, [1], 1]}')
    assert len({frozenset(_facts(f'{{"a": {v}}}')) for v in ("1", '"1"', "true", "null")}) == 4
    assert _facts('{"a": {"b": 1}}') != _facts('{"b": {"a": 1}}')
    assert _facts('{"a": {}, "b": []}') == set()


def test_too_many() -> None:
    def many(count: int) -> list[str]:
        items = ", ".join(map(str, range(count)))
        return metadata_facts(canonical_object(f'{{"a": [{items}]}}'))

    assert len(many(MAX_FACTS)) == MAX_FACTS
    assert many(MAX_FACTS + 1) == [OVERFLOW]
