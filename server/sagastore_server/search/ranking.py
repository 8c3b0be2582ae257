"""How well a message matches, and the extract that shows why.

The score depends on the query and the message alone, not on the other messages:
so it is the same on every backend, and a message keeps its place while others
are written, which paging relies on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, islice
from typing import NamedTuple

from sagastore_server.search.analysis import (
    AnalyzedText,
    Places,
    analyze_tokens,
    located,
    stem,
    tokenize,
)
from sagastore_server.search.clusters import cluster_end, cluster_start
from sagastore_server.storage.query import Leaf, Phrase, Prefix, TextQuery

MARK_START = "\x02"
MARK_END = "\x03"
SNIPPET_LENGTH = 200
"""Characters of the content in an extract, about."""

SATURATION = 1.2
LENGTH_WEIGHT = 0.75
USUAL_LENGTH = 40
"""Terms of a usual message. BM25 takes the mean of the collection here, and would
let every write move every score. k1 = 1.2 and b = 0.75 are BM25's customary values
(Robertson and Zaragoza, 2009)."""

_FEW = 4
_LEAD = 40
_UNMARKED = str.maketrans({MARK_START: None, MARK_END: None, "\n": " ", "\r": " ", "\t": " "})


class _Look(NamedTuple):
    """What is looked for, worked out once for all messages."""

    leaves: tuple[Leaf, ...]
    phrases: dict[str, list[tuple[str, ...]]]
    """By their last term; a word is a phrase of one."""
    prefixes: tuple[str, ...]
    words: tuple[str, ...]
    """The terms, where few words and nothing else is looked for, as mostly."""
    longest: int
    """Terms of the longest phrase."""


def score(query: TextQuery, content: str) -> float:
    """Return how well ``content`` matches, 0 or greater.

    Each wanted word or phrase counts by how often it occurs, with diminishing
    returns, against the length of the message.
    """
    look = _look(query)
    return _score(look, _terms(look, tokenize(content)))


def snippet(query: TextQuery | None, content: str) -> str:
    """Return an extract of ``content`` around the first match, matches marked."""
    if query is None:
        return _extract(content, [])
    tokens, places = located(content)
    return _extract(content, _marks(_look(query), tokens, list(map(stem, tokens)), places))


def score_and_snippet(query: TextQuery | None, content: str) -> tuple[float, str]:
    """Return both in less time than one by one; without a query the score is 0."""
    if query is None:
        return 0.0, _extract(content, [])
    look = _look(query)
    tokens, places = located(content)
    terms = _terms(look, tokens)
    return _score(look, terms), _extract(content, _marks(look, tokens, terms.stems, places))


@lru_cache(maxsize=64)
def _look(query: TextQuery) -> _Look:
    leaves = query.wanted
    phrases: dict[str, list[tuple[str, ...]]] = {}
    for leaf in leaves:
        if isinstance(leaf, Phrase):
            phrases.setdefault(leaf.terms[-1], []).append(leaf.terms)
    prefixes = tuple(leaf.text for leaf in leaves if isinstance(leaf, Prefix))
    single = tuple(
        leaf.terms[0] for leaf in leaves if isinstance(leaf, Phrase) and len(leaf.terms) == 1
    )
    words = single if len(single) == len(leaves) <= _FEW else ()
    longest = max((len(leaf.terms) for leaf in leaves if isinstance(leaf, Phrase)), default=1)
    return _Look(leaves, phrases, prefixes, words, longest)


def _terms(look: _Look, tokens: list[str]) -> AnalyzedText:
    # Only prefixes look at words as they were written, and those take as long as the rest.
    return analyze_tokens(tokens) if look.prefixes else AnalyzedText(list(map(stem, tokens)), [])


def _score(look: _Look, terms: AnalyzedText) -> float:
    stems = terms.stems
    norm = SATURATION * (1 - LENGTH_WEIGHT + LENGTH_WEIGHT * len(stems) / USUAL_LENGTH)
    counts = map(stems.count, look.words) if look.words else _counts(terms, look.leaves)
    total = 0.0
    for times in counts:
        if times:
            total += times * (SATURATION + 1) / (times + norm)
    return rounded(total)


def rounded(value: float) -> float:
    """Return a score with six decimals.

    By operations that databases have as well, with the same result to the bit: ``round`` to an
    integer gives the even one at a half, as IEEE 754 does. ``round(value, 6)`` has the same result
    but for some values whose product with 1e6 is rounded to a half.
    """
    return round(value * 1e6) / 1e6


def _counts(terms: AnalyzedText, wanted: tuple[Leaf, ...]) -> Iterator[int]:
    stems = terms.stems
    # Counting all terms takes longer than looking for a few of them, and no longer for many.
    single = Counter(stems).__getitem__ if len(wanted) > _FEW else stems.count
    phrases = any(isinstance(leaf, Phrase) and len(leaf.terms) > 1 for leaf in wanted)
    joined = f" {' '.join(stems)} " if phrases else ""
    for leaf in wanted:
        if isinstance(leaf, Phrase):
            if len(leaf.terms) == 1:
                yield single(leaf.terms[0])
            else:
                yield joined.count(f" {' '.join(leaf.terms)} ")
        else:
            matching = sum(term.startswith(leaf.text) for term in stems)
            yield matching or sum(word.startswith(leaf.text) for word in terms.words)


def _extract(content: str, marks: list[tuple[int, int]]) -> str:
    if not content.isascii():
        marks = [(cluster_start(content, one), cluster_end(content, two)) for one, two in marks]
    begin = max(marks[0][0] - _LEAD, 0) if marks else 0
    if begin:
        begin = cluster_start(content, content.rfind(" ", 0, begin) + 1 or begin)
    # A cluster that is longer than an extract has to be cut.
    limit = begin + SNIPPET_LENGTH
    end = cluster_start(content, min(limit, len(content)))
    end = end if end > begin else limit
    parts = ["…"] if begin else []
    at = begin
    for first, last in marks:
        # Matches may share a cluster. A word may be as long as the content; its extract must not.
        start, stop = max(first, at), min(last, end)
        if start < stop:
            parts += [_plain(content[at:start]), MARK_START, _plain(content[start:stop]), MARK_END]
            at = stop
    parts.append(_plain(content[at:end]))
    if max(at, end) < len(content):
        parts.append("…")
    return "".join(parts)


def _plain(text: str) -> str:
    # What goes, or becomes a space, is never printable; to look takes a tenth of the time.
    return text if text.isprintable() else text.translate(_UNMARKED)


def _marks(
    look: _Look, tokens: list[str], stems: list[str], places: Places
) -> list[tuple[int, int]]:
    """Return the stretches that match, from the first one to where its extract must end."""
    matches = _matches(look, tokens, stems)
    first = next(matches, None)
    if first is None:
        return []
    base, each_place = places.near(max(0, first[0] + 1 - look.longest))
    found: list[tuple[int, int]] = []
    matched: set[tuple[int, int]] = set()
    limit = None
    for index, lengths in chain((first,), matches):
        at = index - base
        found += islice(each_place, at + 1 - len(found))
        if at >= len(found) or (limit is not None and found[at][0] >= limit):
            break
        for length in lengths:
            matched.update(found[at + 1 - length : at + 1])
        limit = found[at][0] + SNIPPET_LENGTH if limit is None else limit
    return sorted(matched)


def _matches(look: _Look, tokens: list[str], stems: list[str]) -> Iterator[tuple[int, list[int]]]:
    """Yield the last token of each thing found, and the numbers of tokens it has."""
    for index in _ends(look, tokens, stems):
        lengths = _lengths(look, tokens, stems, index)
        if lengths:
            yield index, lengths


def _ends(look: _Look, tokens: list[str], stems: list[str]) -> Iterator[int]:
    """Yield which tokens may be the last of something that is looked for."""
    phrases, prefixes = look.phrases, look.prefixes
    if not prefixes:
        return (index for index, term in enumerate(stems) if term in phrases)
    return (
        index
        for index, (token, term) in enumerate(zip(tokens, stems, strict=True))
        if term in phrases or token.startswith(prefixes) or term.startswith(prefixes)
    )


def _lengths(look: _Look, tokens: list[str], stems: list[str], index: int) -> list[int]:
    """Return how many tokens each of what is looked for has that ends with this one."""
    found = []
    for terms in look.phrases.get(stems[index], ()):
        length = len(terms)
        if length == 1 or tuple(stems[max(0, index + 1 - length) : index + 1]) == terms:
            found.append(length)
    prefixes = look.prefixes
    if prefixes and (tokens[index].startswith(prefixes) or stems[index].startswith(prefixes)):
        found.append(1)
    return found
