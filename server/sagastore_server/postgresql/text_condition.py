"""Compiler from the condition on a text to ``tsquery`` values.

A ``tsquery`` decides about words and prefixes, but not about phrases: ``search`` has no positions,
because a ``tsvector`` has none above 16,383 and at most 256 per lexeme. So a condition with phrases
compiles to two values:

* ``necessary`` has the words of a phrase in place of the phrase, and every match meets it. The index
  can look it up.
* ``exact`` has a lexeme of its own for each phrase. It is evaluated on ``search`` together with the
  lexemes of the phrases that are in ``terms``.

Callers cannot inject syntax: terms contain letters and digits only, and are quoted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from sagastore_server.storage.query import And, Condition, Leaf, Not, Or, Phrase, Prefix, leaves


class TextCondition(NamedTuple):
    """The ``tsquery`` values of a condition, as text."""

    necessary: str | None
    """Met by every match; None if there is none, because only phrases are excluded."""
    exact: str | None
    """Decides; None if ``necessary`` does."""
    phrases: list[str]
    """What to look for in ``terms``. The lexeme of the n-th of them is a space and n."""


def compile_text(condition: Condition) -> TextCondition:
    """Return the values of a condition."""
    bound = _bound(condition, upper=True)
    necessary = bound if isinstance(bound, str) else None
    phrases = dict.fromkeys(leaf for leaf in leaves(condition) if _is_phrase(leaf))
    if not phrases:
        return TextCondition(necessary, None, [])
    # Terms have no space, so no other lexeme is equal, and no prefix matches one.
    lexemes = {phrase: f"' {number}'" for number, phrase in enumerate(phrases, 1)}
    exact = _exact(condition, lambda leaf: lexemes.get(leaf) or _lexemes(leaf))
    return TextCondition(necessary, exact, [f" {' '.join(phrase[0])} " for phrase in phrases])


def _is_phrase(leaf: Leaf) -> bool:
    return isinstance(leaf, Phrase) and len(leaf.terms) > 1


def _bound(condition: Condition, *, upper: bool) -> str | bool:
    """Return a ``tsquery`` that all matches meet, or, not ``upper``, that only matches meet.

    True is one that every message meets, False one that no message meets.
    """
    if isinstance(condition, Not):
        part = _bound(condition.part, upper=not upper)
        return f"!{part}" if isinstance(part, str) else not part
    if not isinstance(condition, And | Or):
        return _lexemes(condition) if upper or not _is_phrase(condition) else False
    operator, neutral = ("&", True) if isinstance(condition, And) else ("|", False)
    parts = [_bound(part, upper=upper) for part in condition.parts]
    if (not neutral) in parts:
        return not neutral
    texts = [part for part in parts if isinstance(part, str)]
    return _join(operator, texts) if texts else neutral


def _exact(condition: Condition, leaf: Callable[[Leaf], str]) -> str:
    if isinstance(condition, Not):
        return f"!{_exact(condition.part, leaf)}"
    if isinstance(condition, And | Or):
        operator = "&" if isinstance(condition, And) else "|"
        return _join(operator, [_exact(part, leaf) for part in condition.parts])
    return leaf(condition)


def _lexemes(leaf: Leaf) -> str:
    if isinstance(leaf, Prefix):
        return _prefix(leaf.text)
    return _join("&", [f"'{term}'" for term in dict.fromkeys(leaf.terms)])


def _prefix(text: str) -> str:
    # Only ASCII words are stemmed, so only their unstemmed form is indexed separately.
    return f"('{text}':* | '={text}':*)" if text.isascii() else f"'{text}':*"


def _join(operator: str, parts: Sequence[str]) -> str:
    """Join parts as a balanced tree, because PostgreSQL evaluates it recursively."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    left, right = _join(operator, parts[:middle]), _join(operator, parts[middle:])
    return f"({left} {operator} {right})"
