"""Tokens of the query language: words, quoted text, operators and parentheses.

A pair of parentheses groups if the opening one begins a word and the closing one ends a word:
``(a OR b)``, ``-(a b)``, ``(a)(b)``. In ``call(x)``, ``(a)b`` and in quotes, a parenthesis only
separates terms, as other punctuation does. So does one without a partner.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

MAX_NESTING = 12
"""Pairs of parentheses within each other; deeper pairs are ignored. The parser of FTS5 has a stack
of 100 entries, and a level of this language needs up to 6 of them."""


class Kind(enum.Enum):
    """Kinds of token."""

    WORD = enum.auto()
    QUOTED = enum.auto()
    MINUS = enum.auto()
    """A ``-`` that excludes the word, quoted text or group after it."""
    AND = enum.auto()
    OR = enum.auto()
    NOT = enum.auto()
    OPEN = enum.auto()
    CLOSE = enum.auto()


class Token(NamedTuple):
    """A token with its text, without quotation marks."""

    kind: Kind
    text: str


_OPERATORS = {kind.name: kind for kind in (Kind.AND, Kind.OR, Kind.NOT)}
_PIECE = re.compile(r'"(?P<quoted>[^"]*)"|(?P<bare>[^\s"]+)')
_PARENTHESIS = re.compile("[()]")
_OTHER_QUOTES = str.maketrans(dict.fromkeys("“”„«»\N{FULLWIDTH QUOTATION MARK}", '"'))
_MINUS, _OPEN, _CLOSE = Token(Kind.MINUS, "-"), Token(Kind.OPEN, "("), Token(Kind.CLOSE, ")")


def query_tokens(text: str) -> list[Token]:
    """Return the tokens of a query; its parentheses are balanced and at most MAX_NESTING deep."""
    return list(_within_limit(_every_token(text.translate(_OTHER_QUOTES))))


def _within_limit(tokens: Iterator[Token]) -> Iterator[Token]:
    depth = 0
    for token in tokens:
        depth += token.kind is Kind.OPEN
        if depth <= MAX_NESTING or token.kind not in (Kind.OPEN, Kind.CLOSE):
            yield token
        depth -= token.kind is Kind.CLOSE


def _every_token(text: str) -> Iterator[Token]:
    pieces = list(_PIECE.finditer(text))
    groups = _groups(text, pieces)
    for piece in pieces:
        quoted, word = piece["quoted"], piece["bare"]
        if quoted is not None:
            yield Token(Kind.QUOTED, quoted)
        elif word[0] == "-" or "(" in word or ")" in word:
            yield from _split(text, piece.span(), groups)
        else:
            yield Token(_OPERATORS.get(word, Kind.WORD), word)


def _groups(text: str, pieces: list[re.Match[str]]) -> dict[int, Token]:
    """Return the parentheses that group, by their positions."""
    groups: dict[int, Token] = {}
    unclosed: list[tuple[int, bool]] = []
    for piece in pieces:
        if piece["bare"] is None:
            continue
        start, end = piece.span()
        for match in _PARENTHESIS.finditer(text, start, end):
            at = match.start()
            if match[0] == "(":
                unclosed.append((at, _begins(text, at, start, unclosed, groups)))
            elif unclosed:
                opened, begins = unclosed.pop()
                if begins and (at + 1 == end or text[at + 1] in "()"):
                    groups[opened], groups[at] = _OPEN, _CLOSE
    return groups


def _begins(
    text: str, at: int, start: int, unclosed: list[tuple[int, bool]], groups: Mapping[int, Token]
) -> bool:
    """Return whether a parenthesis stands where a word begins, in a piece from ``start``."""
    if at > start and text[at - 1] == "-":
        at -= 1
        if at == start:
            return _is_separated(text, start)
    elif at == start or at - 1 in groups:
        return True
    return bool(unclosed) and unclosed[-1] == (at - 1, True)


def _is_separated(text: str, at: int) -> bool:
    return at == 0 or text[at - 1].isspace()


def _split(text: str, span: tuple[int, int], groups: Mapping[int, Token]) -> Iterator[Token]:
    """Split text without spaces and quotation marks at the parentheses that group."""
    begin, end = span
    may_exclude = _is_separated(text, begin)
    for at in (*_grouping(text, span, groups), end):
        if begin < at:
            word = text[begin:at]
            if may_exclude and _excludes(word, before_operand=_begins_operand(text, at, groups)):
                yield _MINUS
                word = word[1:]
                if word:
                    yield Token(Kind.WORD, word)
            else:
                yield Token(_OPERATORS.get(word, Kind.WORD), word)
        if at < end:
            yield groups[at]
            may_exclude = groups[at] is _OPEN
        begin = at + 1


def _grouping(text: str, span: tuple[int, int], groups: Mapping[int, Token]) -> Iterator[int]:
    found = (match.start() for match in _PARENTHESIS.finditer(text, *span)) if groups else iter(())
    return (at for at in found if at in groups)


def _excludes(word: str, *, before_operand: bool) -> bool:
    """Return whether a word begins with a minus that excludes."""
    return before_operand if word == "-" else word[0] == "-" and word[1] != "-"


def _begins_operand(text: str, at: int, groups: Mapping[int, Token]) -> bool:
    """Return whether a group or quoted text begins at a position."""
    return groups.get(at) is _OPEN or (text.startswith('"', at) and bool(_PIECE.match(text, at)))
