"""Grapheme clusters: where a text may be cut without splitting what a reader sees as a character.

The rules are those of Unicode (UAX #29, extended grapheme clusters) as the package ``regex``
implements them. A cluster is searched from at most ``_BEFORE`` characters before a position, so
that a hostile text, such as a million combining marks, takes no time.
"""

from __future__ import annotations

import re

import regex

_CLUSTER = regex.compile(r"\X")
_BEFORE = 100
"""Characters of a longer cluster after which it may be cut. A family of emoji has about 12, a
syllable of a script of India up to 20."""
_PLAIN = re.compile(r"[ -~](?=[ -~])")
"""A cluster begins after such a character."""
_CONTEXT = regex.compile(r"[\p{M}\u200d\U0001f1e6-\U0001f1ff]")
_FLAGS = "".join(map(chr, range(0x1F1E6, 0x1F200)))
"""Regional indicators: two of them are a flag, counted from the first of a row."""


def cluster_start(text: str, position: int) -> int:
    """Return the start of the cluster that contains ``position``; it itself if one begins there."""
    return _bounds(text, position)[0]


def cluster_end(text: str, position: int) -> int:
    """Return ``position`` if a cluster begins there, and else the end of the cluster around it."""
    start, end = _bounds(text, position)
    return position if start == position else end


def _bounds(text: str, position: int) -> tuple[int, int]:
    """Return start and end of the cluster that contains a position."""
    beside = text[max(position - 1, 0) : position + 1]
    if len(beside) < 2 or beside.isascii() or _decides(beside):
        return position, position
    last = min(position + _BEFORE, len(text))
    for match in _CLUSTER.finditer(text, _begin(text, position), last):
        if match.end() > position:
            return match.start(), match.end()
    return position, position


def _decides(beside: str) -> bool:
    """Return whether a cluster begins between two characters, whatever precedes them.

    Rules with more context (GB9c, GB11 to GB13) need a mark, a joiner or a regional indicator.
    """
    return bool(_CONTEXT.match(beside) is None and _CLUSTER.match(beside).end() == 1)


def _begin(text: str, position: int) -> int:
    """Return where a cluster begins before a position, as far as can be told from nearby."""
    first = max(position - _BEFORE, 0)
    begin = first
    for match in _PLAIN.finditer(text, first, position):
        begin = match.end()
    if begin == first:
        before = text[:first]
        begin -= (first - len(before.rstrip(_FLAGS))) % 2
    return begin
