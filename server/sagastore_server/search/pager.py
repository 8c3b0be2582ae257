"""Keyset pagination of search results, over any backend.

NEWEST and OLDEST have one state: the position of the last message returned. RELEVANCE ranks
within windows: it sorts the newest `WINDOW` matches by score, then the `WINDOW` before them, and
so on. A cursor of RELEVANCE (`_Place`) is in one of two states:

* before a window: ``above`` is set (or None for the newest message), ``bottom`` is None. The next
  page reads a window and thereby fixes its bottom.
* within a window: ``above`` and ``bottom`` enclose the window, and ``score`` and ``last`` are
  those of the last message returned. The next page reads the same window again, ranks it again,
  and continues after ``last``.

A page that reaches the end of a window continues in the next one. Both bounds are fixed when the
first page of a window ends, so messages written above the window do not enter it; messages written
into it later are ranked with it.

Guarantees:

* A cursor contains positions, no offsets and no row numbers. It stays valid under concurrent
  writes and means the same on every backend.
* A window is ranked where its messages are, if the store can (``search.windows``).
* A score depends on the query and the message alone (``search.ranking``), so a second ranking of
  a window gives the same order.

Ranking all matches instead would take time in proportion to them, a million for a common word.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from sagastore_server.search.ranking import score_and_snippet, snippet
from sagastore_server.search.windows import Runner, ranked_window
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.limits import MAX_PAGE_BYTES
from sagastore_server.storage.model import Position
from sagastore_server.storage.query import (
    Criteria,
    Hit,
    Rank,
    Ranked,
    RankedPage,
    RankedScan,
    Scan,
    TextQuery,
)

WINDOW = 500
"""Messages that are ranked together; fewer if they are large (``limits.WINDOW_BYTES``)."""

T = TypeVar("T")
Cursor = tuple[int | float | str | None, ...]
"""Start of the next page, as JSON values; the same for every backend."""


class Order(enum.Enum):
    """The order of search results."""

    RELEVANCE = "relevance"
    NEWEST = "newest"
    OLDEST = "oldest"


async def run_here(function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
    """Run the analysis in the caller."""
    return [function(*one) for one in arguments]


class InvalidCursorError(ValueError):
    """The cursor does not come from this module."""


class _Place(NamedTuple):
    """Start of a page of ranked windows; see the module for its two states."""

    above: Position | None
    """The window begins after this position; None: with the newest message."""
    bottom: Position | None = None
    """The last position of the window; None: the window has not been read."""
    score: float = 0.0
    """Score of ``last``."""
    last: Position | None = None
    """Position of the last message returned from the window."""


async def search_page(
    backend: StorageBackend,
    criteria: Criteria,
    order: Order,
    page_size: int,
    cursor: Cursor | None,
    *,
    run: Runner = run_here,
) -> tuple[list[Hit], Cursor | None]:
    """Return a page of hits, and the cursor of the next page or None.

    ``run`` executes scoring and snippets, which take long for long texts.

    Raises:
        InvalidCursorError: ``cursor`` does not come from this module.
        StorageError: As the backend's ``search``.

    """
    if criteria.text is not None and criteria.text.condition is None:
        return [], None
    if order is Order.RELEVANCE and criteria.text is not None:
        return await _ranked(backend, criteria, criteria.text, page_size, cursor, run=run)
    newest_first = order is not Order.OLDEST
    return await _chronological(backend, criteria, newest_first, page_size, cursor, run=run)


async def _chronological(
    backend: StorageBackend,
    criteria: Criteria,
    newest_first: bool,
    page_size: int,
    cursor: Cursor | None,
    *,
    run: Runner,
) -> tuple[list[Hit], Cursor | None]:
    after = None if cursor is None else _position(cursor)
    page = await backend.search(criteria, Scan(newest_first, page_size, after))
    hits = await run(score_and_snippet, [(criteria.text, one.content) for one in page.messages])
    found = [Hit(message, *hit) for message, hit in zip(page.messages, hits, strict=True)]
    return found, tuple(page.messages[-1].position) if page.more else None


async def _ranked(
    backend: StorageBackend,
    criteria: Criteria,
    text: TextQuery,
    page_size: int,
    cursor: Cursor | None,
    *,
    run: Runner,
) -> tuple[list[Hit], Cursor | None]:
    place: _Place | None = _Place(None) if cursor is None else _place(cursor)
    chosen: list[Ranked] = []
    room = MAX_PAGE_BYTES
    while place is not None:
        after = None if place.last is None else Rank(place.score, place.last)
        limit = page_size - len(chosen)
        scan = RankedScan(WINDOW, limit, place.above, place.bottom, after)
        window = await ranked_window(backend, criteria, text, scan, run)
        for ranked in window.found:
            room -= ranked.size
            if chosen and room < 0:
                return await _hits(text, chosen, run), _resume(place, window, chosen[-1].rank)
            chosen.append(ranked)
        if window.more:
            return await _hits(text, chosen, run), _resume(place, window, chosen[-1].rank)
        place = _Place(window.bottom) if window.below else None
        if place is not None and len(chosen) == page_size:
            return await _hits(text, chosen, run), _cursor(place)
    return await _hits(text, chosen, run), None


def _resume(place: _Place, window: RankedPage, last: Rank) -> Cursor:
    """Return the cursor after the last message chosen, within this window."""
    if place.above is not None and last.position >= place.above:
        # The page ended with the previous window: nothing of this one was returned.
        return _cursor(_Place(place.above))
    return _cursor(_Place(place.above or _just_above(window.top), window.bottom, *last))


def _just_above(top: Position | None) -> Position | None:
    """Return the position after which the window begins.

    This fixes the top of the window: messages written above it later do not enter it.
    """
    return None if top is None else Position(top.timestamp, top.sequence + 1)


async def _hits(text: TextQuery, chosen: list[Ranked], run: Runner) -> list[Hit]:
    extracts = await run(snippet, [(text, message.content) for _, message in chosen])
    return [
        Hit(message, value, extract)
        for (value, message), extract in zip(chosen, extracts, strict=True)
    ]


def _cursor(place: _Place) -> Cursor:
    above = place.above or (None, None)
    bottom = place.bottom or (None, None)
    last = place.last or (None, None)
    return (*above, *bottom, place.score, *last)


def _place(cursor: Cursor) -> _Place:
    match cursor:
        case (above_time, above, bottom_time, bottom, int() | float() as value, time, last):
            return _Place(
                _optional(above_time, above),
                _optional(bottom_time, bottom),
                float(value),
                _optional(time, last),
            )
    raise InvalidCursorError


def _optional(timestamp: object, sequence: object) -> Position | None:
    if timestamp is None and sequence is None:
        return None
    return _position((timestamp, sequence))


def _position(parts: tuple[object, ...]) -> Position:
    match parts:
        case (int() as timestamp, int() as sequence):
            return Position(timestamp, sequence)
    raise InvalidCursorError
