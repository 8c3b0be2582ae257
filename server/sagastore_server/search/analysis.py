"""From text to terms: the one analysis that every backend indexes and searches by.

* What each character becomes, and which characters end a term: ``search.folding``.
* English endings are removed (Snowball's English stemmer, "porter2"). No word is
  left out as too common.
* A term has at most 100 characters: 400 bytes, far below PostgreSQL's limit
  of 2 KiB for a lexeme and FTS5's of 32 KiB.
* A text has at most MAX_TERMS terms, and at most MAX_DISTINCT_BYTES of different
  ones. The terms after the first that exceeds a bound are left out, on every
  backend: no word, phrase or prefix finds them, no score and no snippet counts
  them.

The time is proportional to the length of the text, and a long text of other than
ASCII characters is analysed in pieces (``_piece_ends``), because one call of
``normalize`` for a million characters would block every other thread.

Terms and their places come from one function, ``folding.fold``: ``tokenize`` applies it
to the text or to a piece of it, ``Places`` to the cells of a piece.

A change here, or of a pinned package, changes what is found: raise ANALYSIS_VERSION,
and every store is analysed again while it is served (docs/explanation/search.md).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import Stemmer

from sagastore_server.search.folding import cells, fold, is_reordered

ANALYSIS_VERSION = 3
"""Version of the analysis: of this module, of ``folding``, and of the packages ``unicodedata2`` and
``PyStemmer``. An index is only analysed again by a server with a greater version."""

MAX_TERM = 100

MAX_TERMS = 1_000_000
"""Terms of a text that are indexed. A text of the maximum length has more only if its characters
fold into several terms: U+FDFA alone becomes four words."""

MAX_DISTINCT_BYTES = 1_000_000
"""Bytes of the different terms of a text that are indexed, as UTF-8. A word of Latin letters
counts with its stem: twice its length, and one.

PostgreSQL refuses a ``tsvector`` with more than 1,048,575 bytes of lexemes (MAXSTRPOS in its
tsearch/ts_type.h); the lexemes of these terms never have more. A million characters of English
prose have about 0.3 MB."""

_ASCII_BELOW = MAX_DISTINCT_BYTES // 2
"""Length of an ASCII text below which it meets both bounds, whatever its words are."""
_OTHER_BELOW = MAX_DISTINCT_BYTES // 4
"""Length of a folded text below which it does: a character has at most four bytes."""

_PIECE = 4096
"""Characters after which a text is divided before the next separator. Folding so many takes less
than a millisecond, at most 30 ms where each becomes 18 (U+FDFA)."""
_LONGEST_PIECE = 4 * _PIECE
"""Characters after which a text without separators is divided, if need be within a word."""
WHOLE = 1000
"""Length up to which a text is not divided at all."""
_MOST_MARKS = 30
"""Combining marks after which a text is divided, as Unicode's Stream-Safe Text Format does (UAX
#15, section 13): a word with more of them becomes several terms. Sorting n of them, which
normalization does, takes time in proportion to n²."""
_BEFORE_A_PIECE = re.compile(
    r"[\t-/:-@\[-\]_{-\x7f\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\U0001f300-\U0001f3fa]"
)
"""Characters that end the term before them, and that no normalization joins to it: ASCII
separators, Han, Hangul and emoji."""

_MIN_STEM = 3
_CACHED_WORDS = 1 << 17
"""Far above the vocabulary of real text: 38,768 dialogue messages have 6,410 distinct words."""

_ASCII_WORD = re.compile("[a-z0-9]+")
_ASCII_FOLDED = bytes(ord(chr(code).lower()) if chr(code).isalnum() else 32 for code in range(128))
_ASCII_FOLDED += bytes(range(128, 256))
"""Of each byte of an ASCII text what it becomes; to split that takes a third of the time that
the expression takes."""


class _Stemmers(threading.local):
    """A stemmer for each thread: it works on its own attributes, so two threads spoil a word."""

    def __init__(self) -> None:
        self.english = Stemmer.Stemmer("english", 0)


_STEMMERS = _Stemmers()


class AnalyzedText(NamedTuple):
    """The terms of a text."""

    stems: list[str]
    """In the order of the text, with repetitions: what words and phrases match."""
    words: list[str]
    """Distinct terms as written, where their stem is another: prefixes match these too."""


def analyze(text: str) -> AnalyzedText:
    """Return the terms of ``text``."""
    return analyze_tokens(tokenize(text))


def analyze_tokens(tokens: list[str]) -> AnalyzedText:
    """Return the terms of a text with these tokens."""
    stems = list(map(stem, tokens))
    if stems == tokens:
        return AnalyzedText(stems, [])
    words = {token: None for token, stemmed in zip(tokens, stems, strict=True) if token != stemmed}
    return AnalyzedText(stems, list(words))


def tokenize(text: str) -> list[str]:
    """Return the folded tokens of ``text`` before stemming, in order, up to the bounds."""
    if text.isascii():
        tokens = text.encode().translate(_ASCII_FOLDED).decode().split()
        if len(text) <= MAX_TERM:
            return tokens
        small = len(text) < _ASCII_BELOW
    elif len(text) <= WHOLE:
        tokens, small = fold(text).split(), True
    else:
        tokens, size = _tokens_by_piece(text)
        small = size < _OTHER_BELOW
    if max(map(len, tokens), default=0) > MAX_TERM:
        tokens = [token[:MAX_TERM] for token in tokens]
    return tokens if small else _bounded(tokens)


def _tokens_by_piece(text: str) -> tuple[list[str], int]:
    """Return the tokens of a long text, and the length of the folded text."""
    tokens: list[str] = []
    size = start = 0
    for end in _piece_ends(text):
        folded = fold(text[start:end])
        tokens += folded.split()
        size += len(folded)
        start = end
        if len(tokens) > MAX_TERMS:
            break
    return tokens, size


def _piece_ends(text: str, start: int = 0) -> Iterator[int]:
    """Yield where each piece of a text ends, from the piece at ``start`` on.

    The tokens of a text are those of its pieces.
    """
    length = len(text)
    while length - start > WHOLE:
        end = min(start + _LONGEST_PIECE, length)
        end = _end_of_many_marks(text, start, end) or end
        found = _BEFORE_A_PIECE.search(text, start + _PIECE, end)
        start = found.start() if found else end
        yield start
    if start < length:
        yield length


def _end_of_many_marks(text: str, start: int, end: int) -> int:
    """Return where a piece of text must end because it has too many marks in a row; 0: nowhere."""
    one, many = _marks()
    # So many in a row have one at each such step, and most text has none there.
    if one.search(text[start:end:_MOST_MARKS]) is None:
        return 0
    found = many.search(text, start, end)
    return found.end() if found else 0


@lru_cache(maxsize=1)
def _marks() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the expressions of one combining mark, and of as many as normalization may sort."""
    one = f"[{''.join(filter(is_reordered, map(chr, range(0x300, 0x20000))))}]"
    return re.compile(one), re.compile(f"{one}{{{_MOST_MARKS}}}")


def _bounded(tokens: list[str]) -> list[str]:
    """Return the first tokens, as many as are indexed."""
    tokens = tokens[:MAX_TERMS]
    distinct = dict.fromkeys(tokens)
    room = MAX_DISTINCT_BYTES
    for token in distinct:
        room -= _bytes_of(token)
        if room < 0:
            return tokens[: tokens.index(token)]
    return tokens


def _bytes_of(token: str) -> int:
    """Return the most bytes that a token takes in an index, with its stem."""
    if token.isascii():
        return 2 * len(token) + 1 if token.isalpha() else len(token)
    return len(token.encode())


@lru_cache(maxsize=_CACHED_WORDS)
def stem(token: str) -> str:
    """Return the stem of a folded token; of other than English words the token."""
    if len(token) < _MIN_STEM or not (token.isascii() and token.isalpha()):
        return token
    stemmed: str = _STEMMERS.english.stemWord(token)
    return stemmed


def located(text: str) -> tuple[list[str], Places]:
    """Return the tokens of ``text``, as ``tokenize`` does, and where each of them stands.

    Tokens that come from one character, or are joined to it, stand where it does.
    """
    tokens = tokenize(text)
    return tokens, Places(text, len(tokens))


class Places:
    """Where the tokens of a text stand: (start, end) of each, in order.

    Finding this takes several times as long as finding the tokens, so it is done on demand.
    """

    def __init__(self, text: str, count: int) -> None:
        """Find where the first ``count`` tokens of ``text`` stand."""
        self._text = text
        self._count = count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of each token."""
        return islice(self._from(0), self._count)

    def near(self, token: int) -> tuple[int, Iterator[tuple[int, int]]]:
        """Return the number of a token not after ``token``, and where it and the next ones stand.

        Of a long text that is not ASCII, the part before it is not searched.
        """
        if len(self._text) <= WHOLE or self._text.isascii():
            return 0, self._from(0)
        first = start = 0
        for end in _piece_ends(self._text):
            count = len(fold(self._text[start:end]).split())
            if first + count > token:
                break
            first += count
            start = end
        return first, self._from(start)

    def _from(self, start: int) -> Iterator[tuple[int, int]]:
        """Yield where the tokens from the piece at ``start`` on stand."""
        if self._text.isascii():
            return map(re.Match.span, _ASCII_WORD.finditer(self._text.lower()))
        return self._by_piece(start)

    def _by_piece(self, start: int) -> Iterator[tuple[int, int]]:
        for end in _piece_ends(self._text, start):
            for first, last in _spans(self._text[start:end]):
                yield start + first, start + last
            start = end


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the cells that each token of ``fold(text)`` comes from."""
    begun = None
    last = 0
    for start, end, folded in cells(text):
        if " " not in folded:
            if folded:
                begun = start if begun is None else begun
                last = end
            continue
        for index, part in enumerate(folded.split(" ")):
            if index and begun is not None:
                yield begun, last
                begun = None
            if part:
                begun = start if begun is None else begun
                last = end
    if begun is not None:
        yield begun, last
