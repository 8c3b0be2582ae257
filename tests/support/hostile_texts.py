"""Texts of the maximum length that are hard to index."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from sagastore_server.storage.validation import MAX_CONTENT

LAST = "zebra"
"""Last word of every text; of no other."""


def _words(alphabet: str, length: int) -> Iterator[str]:
    """Yield distinct words."""
    return map("".join, itertools.product(alphabet, repeat=length))


def _ending(text: str) -> str:
    """Return the text, cut to the maximum length, with the last word."""
    return f"{text[: MAX_CONTENT - len(LAST) - 1]} {LAST}"


def _joined(words: Iterator[str]) -> str:
    kept, length = [], 0
    while length < MAX_CONTENT:
        kept.append(next(words))
        length += len(kept[-1]) + 1
    return _ending(" ".join(kept))


_TIBETAN = "\u0f77\u0f79"
"""Letters that fold to three characters of three bytes."""

WITHIN = {
    "prose": lambda: _ending("the quick brown foxes were jumping over lazy dogs, again; " * 20_000),
    "hexadecimal": lambda: _joined(f"{number:012x}" for number in itertools.count()),
    "one huge word": lambda: _ending("a" * MAX_CONTENT),
    "one huge accented word": lambda: _ending("é" * MAX_CONTENT),
    "han": lambda: _ending("".join(chr(code) for code in range(0x4E00, 0x9FA0)) * 60),
    "emoji": lambda: _ending("\U0001f680" * MAX_CONTENT),
    "accents": lambda: _ending("e" + "\u0301\u0323" * (MAX_CONTENT // 2)),
    "letters' marks": lambda: _ending("\u0928" + "\u093c\u094d" * (MAX_CONTENT // 2)),
    "separators": lambda: _ending("-" * MAX_CONTENT),
    "Thai": lambda: _ending("สวัสดีครับ" * 100_000),
}
"""Texts within the bounds of the index."""

BEYOND = {
    "stemmed words": lambda: _joined(word + "ing" for word in _words("bcdfgklmnp", 6)),
    "Cyrillic words": lambda: _joined(_words("абвгдежзик", 6)),
    "long words": lambda: _joined(f"{n:06}" + "\U00010400" * 94 for n in itertools.count()),
    "expanding": lambda: _joined("".join(word) for word in _words(_TIBETAN, 18)),
    "ligatures": lambda: _ending("\ufdfa" * MAX_CONTENT),
}
"""Texts beyond a bound of the index, whose last word is not indexed."""
