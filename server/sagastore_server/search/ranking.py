"""How well a message matches, and the extract that shows why.

The score depends on the query and the message alone, not on the other messages:
so it is the same on every backend, and a message keeps its place while others
are written, which paging relies on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from sagastore_server.search.analysis import Terms, analyse, each_token, stem, tokenize
from sagastore_server.storage.query import Leaf, Phrase, Prefix, TextQuery

MARK_START = "\x02"
MARK_END = "\x03"
SNIPPET_LENGTH = 200
"""Characters of the content in an extract, about."""

_SATURATION = 1.2
_LENGTH_WEIGHT = 0.75
_USUAL_LENGTH = 40
"""Terms of a usual message. BM25 takes the mean of the collection here, and would
let every write move every score. k1 = 1.2 and b = 0.75 are BM25's customary values
(Robertson and Zaragoza, 2009)."""

_FEW = 4
_LEAD = 40
_UNMARKED = str.maketrans({MARK_START: None, MARK_END: None, "\n": " ", "\r": " ", "\t": " "})


def score(query: TextQuery, content: str) -> float:
    """Return how well ``content`` matches, 0 or greater.

    Each wanted word or phrase counts by how often it occurs, with diminishing
    returns, against the length of the message.
    """
    wanted = query.wanted
    # Only prefixes look at words as they were written, and those take as long as the rest.
    prefixes = any(isinstance(leaf, Prefix) for leaf in wanted)
    terms = analyse(content) if prefixes else Terms(list(map(stem, tokenize(content))), [])
    length = len(terms.stems)
    norm = _SATURATION * (1 - _LENGTH_WEIGHT + _LENGTH_WEIGHT * length / _USUAL_LENGTH)
    count = _counter(terms, wanted)
    total = 0.0
    for leaf in wanted:
        times = count(leaf)
        total += times * (_SATURATION + 1) / (times + norm) if times else 0.0
    return round(total, 6)


def _counter(terms: Terms, wanted: tuple[Leaf, ...]) -> Callable[[Leaf], int]:
    stems = terms.stems
    # Counting all terms takes longer than looking for a few of them, and no longer for many.
    single = Counter(stems).__getitem__ if len(wanted) > _FEW else stems.count
    phrases = any(isinstance(leaf, Phrase) and len(leaf.terms) > 1 for leaf in wanted)
    joined = f" {' '.join(stems)} " if phrases else ""

    def count(leaf: Leaf) -> int:
        if isinstance(leaf, Phrase):
            if len(leaf.terms) == 1:
                return single(leaf.terms[0])
            return joined.count(f" {' '.join(leaf.terms)} ")
        text = leaf.text
        matching = sum(term.startswith(text) for term in stems)
        return matching or sum(word.startswith(text) for word in terms.words)

    return count


def snippet(query: TextQuery | None, content: str) -> str:
    """Return an extract of ``content`` around the first match, matches marked."""
    wanted = query.wanted if query else ()
    marks = _marks(wanted, content) if wanted else []
    begin = max(marks[0][0] - _LEAD, 0) if marks else 0
    if begin:
        begin = content.rfind(" ", 0, begin) + 1 or begin
    end = min(begin + SNIPPET_LENGTH, len(content))
    parts = ["…"] if begin else []
    at = begin
    for start, stop in marks:
        if start >= end:
            break
        # A word may be as long as the whole content; its extract must not be.
        at, before = min(stop, end), at
        parts += [_plain(content[before:start]), MARK_START, _plain(content[start:at]), MARK_END]
    parts.append(_plain(content[at:end]))
    if max(at, end) < len(content):
        parts.append("…")
    return "".join(parts)


def _plain(text: str) -> str:
    return text.translate(_UNMARKED)


def _marks(wanted: tuple[Leaf, ...], content: str) -> list[tuple[int, int]]:
    """Return the stretches that match, from the first one to where its extract must end."""
    by_last_term: dict[str, list[tuple[str, ...]]] = {}
    for leaf in wanted:
        if isinstance(leaf, Phrase):
            by_last_term.setdefault(leaf.terms[-1], []).append(leaf.terms)
    prefixes = tuple(leaf.text for leaf in wanted if isinstance(leaf, Prefix))
    matched: set[tuple[int, int]] = set()
    seen: list[tuple[str, tuple[int, int]]] = []
    end = len(content)
    for token, place in each_token(content):
        if place[0] >= end:
            break
        stemmed = stem(token)
        seen.append((stemmed, place))
        if prefixes and (token.startswith(prefixes) or stemmed.startswith(prefixes)):
            matched.add(place)
        if stemmed in by_last_term:
            for terms in by_last_term[stemmed]:
                matched.update(_completed(terms, seen))
        if matched:
            end = min(end, place[0] + SNIPPET_LENGTH)
    return sorted(matched)


def _completed(
    terms: tuple[str, ...], seen: list[tuple[str, tuple[int, int]]]
) -> list[tuple[int, int]]:
    """Return where the words of a phrase stand, if they are the last ones seen."""
    last = seen[-len(terms) :]
    if tuple(term for term, _ in last) != terms:
        return []
    return [place for _, place in last]
