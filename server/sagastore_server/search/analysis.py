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

A change here changes what is found: raise ANALYSIS_VERSION, and every store
rebuilds its index when it opens.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import Stemmer

ANALYSIS_VERSION = 1
FINGERPRINT = f"{ANALYSIS_VERSION}/snowball-english-3.1/unicode-{unicodedata.unidata_version}"
"""What an index was built by. The Unicode tables are Python's own."""

MAX_TERM = 100
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
    """Return the folded tokens of ``text`` before stemming, in order."""
    if text.isascii():
        tokens = text.encode().translate(_ASCII_FOLDED).decode().split()
        if len(text) <= MAX_TERM:
            return tokens
    else:
        tokens = unicodedata.normalize("NFKC", text).translate(_FOLD).split(" ")
        tokens = [token for token in tokens if token]
    if max(map(len, tokens), default=0) > MAX_TERM:
        tokens = [token[:MAX_TERM] for token in tokens]
    return tokens


@lru_cache(maxsize=_CACHED_WORDS)
def stem(token: str) -> str:
    """Return the stem of a folded token; of other than English words the token."""
    if len(token) < _MIN_STEM or not (token.isascii() and token.isalpha()):
        return token
    stemmed: str = _STEMMERS.english.stemWord(token)
    return stemmed


def is_single(token: str) -> bool:
    """Tell whether ``token`` is a character that is a term of its own."""
    return len(token) == 1 and not token.isascii() and _stands_alone(token)


def located(text: str) -> tuple[list[str], Iterator[tuple[int, int]]]:
    """Return the tokens of ``text``, and where each of them stands: (start, end), in order.

    Tokens that come from one character, or are joined to it, stand where it does.
    """
    if text.isascii():
        return tokenize(text), map(re.Match.span, _ASCII_WORD.finditer(text.lower()))
    found = [
        (token, (start, end))
        for start, end in _each_span(text)
        for token in tokenize(text[start:end])
    ]
    return [token for token, _ in found], (place for _, place in found)


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

    A space separates; a character between spaces is a term of its own; an empty
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
