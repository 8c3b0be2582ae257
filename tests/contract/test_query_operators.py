"""Operators and parentheses of the query language, compared with the reference."""

from __future__ import annotations

import itertools
import random
from functools import cache

import pytest

from sagastore_server.search.parser import parse_query
from sagastore_server.search.query_tokens import MAX_NESTING
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.query import Criteria, TextQuery
from tests.support.drafts import draft, found, save_all
from tests.support.nested_queries import nested_query
from tests.support.reference_search import text_matches
from tests.support.strategies import QUICK

LEVELS = {
    "alternatives in conditions": "b OR c {}",
    "conditions in alternatives": "b c OR {}",
    "excluded": "b -{}",
    "excluded alternatives": "c OR b -{}",
    "excluded, with a negation": "NOT c OR b -{}",
    "with a negation": "NOT c OR b {}",
    "negated": "b OR NOT {}",
    "negated, with a phrase": '"b c" OR NOT {}',
    "between others": 'b* -"c c" OR c {} -b OR NOT c',
}


TEXTS = [" ".join(words) for count in range(1, 4) for words in itertools.permutations("abc", count)]


@cache
def nested(level: str) -> list[tuple[TextQuery, list[str]]]:
    """Return queries with a level repeated up to any depth, and the texts that each matches.

    All kinds of backend get the same, and most of the time of these tests is spent here.
    """
    before, after = f"({level})".split("{}")
    depths = (1, 2, MAX_NESTING - 1, MAX_NESTING, MAX_NESTING + 1, 1500)
    innermosts = ("(a)", "(NOT a)", '("a b" OR -c)')
    cases = []
    for depth, innermost in itertools.product(depths, innermosts):
        text = parse_query(before * depth + innermost + after * depth)
        assert text is not None
        cases.append((text, sorted(one for one in TEXTS if text_matches(one, text))))
    return cases


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
async def test_nested_query(backend: StorageBackend, level: str) -> None:
    drafts = [draft(text, text, tags=("t",), metadata='{"k": 1}') for text in TEXTS]
    await save_all(backend, drafts)
    for text, expected in nested(level):
        for criteria in (Criteria(text), Criteria(text, tags=("t",), metadata='{"k": 1}')):
            assert sorted(await found(backend, criteria)) == expected


async def test_generated_queries_match_reference(backend: StorageBackend) -> None:
    chance = random.Random(11)
    texts = [" ".join(chance.choices(["ant", "bee", "cat", "dogs", "dog"], k=4)) for _ in range(60)]
    texts = sorted(set(texts))
    await save_all(backend, [draft(text, text) for text in texts])
    operands = ["ant", "bee", "cat", "dog", "do*", "be*", "ca_t*", '"ant bee"', "bee_cat", "AND"]
    wrong = {}
    for _ in range(150 if QUICK else 3000):
        query = nested_query(chance, lambda: chance.choice(operands), 3)
        parsed = parse_query(query)
        assert parsed is not None
        expected = [text for text in texts if text_matches(text, parsed)]
        answer = await found(backend, query)
        if answer != expected:
            wrong[query] = (answer, expected)
    assert wrong == {}
