"""Compiler from the condition on a text to one FTS5 expression.

FTS5 has no unary NOT: ``a NOT b`` is a binary operator, and what matches an expression has at least
one of its terms. So a condition compiles to an expression and a sign. If the sign is negative, the
condition holds for the messages that do not match the expression. Every condition has such a form,
with each of its terms once:

====================  =================
``a AND NOT b``       ``a NOT b``
``NOT a AND NOT b``   not ``a OR b``
``a OR NOT b``        not ``b NOT a``
``NOT a OR NOT b``    not ``a AND b``
====================  =================

Callers cannot inject syntax: terms contain letters and digits only, and are quoted.
"""

from __future__ import annotations

from typing import NamedTuple

from sagastore_server.storage.query import And, Condition, Leaf, Not, Or, Phrase, Prefix, leaves


class TextExpression(NamedTuple):
    """An FTS5 expression for the condition on a text."""

    expression: str
    """An operand of AND: in parentheses, if it has operators."""
    negative: bool
    """Whether the condition holds for the messages that do not match the expression."""
    has_prefix: bool
    """Whether a prefix is in the expression."""


def compile_text(condition: Condition) -> TextExpression:
    """Return the expression of a condition."""
    found = _compiled(condition)
    has_prefix = any(isinstance(leaf, Prefix) for leaf in leaves(condition))
    return TextExpression(_enclosed(found, *_OPERATORS).text, found.negative, has_prefix)


_OPERATORS = ("OR", "AND", "NOT")
"""From the one that binds loosest to the one that binds closest."""


class _Part(NamedTuple):
    text: str
    operator: str = ""
    """The operator that binds loosest; empty for a leaf."""
    height: int = 1
    """Entries on the stack of FTS5's parser, with a leaf counted as one."""
    negative: bool = False


def _compiled(condition: Condition) -> _Part:
    if isinstance(condition, Not):
        part = _compiled(condition.part)
        return part._replace(negative=not part.negative)
    if not isinstance(condition, And | Or):
        return _Part(_leaf(condition))
    parts = [_compiled(part) for part in condition.parts]
    positive = [part for part in parts if not part.negative]
    negative = [part for part in parts if part.negative]
    if isinstance(condition, And):
        if not positive:
            return _any(negative)._replace(negative=True)
        return _without(_all(positive), negative)
    if not negative:
        return _any(positive)
    return _without(_all(negative), positive)._replace(negative=True)


def _all(parts: list[_Part]) -> _Part:
    return _joined("AND", [_enclosed(part, "OR") for part in parts])


def _any(parts: list[_Part]) -> _Part:
    return _joined("OR", parts)


def _without(whole: _Part, excluded: list[_Part]) -> _Part:
    if not excluded:
        return whole
    left, right = _enclosed(whole, "OR", "AND"), _enclosed(_any(excluded), *_OPERATORS)
    return _Part(f"{left.text} NOT {right.text}", "NOT", max(left.height, right.height + 2))


def _joined(operator: str, parts: list[_Part]) -> _Part:
    if len(parts) == 1:
        return parts[0]._replace(negative=False)
    # FTS5 keeps the operands before the current one on its stack, so the highest one is first.
    parts = sorted(parts, key=lambda part: part.height, reverse=True)
    height = max(parts[0].height, parts[1].height + 2)
    return _Part(f" {operator} ".join(part.text for part in parts), operator, height)


def _enclosed(part: _Part, *operators: str) -> _Part:
    """Return the part in parentheses if its operator is one of ``operators``."""
    if part.operator not in operators:
        return part
    return _Part(f"({part.text})", "", part.height + 1, part.negative)


def _leaf(leaf: Leaf) -> str:
    if isinstance(leaf, Phrase):
        return f'stems : "{" ".join(leaf.terms)}"'
    return f'{{stems words}} : "{leaf.text}" *'
