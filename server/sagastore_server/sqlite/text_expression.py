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
    return TextExpression(_enclosed(found), found.negative, has_prefix)


class _Part(NamedTuple):
    text: str
    operator: str = ""
    """The operator that binds loosest; empty for a leaf."""
    height: int = 0
    """Entries of the stack of FTS5's parser that the text takes."""
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
            return _joined("OR", negative)._replace(negative=True)
        return _without(_joined("AND", positive), negative)
    if not negative:
        return _joined("OR", positive)
    return _without(_joined("AND", negative), positive)._replace(negative=True)


def _joined(operator: str, parts: list[_Part]) -> _Part:
    if len(parts) == 1:
        return parts[0]._replace(negative=False)
    # While FTS5 parses an operand, the operands before it are on its stack, so the highest is first.
    first, *others = sorted(parts, key=_height, reverse=True)
    texts = [_enclosed(part, "OR") if operator == "AND" else part.text for part in (first, *others)]
    height = max(first.height + 1, others[0].height + 3)
    return _Part(f" {operator} ".join(texts), operator, height)


def _height(part: _Part) -> int:
    return part.height


def _without(whole: _Part, excluded: list[_Part]) -> _Part:
    if not excluded:
        return whole
    right = _joined("OR", excluded)
    text = f"{_enclosed(whole, 'AND', 'OR')} NOT {_enclosed(right)}"
    return _Part(text, "NOT", max(whole.height + 1, right.height + 3))


def _enclosed(part: _Part, *operators: str) -> str:
    """Return the text in parentheses if its operator is one of these; by default, of any."""
    enclosed = part.operator in operators if operators else bool(part.operator)
    return f"({part.text})" if enclosed else part.text


def _leaf(leaf: Leaf) -> str:
    if isinstance(leaf, Phrase):
        return f'stems : "{" ".join(leaf.terms)}"'
    return f'{{stems words}} : "{leaf.text}" *'
