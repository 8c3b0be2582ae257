"""Compiler from the condition on a text to ``tsquery`` values.

A ``tsquery`` decides about words and prefixes, but not about phrases: ``search`` has no positions,
because a ``tsvector`` has none above 16,383 and at most 256 per lexeme. So phrases are looked for
in ``terms``, and a condition has up to three parts:

* ``necessary``, a ``tsquery`` with the words of a phrase in place of the phrase. Every match meets
  it, and the index can look it up.
* ``checks``: phrases that every match has or lacks.
* ``exact``, for phrases within alternatives and groups: a ``tsquery`` with a separate lexeme for
  each phrase. It is evaluated on ``search`` and the lexemes of the phrases that are in ``terms``.

Callers cannot inject syntax: terms contain letters and digits only, and are quoted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sagastore_server.storage.query import And, Condition, Leaf, Not, Or, Phrase, Prefix, leaves

_MOST_CHECKS = 20
"""Each check is an expression of the statement; more phrases take one expression together."""


class Exact(NamedTuple):
    """A ``tsquery`` with lexemes for phrases."""

    query: str
    phrases: list[str]
    """What to look for in ``terms``. The lexeme of the n-th of them is a space and n."""


class TextCondition(NamedTuple):
    """The parts of a condition; a message that meets all of them matches."""

    necessary: str | None
    """None if every message meets it: only phrases are excluded."""
    checks: list[tuple[str, bool]]
    """What to look for in ``terms``, and whether it must be there."""
    exact: Exact | None


def compile_text(condition: Condition) -> TextCondition:
    """Return the parts of a condition."""
    bound = _bound(condition, upper=True)
    necessary = bound if isinstance(bound, str) else None
    parts = condition.parts if isinstance(condition, And) else (condition,)
    phrased = [part for part in parts if any(map(_is_phrase, leaves(part)))]
    checks = [check for part in phrased if (check := _check(part))]
    if len(checks) > _MOST_CHECKS:
        return TextCondition(necessary, [], _exact(phrased))
    rest = [part for part in phrased if not _check(part)]
    return TextCondition(necessary, checks, _exact(rest) if rest else None)


def _check(condition: Condition) -> tuple[str, bool] | None:
    """Return the check that decides about a phrase or an excluded phrase."""
    part = condition.part if isinstance(condition, Not) else condition
    return (_in_terms(part), part is condition) if isinstance(part, Phrase) else None


def _in_terms(phrase: Phrase) -> str:
    return f" {' '.join(phrase.terms)} "


def _exact(conditions: list[Condition]) -> Exact:
    phrases = dict.fromkeys(
        leaf
        for condition in conditions
        for leaf in leaves(condition)
        if isinstance(leaf, Phrase) and _is_phrase(leaf)
    )
    # Terms have no space: no other lexeme is equal to one of these, and no prefix matches them.
    lexemes = {phrase: f"' {number}'" for number, phrase in enumerate(phrases, 1)}
    query = _join("&", [_translated(condition, lexemes) for condition in conditions])
    return Exact(query, list(map(_in_terms, phrases)))


def _translated(condition: Condition, lexemes: Mapping[Phrase, str]) -> str:
    if isinstance(condition, Not):
        return f"!{_translated(condition.part, lexemes)}"
    if isinstance(condition, And | Or):
        operator = "&" if isinstance(condition, And) else "|"
        return _join(operator, [_translated(part, lexemes) for part in condition.parts])
    if isinstance(condition, Phrase) and condition in lexemes:
        return lexemes[condition]
    return _lexemes(condition)


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
