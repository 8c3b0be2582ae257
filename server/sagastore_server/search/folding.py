"""Folding of characters: what each character of a text becomes before the text is split into terms.

``fold`` returns tokens with spaces between them. The rules, by the general category of a character
in canonically composed text (NFC), *before* compatibility forms are unified:

* A letter (L), decimal digit (Nd) or mark (M) is part of a token; any other character is a border.
* A border that has a compatibility form with a letter or digit is a separate token, and never
  part of the word beside it: ``™`` is ``tm``, ``¹`` is ``1``, ``½`` is ``1`` and ``2``, ``№`` is
  ``no``. So are numbers that are no decimal digits (Nl, No), emoji and other symbols (So).
* Case and accents are folded. Vowel signs of Indic scripts and voicing marks of kana are parts of
  letters, no accents, and stay. Latin letters without a decomposition become the letters that their
  Unicode names are made of: ``ł`` is ``l``, ``ø`` is ``o``, ``þ`` is ``th``, ``æ`` is ``ae``.
* Decimal digits of all scripts are ASCII digits: ``٣`` is ``3``.
* In scripts written without spaces (Han, kana, Hangul, Thai, Lao, Khmer, Burmese) every letter and
  every mark is a token.
* Variation selectors, enclosing marks (Me) and the combining grapheme joiner are dropped; a keycap
  is a border. A joiner
  (ZWJ, ZWNJ) is dropped where it shapes letters: after a virama (RFC 5892, A.1 and A.2) and in
  Arabic and other cursive scripts. Elsewhere, as in a sequence of emoji, it is a border.
* U+02BC is the apostrophe: a border, as U+0027 and U+2019 are.

The Unicode data is that of the package ``unicodedata2``, at an exact version, so the terms do not
depend on the version of Python.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import unicodedata2 as ucd

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

_SYMBOLS = _UNSPACED[0][0]
"""Code point below which a symbol such as ``©`` or ``°`` is a mere border."""

_BORDERS = frozenset("\u02bc\u20e3")
"""The modifier letter apostrophe, and the keycap."""
_DROPPED = frozenset(
    map(chr, (0x034F, *range(0x180B, 0x180E), 0x180F, *range(0xFE00, 0xFE10)))
) | frozenset(map(chr, range(0xE0100, 0xE01F0)))
"""The combining grapheme joiner, and the variation selectors (PropList.txt)."""

_COMPOSES, _DEPENDS = "\0", "\1"
"""Stand for characters that ``fold`` cannot look up alone: those that normalization may change, and
those whose meaning depends on the characters beside them."""
_FIRST = 64
"""Characters that are looked at before the others."""

_JOINERS = "\u200c\u200d"
_CURSIVE = (
    "\u0600-\u06ff\u0700-\u074f\u0750-\u077f\u07c0-\u07ff\u0840-\u08ff\u1807-\u18af\ua840-\ua87f"
    "\ufb50-\ufdff\ufe70-\ufefc\U00010ac0-\U00010aff\U00010d00-\U00010d3f\U00010f30-\U00010fdf"
    "\U0001e900-\U0001e95f"
)
"""Blocks of the scripts whose letters join (ArabicShaping.txt)."""

_HALVES = re.compile(
    "[\u3041-\u30ff\u3131-\u314e\uff66-\uff9d\uffa1-\uffbe]"
    "[\u3099\u309a\u314f-\u3163\uff9e\uff9f\uffc2-\uffdc]"
)
"""Two characters that only their compatibility forms join: half-width kana with its voicing mark,
and letters of Hangul that stand for a syllable."""
_LATTER = "\u314f-\u3163\uff9e\uff9f\uffc2-\uffdc"
_PECULIAR = re.compile(f"[{_JOINERS}{_LATTER}\u3099\u309a]")

_VIRAMA = 9
"""Combining class of viramas."""

_LATIN = re.compile(
    "LATIN SMALL (?:LETTER|LIGATURE) (?:BARRED |DOTLESS |INSULAR |LONG |VOLAPUK )?([A-Z]{1,2})"
    "(?: BAR| DIGRAPH)?(?: WITH .*)?"
)
"""Names of letters that are one or two letters of the alphabet, perhaps with a stroke or a hook.
Names never change (Unicode Character Encoding Stability Policies)."""
_NAMED = {"\N{LATIN SMALL LETTER ETH}": "d", "\N{LATIN SMALL LETTER THORN}": "th"}
_NAMED |= {"\N{LATIN SMALL LETTER KRA}": "q", "\N{LATIN SMALL LETTER ENG}": "n"}
"""Latin letters whose names are words, as in the transform Latin-ASCII of CLDR."""


def fold(text: str) -> str:
    """Return the tokens of a text in order, with spaces between them and elsewhere.

    The result is the concatenation of the results for the ``cells`` of the text.
    """
    # Most texts are composed. That a text is not shows in its first characters, as a rule.
    folded = text[:_FIRST].translate(_QUICK)
    if _COMPOSES not in folded and _DEPENDS not in folded:
        folded += text[_FIRST:].translate(_QUICK)
        if _COMPOSES not in folded and _DEPENDS not in folded:
            return folded
    text = ucd.normalize("NFC", text)
    if _PECULIAR.search(text) is not None:
        text = _context().shaping.sub("", text)
        text = _HALVES.sub(_unified, text)
    return text.translate(_FOLD)


def cells(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and ``fold`` of the shortest parts of a text that fold independently.

    Such a part is a character with those that normalization may join to it, or that depend on it.
    """
    for match in _context().cell.finditer(text):
        start, end = match.span()
        char = text[start]
        yield start, end, _FOLD[ord(char)] if end == start + 1 else fold(match[0])


def is_single(token: str) -> bool:
    """Return whether ``token`` is a character that is a token wherever it stands."""
    return len(token) == 1 and _FOLD[ord(token)] == f" {token} "


def is_reordered(char: str) -> bool:
    """Return whether normalization may sort a character among the ones before it.

    Some have no combining class but decompose to marks that do.
    """
    return bool(ucd.combining(char) or ucd.combining(ucd.normalize("NFKD", char)[0]))


class _Context(NamedTuple):
    """Expressions for what depends on the character before."""

    shaping: re.Pattern[str]
    """Joiners that shape letters."""
    cell: re.Pattern[str]
    """See ``cells``."""


@lru_cache(maxsize=1)
def _context() -> _Context:
    marks = [char for char in map(chr, range(0x300, 0x20000)) if is_reordered(char)]
    viramas = [char for char in marks if ucd.combining(char) == _VIRAMA]
    shaping = re.compile(f"(?<=[{''.join(viramas)}{_CURSIVE}])[{_JOINERS}]+")
    latter = "".join(sorted({*marks, *_composed(), *_JOINERS}))
    return _Context(shaping, re.compile(f"(?s:.)[{latter}{_LATTER}]*"))


@lru_cache(maxsize=1)
def _composed() -> frozenset[str]:
    """Return the characters that NFC may join to the character before (NFC_Quick_Check=Maybe)."""
    found = set(map(chr, (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))))  # Hangul
    for char in map(chr, (*range(0xC0, 0x3100), *range(0x11000, 0x17000))):
        parts = ucd.decomposition(char).split()
        if len(parts) == 2 and parts[0][0] != "<":
            found.add(chr(int(parts[1], 16)))
    return frozenset(found)


def _unified(match: re.Match[str]) -> str:
    composed: str = ucd.normalize("NFKC", match[0])
    return composed


class _Fold(dict[int, str]):
    """What each character of composed text becomes; filled in as characters are met.

    A space is a border; a character between spaces is a separate token; an empty string joins
    the characters beside it.
    """

    def __missing__(self, code: int) -> str:
        folded = _folded(chr(code))
        self[code] = folded
        return folded


class _Quick(dict[int, str]):
    """As ``_Fold``, but ``_COMPOSES`` or ``_DEPENDS`` for what it cannot decide."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        folded = _COMPOSES if _may_change(char) else _FOLD[code]
        self[code] = _DEPENDS if _PECULIAR.match(char) else folded
        return self[code]


def _may_change(char: str) -> bool:
    """Return whether normalization may change or move a character, and that shows in the tokens.

    Marks must be in canonical order, unless they are dropped. A virama sorts before the others.
    """
    if ucd.normalize("NFC", char) != char or char in _composed():
        return True
    return ucd.combining(char) not in {0, _VIRAMA} and bool(_FOLD[ord(char)])


def _folded(char: str) -> str:
    category = ucd.category(char)
    if char in _DROPPED or (category == "Me" and char not in _BORDERS):
        return ""
    if char not in _BORDERS and category[0] in "LM":
        return _letters(char)
    if category == "Nd":
        return str(ucd.decimal(char))
    return _border(char, category)


def _border(char: str, category: str) -> str:
    """Return what a character becomes that ends the token before it."""
    forms = ucd.normalize("NFKC", char)
    if forms != char and any(_is_letter_or_digit(form) for form in forms):
        return f" {fold(forms)} "
    if category in {"Nl", "No"} or (category == "So" and ord(char) >= _SYMBOLS):
        return f" {char} "
    return " "


def _letters(char: str) -> str:
    """Return what a letter or mark becomes."""
    decomposed = ucd.normalize("NFKD", _lower(char))
    kept = "".join(part for part in decomposed if not _is_accent(part)).casefold()
    folded = "".join(map(_without_stroke, ucd.normalize("NFKC", kept)))
    return "".join(map(_within_letters, folded))


def _lower(char: str) -> str:
    """Return the case folding of a character, also if Python's Unicode data is older.

    Case folding of a character never changes once it is assigned.
    """
    folded = char.casefold()
    if folded == char and ucd.category(char) == "Lu":
        with contextlib.suppress(KeyError):
            return str(ucd.lookup(ucd.name(char).replace("CAPITAL", "SMALL")))
    return folded


def _without_stroke(char: str) -> str:
    """Return the letters of the alphabet that a Latin letter without decomposition stands for."""
    if char.isascii():
        return char
    found = _LATIN.fullmatch(ucd.name(char, ""))
    return found[1].lower() if found else _NAMED.get(char, char)


def _within_letters(char: str) -> str:
    """Return what a character of folded letters becomes."""
    category = ucd.category(char)
    if category == "Nd":
        return str(ucd.decimal(char))
    if category[0] not in "LM" or char in _BORDERS:
        return " "
    unspaced = any(low <= ord(char) <= high for low, high in _UNSPACED)
    return f" {char} " if unspaced else char


def _is_letter_or_digit(char: str) -> bool:
    category: str = ucd.category(char)
    return category[0] == "L" or category == "Nd"


def _is_accent(char: str) -> bool:
    """Tell an accent, or an optional point of Hebrew or Arabic, by its combining class.

    Classes 6 to 9 (nukta, voicing, virama), 84 to 132 (vowel signs) and 0 belong to their letter;
    UnicodeData.txt, Canonical_Combining_Class.
    """
    combining: int = ucd.combining(char)
    return combining == 1 or 10 <= combining <= 36 or 200 <= combining <= 240


_FOLD = _Fold()
_QUICK = _Quick()
