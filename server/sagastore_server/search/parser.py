"""Parser of the query language, from a text to a condition on terms. No text is an error.

* ``rust async`` requires both words, ``"exactly this"`` words side by side, ``pre*`` a word with
  this prefix. ``-word``, ``-"a phrase"`` and ``-(a group)`` exclude.
* ``NOT`` negates what follows it, as ``-`` does; ``AND`` joins conditions, as a space does; ``OR``
  separates alternatives. ``NOT`` binds closest, ``OR`` loosest; parentheses group.
* Operators are upper-case words outside quotes. One without an operand is a word: ``AND`` and
  ``OR`` at the start or end of a text or group or before another ``AND`` or ``OR``; ``NOT`` at
  the end or before ``AND`` or ``OR``. See ``search.query_tokens`` for parentheses.
* A word or group without a letter or digit is left out, together with what joins or negates it.
* Text that is written together but has several terms, as ``foo_bar`` or ``v1.85``, is a phrase.
* Anything else, such as ``^``, ``+``, ``column:`` or ``NEAR``, has no special meaning.
"""

from __future__ import annotations

from collections.abc import Iterable

from sagastore_server.search.analysis import stem, tokenize
from sagastore_server.search.folding import is_single
from sagastore_server.search.query_tokens import Kind, Token, query_tokens
from sagastore_server.storage.query import And, Condition, Not, Or, Phrase, Prefix, TextQuery

_STARTS_OPERAND = frozenset({Kind.WORD, Kind.QUOTED, Kind.MINUS, Kind.NOT, Kind.OPEN})


def parse_query(text: str) -> TextQuery | None:
    """Return the condition of a query text; None for a blank text, which matches every message.

    A text that is not blank but has no term (``"!!!"``) matches nothing.
    """
    if not text.strip():
        return None
    return TextQuery(_Parser(query_tokens(text)).alternatives())


class _Parser:
    """Recursive descent over tokens. The depth is bounded, because that of the tokens is."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        # The end of the text, and what would be after it.
        self._kinds: list[Kind | None] = [*(token.kind for token in tokens), None, None]
        self._at = 0

    def alternatives(self) -> Condition | None:
        """Read alternatives up to the end of the text or group."""
        found = [self._joined()]
        while self._kinds[self._at] is Kind.OR:
            self._at += 1
            found.append(self._joined())
        return _combined(Or, found)

    def _joined(self) -> Condition | None:
        """Read conditions that must all hold, up to an OR or the end of the text or group."""
        found: list[Condition | None] = []
        while (kind := self._kinds[self._at]) is not None and kind is not Kind.CLOSE:
            if found and self._is_operator(kind):
                if kind is Kind.OR:
                    break
                self._at += 1
            found.append(self._negated())
        return _combined(And, found)

    def _is_operator(self, kind: Kind) -> bool:
        """Return whether the next token, after an operand, is an operator with another operand."""
        return kind in (Kind.AND, Kind.OR) and self._kinds[self._at + 1] in _STARTS_OPERAND

    def _negated(self) -> Condition | None:
        negative = False
        while (kind := self._kinds[self._at]) is Kind.MINUS or (
            kind is Kind.NOT and self._kinds[self._at + 1] in _STARTS_OPERAND
        ):
            negative = not negative
            self._at += 1
        if kind is None or kind is Kind.CLOSE:
            return None
        condition = self._operand()
        return _negation(condition) if negative and condition is not None else condition

    def _operand(self) -> Condition | None:
        token = self._tokens[self._at]
        self._at += 1
        if token.kind is not Kind.OPEN:
            return _term(token)
        condition = self.alternatives()
        self._at += 1
        return condition


def _combined(kind: type[And | Or], conditions: Iterable[Condition | None]) -> Condition | None:
    """Return one condition for several, without repetition; None if all of them are."""
    distinct: dict[Condition, None] = {}
    for condition in conditions:
        if isinstance(condition, kind):
            distinct.update(dict.fromkeys(condition.parts))
        elif condition is not None:
            distinct[condition] = None
    if len(distinct) > 1:
        return kind(tuple(distinct))
    return next(iter(distinct), None)


def _negation(condition: Condition) -> Condition:
    return condition.part if isinstance(condition, Not) else Not(condition)


def _term(token: Token) -> Condition | None:
    terms = tokenize(token.text)
    if not terms:
        return None
    if token.kind is Kind.QUOTED or not token.text.endswith("*") or is_single(terms[-1]):
        return Phrase(tuple(map(stem, terms)))
    *head, last = terms
    prefix = Prefix(last)
    return And((Phrase(tuple(map(stem, head))), prefix)) if head else prefix
