"""Search criteria: a small expression tree that each backend compiles.

``search.parser`` makes these from text; nothing else does. All terms are
already analysed (see ``search.analysis``), so that a backend compares them as
they are and both backends find the same messages.
"""

from __future__ import annotations

from typing import NamedTuple

from sagastore_server.storage.model import Message, Position


class Phrase(NamedTuple):
    """Adjacent stemmed terms; a single term is a plain word."""

    terms: tuple[str, ...]


class Prefix(NamedTuple):
    """A prefix of a term, stemmed or unstemmed."""

    text: str


Leaf = Phrase | Prefix


class Alternative(NamedTuple):
    """Matches if all of ``required`` match and none of ``excluded`` does."""

    required: tuple[Leaf, ...]
    excluded: tuple[Leaf, ...]


class TextQuery(NamedTuple):
    """Matches if one of its alternatives matches; without alternatives, it matches nothing."""

    alternatives: tuple[Alternative, ...]

    @property
    def wanted(self) -> tuple[Leaf, ...]:
        """Every leaf that can make a message match, without repetition."""
        leaves = (leaf for option in self.alternatives for leaf in option.required)
        return tuple(dict.fromkeys(leaves))


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
