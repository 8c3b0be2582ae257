"""Search criteria: a small expression tree that each backend compiles.

``search.parser`` makes these from text; nothing else does. All terms are
already analysed (see ``search.analysis``), so that a backend compares them as
they are and both backends find the same messages. The depth of a tree is
bounded (see ``search.query_tokens``), so functions on it may be recursive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sagastore_server.storage.model import Message, Position


class Phrase(NamedTuple):
    """Adjacent stemmed terms; a single term is a plain word."""

    terms: tuple[str, ...]


class Prefix(NamedTuple):
    """A prefix of a term, stemmed or unstemmed."""

    text: str


Leaf = Phrase | Prefix


@dataclass(frozen=True, slots=True)
class Not:
    """Matches if ``part`` does not."""

    part: Condition


@dataclass(frozen=True, slots=True)
class And:
    """Matches if all of ``parts`` match; there are two or more."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Matches if at least one of ``parts`` matches; there are two or more."""

    parts: tuple[Condition, ...]


# The operators are dataclasses: as named tuples, a phrase and a negated prefix could be equal.
Condition = Leaf | Not | And | Or


def leaves(condition: Condition) -> Iterator[Leaf]:
    """Yield every leaf of a condition, in the order of the text."""
    for leaf, _ in _signed(condition, wanted=True):
        yield leaf


def _signed(condition: Condition, *, wanted: bool) -> Iterator[tuple[Leaf, bool]]:
    """Yield every leaf, and whether it is under an even number of negations."""
    if isinstance(condition, Not):
        yield from _signed(condition.part, wanted=not wanted)
    elif isinstance(condition, And | Or):
        for part in condition.parts:
            yield from _signed(part, wanted=wanted)
    else:
        yield condition, wanted


class TextQuery(NamedTuple):
    """The condition on the terms of a message; None matches nothing."""

    condition: Condition | None

    @property
    def wanted(self) -> tuple[Leaf, ...]:
        """Every leaf that can make a message match, without repetition."""
        if self.condition is None:
            return ()
        signed = _signed(self.condition, wanted=True)
        return tuple(dict.fromkeys(leaf for leaf, wanted in signed if wanted))


class Criteria(NamedTuple):
    """The conditions of a search; all that are not None must match."""

    text: TextQuery | None = None
    tags: tuple[str, ...] = ()
    """All of them must be present."""
    provider: str | None = None
    role: str | None = None
    session_id: str | None = None
    start: int | None = None
    """Earliest timestamp, inclusive, in microseconds."""
    end: int | None = None
    """Latest timestamp, exclusive, in microseconds."""
    metadata: str | None = None
    """Canonical JSON text of an object that the metadata contains (jsonb ``@>``)."""


class Hit(NamedTuple):
    """One search result."""

    message: Message
    score: float
    snippet: str


class Scan(NamedTuple):
    """A range of chronological order to read."""

    newest_first: bool
    limit: int
    """Messages at most."""
    after: Position | None = None
    """Start after this position, in the direction of the scan."""
    until: Position | None = None
    """Stop at this position, inclusive."""


class Rank(NamedTuple):
    """A place in the order of relevance: by score, then by position, both descending."""

    score: float
    position: Position


class Ranked(NamedTuple):
    """A message with its score."""

    score: float
    message: Message

    @property
    def rank(self) -> Rank:
        """The place of the message."""
        return Rank(self.score, self.message.position)

    @property
    def size(self) -> int:
        """Upper bound of the bytes of the message in a response."""
        return self.message.size


class RankedScan(NamedTuple):
    """A window of chronological order, newest first, and a page of its ranked messages."""

    window: int
    """Matches of the window at most; not a limit if ``bottom`` is given."""
    limit: int
    """Messages of the page at most."""
    above: Position | None = None
    """The window begins after this position; None: with the newest match."""
    bottom: Position | None = None
    """The window ends at this position, inclusive; None: it ends after ``window`` matches, or
    earlier as ``storage.limits.WINDOW_BYTES`` says."""
    after: Rank | None = None
    """The page starts after this rank; None: with the first."""


class RankedPage(NamedTuple):
    """A page of a ranked window."""

    found: list[Ranked]
    """In the order of relevance."""
    more: bool
    """Whether more messages of the window follow."""
    top: Position | None
    """Position of the newest match of the window; None: the window is empty."""
    bottom: Position | None
    """Where the window ends: as requested, or the oldest match; None: the window is empty."""
    below: bool
    """Whether matches may follow the window."""


MAX_RANKED_LEAVES = 16
"""Wanted leaves that a store ranks by: each is an expression of its statement."""


def may_rank(text: TextQuery) -> bool:
    """Return whether ``text`` is short enough to be ranked by a store."""
    return len(text.wanted) <= MAX_RANKED_LEAVES
