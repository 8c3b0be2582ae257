"""From what a person types to a tree of terms. No text is an error.

``rust async`` asks for both words, ``"exactly this"`` for words side by side,
``-word`` and ``-"a phrase"`` exclude, ``pre*`` takes any ending, ``OR`` (in capitals)
separates alternatives and binds looser than the words beside it. What has no
meaning here (a lone ``-``, an ``OR`` at the end, brackets, ``NEAR``) is read as
words, or as nothing where it has no letter or digit. Something that is written
together but analysed into several terms, as ``foo_bar`` or ``v1.85``, is a phrase.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from sagastore_server.search.analysis import is_single, stem, tokenize
from sagastore_server.storage.query import Alternative, Leaf, Phrase, Prefix, TextQuery

_CHUNK = re.compile(r'(?P<minus>(?<!\S)-(?=[^\s-]))?(?:"(?P<quoted>[^"]*)"|(?P<bare>[^\s"]+)|")')
_OTHER_QUOTES = str.maketrans(dict.fromkeys("“”„«»\N{FULLWIDTH QUOTATION MARK}", '"'))


class _Chunk(NamedTuple):
    text: str
    excluded: bool
    quoted: bool


def parse_query(text: str) -> TextQuery | None:
    """Return the tree of a query text; None for a blank one, which asks nothing.

    A text that is not blank but has no term (``"!!!"``) matches nothing.
    """
    if not text.strip():
        return None
    options = [_alternative(chunks) for chunks in _alternatives(list(_chunks(text)))]
    return TextQuery(tuple(dict.fromkeys(option for option in options if option)))


def _chunks(text: str) -> Iterator[_Chunk]:
    for match in _CHUNK.finditer(text.translate(_OTHER_QUOTES)):
        quoted, bare = match["quoted"], match["bare"]
        if quoted is not None:
            yield _Chunk(quoted, bool(match["minus"]), True)
        elif bare is not None:
            yield _Chunk(bare, bool(match["minus"]), False)


def _alternatives(chunks: list[_Chunk]) -> Iterator[list[_Chunk]]:
    """Split at each OR that has something on both sides; another OR is a word."""
    current: list[_Chunk] = []
    for index, chunk in enumerate(chunks):
        if _is_or(chunk) and current and index + 1 < len(chunks) and not _is_or(chunks[index + 1]):
            yield current
            current = []
        else:
            current.append(chunk)
    yield current


def _is_or(chunk: _Chunk) -> bool:
    return chunk.text == "OR" and not chunk.quoted and not chunk.excluded


def _alternative(chunks: list[_Chunk]) -> Alternative | None:
    required: dict[Leaf, None] = {}
    excluded: dict[Leaf, None] = {}
    for chunk in chunks:
        leaves = dict.fromkeys(_leaves(chunk))
        (excluded if chunk.excluded else required).update(leaves)
    if not required and not excluded:
        return None
    return Alternative(tuple(required), tuple(excluded))


def _leaves(chunk: _Chunk) -> Iterator[Leaf]:
    tokens = tokenize(chunk.text)
    if not tokens:
        return
    if not chunk.quoted and chunk.text.endswith("*") and not is_single(tokens[-1]):
        *head, last = tokens
        # An excluded chunk must stay one leaf: excluding its parts one by one
        # would exclude more than was asked.
        if not head:
            yield Prefix(last)
            return
        if not chunk.excluded:
            yield Phrase(tuple(map(stem, head)))
            yield Prefix(last)
            return
    yield Phrase(tuple(map(stem, tokens)))
