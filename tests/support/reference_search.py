"""Reference implementation of search semantics, as simple as possible.

Only the analysis of text into terms is taken from the server, because it is part of the definition.
Every message is tested.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal
from functools import lru_cache
from typing import Any

from sagastore_server.search.analysis import AnalyzedText, analyze
from sagastore_server.storage.model import Message
from sagastore_server.storage.query import (
    And,
    Condition,
    Criteria,
    Leaf,
    Not,
    Or,
    Phrase,
    Scan,
    TextQuery,
)


def place(message: Message) -> tuple[int, int]:
    """Return the chronological sort key."""
    return message.timestamp, message.sequence


def stretch(messages: Iterable[Message], scan: Scan) -> list[Message]:
    """Return all messages in the range of ``scan``, in its direction."""
    found = sorted(messages, key=place, reverse=scan.newest_first)
    sign = -1 if scan.newest_first else 1
    if scan.after is not None:
        found = [message for message in found if sign * _compare(place(message), scan.after) > 0]
    if scan.until is not None:
        found = [message for message in found if sign * _compare(place(message), scan.until) <= 0]
    return found


def _compare(left: tuple[int, int], right: tuple[int, int]) -> int:
    return (left > right) - (left < right)


def meets(message: Message, criteria: Criteria) -> bool:
    """Return whether a message meets all criteria."""
    equal = (
        (criteria.provider, message.provider),
        (criteria.role, message.role),
        (criteria.session_id, message.session_id),
    )
    return (
        all(wanted is None or wanted == found for wanted, found in equal)
        and (criteria.start is None or message.timestamp >= criteria.start)
        and (criteria.end is None or message.timestamp < criteria.end)
        and set(criteria.tags) <= set(message.tags)
        and (criteria.metadata is None or json_contains(message.metadata, criteria.metadata))
        and (criteria.text is None or text_matches(message.content, criteria.text))
    )


def text_matches(content: str, query: TextQuery) -> bool:
    """Return whether a text matches a query."""
    terms = _analysed(content)
    written = {*terms.stems, *terms.words}

    def has(leaf: Leaf) -> bool:
        if isinstance(leaf, Phrase):
            size = len(leaf.terms)
            return written.issuperset(leaf.terms) and any(
                tuple(terms.stems[at : at + size]) == leaf.terms
                for at in range(len(terms.stems) - size + 1)
            )
        return any(term.startswith(leaf.text) for term in written)

    def holds(condition: Condition) -> bool:
        if isinstance(condition, Not):
            return not holds(condition.part)
        if isinstance(condition, And):
            return all(map(holds, condition.parts))
        if isinstance(condition, Or):
            return any(map(holds, condition.parts))
        return has(condition)

    return query.condition is not None and holds(query.condition)


@lru_cache(maxsize=1000)
def _analysed(content: str) -> AnalyzedText:
    return analyze(content)


def json_contains(value: str, part: str) -> bool:
    """Return whether one JSON text contains another, as PostgreSQL's ``@>`` defines it."""
    return _contains(_read(value), _read(part))


def _read(text: str) -> Any:
    return json.loads(text, parse_int=Decimal, parse_float=Decimal)


def _contains(value: Any, part: Any) -> bool:
    if type(value) is not type(part):
        return False
    if isinstance(part, dict):
        return all(key in value and _contains(value[key], part[key]) for key in part)
    if isinstance(part, list):
        return all(any(_contains(item, wanted) for item in value) for wanted in part)
    return bool(value == part)
