"""Random queries with operators and parentheses."""

from __future__ import annotations

import random
from collections.abc import Callable

_LONE = ("AND", "OR", "NOT", "(", ")", "-", "()", "!!!")


def nested_query(chance: random.Random, operand: Callable[[], str], depth: int) -> str:
    """Return a query of operands, with groups up to ``depth``; one of ten has a lone operator."""
    query = _alternatives(chance, operand, depth)
    if chance.random() < 0.1:
        parts = query.split(" ")
        parts.insert(chance.randint(0, len(parts)), chance.choice(_LONE))
        query = " ".join(parts)
    return query


def _alternatives(chance: random.Random, operand: Callable[[], str], depth: int) -> str:
    count = chance.choices((1, 2, 3), (5, 4, 1))[0]
    return " OR ".join(_joined(chance, operand, depth) for _ in range(count))


def _joined(chance: random.Random, operand: Callable[[], str], depth: int) -> str:
    count = chance.choices((1, 2, 3), (4, 4, 1))[0]
    operator = chance.choice((" ", " AND "))
    return operator.join(_negatable(chance, operand, depth) for _ in range(count))


def _negatable(chance: random.Random, operand: Callable[[], str], depth: int) -> str:
    negation = chance.choices(("", "NOT ", "-"), (6, 2, 2))[0]
    if depth and chance.random() < 0.5:
        return f"{negation}({_alternatives(chance, operand, depth - 1)})"
    return negation + operand()
