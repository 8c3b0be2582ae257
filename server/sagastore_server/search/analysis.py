"""From text to terms: the one analysis that every backend indexes and searches by.

* Case and accents are folded, compatibility forms unified (NFKC): ``Café`` and
  ``cafe`` are one term. Vowel signs of Indic scripts and voicing marks of kana
  are letters' parts, not accents, and stay.
* A term is a run of letters and digits. Everything else separates, so
  ``foo_bar`` is two terms side by side.
* In scripts written without spaces (Han, kana, Hangul, Thai, Lao, Khmer,
  Burmese) every character is a term, and so is every emoji or other symbol of
  the Unicode category So. A word of such a script is a phrase of its characters.
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
``unicodedata.normalize`` for a million characters would block every other thread.

A change here changes what is found: raise ANALYSIS_VERSION, and every store
rebuilds its index when it opens.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice, repeat
from typing import NamedTuple

import Stemmer

ANALYSIS_VERSION = 2
FINGERPRINT = f"{ANALYSIS_VERSION}/snowball-english-3.1/unicode-{unicodedata.unidata_version}"
"""What an index was built by. The Unicode tables are Python's own."""

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

_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1100, 0x11FF),  # Hangul jamo
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # ideographic iteration mark, closing mark, zero
    (0x3021, 0x3029),  # Hangzhou numerals
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3100, 0x318F),  # Bopomofo, Hangul compatibility jamo
    (0x31A0, 0x31FF),  # Bopomofo extended, Katakana phonetic extensions
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xA960, 0xA97F),  # Hangul jamo extended A
    (0xAC00, 0xD7FF),  # Hangul syllables, jamo extended B
    (0xF900, 0xFAFF),  # Han compatibility
    (0x1AFF0, 0x1B16F),  # Kana supplements
    (0x20000, 0x3FFFF),  # Han, extensions B and later
)


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
        tokens, small = _folded(text).split(), True
    else:
        tokens, size = _tokens_by_piece(text)
        small = size < _OTHER_BELOW
    if max(map(len, tokens), default=0) > MAX_TERM:
        tokens = [token[:MAX_TERM] for token in tokens]
    return tokens if small else _bounded(tokens)


def _folded(text: str) -> str:
    """Return the tokens of a piece of text, with spaces between them and elsewhere."""
    return unicodedata.normalize("NFKC", text).translate(_FOLD)


def _tokens_by_piece(text: str) -> tuple[list[str], int]:
    """Return the tokens of a long text, and the length of the folded text."""
    tokens: list[str] = []
    size = start = 0
    for end in _piece_ends(text):
        folded = _folded(text[start:end])
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
    # By what they decompose to: some have no combining class but decompose to marks that do.
    marks = (
        chr(code)
        for code in range(0x300, 0x20000)
        if unicodedata.combining(unicodedata.normalize("NFKD", chr(code))[0])
    )
    one = f"[{''.join(marks)}]"
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


def is_single(token: str) -> bool:
    """Tell whether ``token`` is a character that is a separate term."""
    return len(token) == 1 and not token.isascii() and _stands_alone(token)


def located(text: str) -> tuple[list[str], Places]:
    """Return the tokens of ``text``, and where each of them stands.

    Tokens that come from one character, or are joined to it, stand where it does.
    """
    if text.isascii() or len(text) > WHOLE:
        tokens = tokenize(text)
        return tokens, Places(text, len(tokens))
    found = list(_spans_and_tokens(text))
    known = [span for span, tokens in found for _ in tokens]
    return [token for _, tokens in found for token in tokens], Places(text, len(known), known)


class Places:
    """Where the tokens of a text stand: (start, end) of each, in order.

    Finding this takes several times as long as finding the tokens, so it is done on demand.
    """

    def __init__(
        self, text: str, count: int, known: Sequence[tuple[int, int]] | None = None
    ) -> None:
        """Find where the first ``count`` tokens of ``text`` stand, unless that is ``known``."""
        self._text = text
        self._count = count
        self._known = known

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of each token."""
        return islice(self._from(0), self._count)

    def near(self, token: int) -> tuple[int, Iterator[tuple[int, int]]]:
        """Return the number of a token not after ``token``, and where it and the next ones stand.

        Of a long text that is not ASCII, the part before it is not searched.
        """
        if self._known is not None or self._text.isascii():
            return 0, self._from(0)
        first = start = 0
        for end in _piece_ends(self._text):
            count = len(_folded(self._text[start:end]).split())
            if first + count > token:
                break
            first += count
            start = end
        return first, self._from(start)

    def _from(self, start: int) -> Iterator[tuple[int, int]]:
        """Yield where the tokens from the piece at ``start`` on stand."""
        if self._known is not None:
            return iter(self._known)
        if self._text.isascii():
            return map(re.Match.span, _ASCII_WORD.finditer(self._text.lower()))
        return self._by_piece(start)

    def _by_piece(self, start: int) -> Iterator[tuple[int, int]]:
        for end in _piece_ends(self._text, start):
            piece = self._text[start:end]
            places: list[tuple[int, int]] = []
            for (first, last), tokens in _spans_and_tokens(piece):
                places += repeat((start + first, start + last), len(tokens))
            # Characters that join others only after they are folded can make the numbers differ;
            # then the places of this piece are inexact, and those of the next are not.
            count = len(_folded(piece).split())
            yield from places[:count]
            yield from repeat(places[-1] if places else (start, end), count - len(places))
            start = end


def _spans_and_tokens(text: str) -> Iterator[tuple[tuple[int, int], list[str]]]:
    for start, end in _each_span(text):
        yield (start, end), tokenize(text[start:end])


def _each_span(text: str) -> Iterator[tuple[int, int]]:
    """Yield the stretches that, each for itself, have the tokens that they have in ``text``."""
    start = -1
    for index, char in enumerate(text):
        folded = _FOLD[ord(char)]
        if folded == "" or (folded != " " and folded[0] != " "):
            if start < 0 and folded:
                start = index
            continue
        if start >= 0:
            yield start, index
            start = -1
        if folded != " ":
            yield index, index + 1
    if start >= 0:
        yield start, len(text)


class _Fold(dict[int, str]):
    """What becomes of each character; filled in as characters are met.

    A space separates; a character between spaces is a separate term; an empty
    string joins what stands beside it.
    """

    def __missing__(self, code: int) -> str:
        folded = _fold(chr(code))
        self[code] = folded
        return folded


def _fold(char: str) -> str:
    if _stands_alone(char):
        # Compatibility forms of one character may fold to several: half-width kana
        # to kana, squared Latin to words.
        return "".join(f" {part} " for part in unicodedata.normalize("NFKC", char) if part.strip())
    decomposed = unicodedata.normalize("NFKD", char.casefold())
    kept = "".join(part for part in decomposed if not _is_accent(part)).casefold()
    if not kept:
        return ""
    if any(not _in_token(part) for part in kept):
        return "" if unicodedata.category(char) in {"Sk", "Cf"} else " "
    return unicodedata.normalize("NFKC", kept)


def _stands_alone(char: str) -> bool:
    code = ord(char)
    if code < _UNSPACED[0][0]:
        return False
    if any(low <= code <= high for low, high in _UNSPACED):
        return unicodedata.category(char)[0] in "LNM"
    return unicodedata.category(char) == "So"


def _in_token(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char)[0] in "LNM"


def _is_accent(char: str) -> bool:
    """Tell an accent, or an optional point of Hebrew or Arabic, by its combining class.

    Classes 6 to 9 (nukta, voicing, virama), 84 to 132 (vowel signs) and 0 belong
    to their letter; UnicodeData.txt, Canonical_Combining_Class.
    """
    combining = unicodedata.combining(char)
    return combining == 1 or 10 <= combining <= 36 or 200 <= combining <= 240


_FOLD = _Fold()
