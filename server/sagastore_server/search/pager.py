"""Search page by page, over any backend.

NEWEST and OLDEST walk chronological order. RELEVANCE ranks within windows: the
newest matches that one scan returns are sorted by their score, then the ones
before them, and so on. Ranking everything would take time in proportion to the
matches, a million of them for a common word; and the place of a message would
change with every write.

A cursor names positions, never rows or offsets, so it is stable under concurrent
writes and means the same on every backend.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from sagastore_server.search.ranking import score, score_and_snippet, snippet
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.limits import MAX_PAGE_BYTES
from sagastore_server.storage.model import Message, Position
from sagastore_server.storage.query import Criteria, Hit, Scan, TextQuery

WINDOW = 500
"""Messages ranked together at most; fewer where they are large (``storage.limits``)."""

T = TypeVar("T")
Cursor = tuple[int | float | str | None, ...]
"""Where the next page begins: fit for JSON, the same for every backend."""


class Order(enum.Enum):
    """The order of search results."""

    RELEVANCE = "relevance"
    NEWEST = "newest"
    OLDEST = "oldest"


class Runner(Protocol):
    """Works on texts, beside whatever must not be held up by it."""

    async def __call__(
        self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]
    ) -> list[T]:
        """Return ``function(*one)`` for each of ``arguments``, of which the last is a text."""


async def run_here(function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
    """Work on them at once."""
    return [function(*one) for one in arguments]


class InvalidCursorError(ValueError):
    """The cursor was not made by this module."""


class _Place(NamedTuple):
    """Where a page of ranked windows begins."""

    above: Position | None
    """The window begins behind this position; None: with the newest message."""
    bottom: Position | None = None
    """The last position of the window; None: the window is yet to be read."""
    score: float = 0.0
    last: Position | None = None
    """Score and position of the last message shown of the window."""


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

    ``run`` runs the analysis of what was found, which for long texts takes long.

    Raises:
        InvalidCursorError: ``cursor`` is not one of this module's.
        StorageError: As the backend's ``search``.

    """
    if criteria.text is not None and not criteria.text.alternatives:
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
    chosen: list[tuple[float, Message]] = []
    room = MAX_PAGE_BYTES
    while place is not None:
        window, below = await _read_window(backend, criteria, place)
        scores = await run(score, [(text, message.content) for message in window])
        rest = _behind(place, _ranked_by(scores, window))
        for rank in rest:
            room -= rank[1].size
            if len(chosen) == page_size or (chosen and room < 0):
                return await _shown(text, chosen, run), _resume(place, window, chosen)
            chosen.append(rank)
        place = None if below is None else _Place(below)
        if place is not None and len(chosen) == page_size:
            return await _shown(text, chosen, run), _cursor(place)
    return await _shown(text, chosen, run), None


async def _read_window(
    backend: StorageBackend, criteria: Criteria, place: _Place
) -> tuple[list[Message], Position | None]:
    """Return the window's messages, and its bottom where matches may follow it."""
    page = await backend.search(criteria, Scan(True, WINDOW, place.above, place.bottom))
    window = page.messages
    if place.bottom is None:
        return window, window[-1].position if page.more else None
    # Messages written into the window since it was first read can make it longer
    # than one scan.
    while page.more:
        page = await backend.search(criteria, Scan(True, WINDOW, window[-1].position, place.bottom))
        window += page.messages
    return window, place.bottom


def _ranked_by(scores: list[float], window: list[Message]) -> list[tuple[float, Message]]:
    ranked = list(zip(scores, window, strict=True))
    ranked.sort(key=_rank_order, reverse=True)
    return ranked


def _rank_order(rank: tuple[float, Message]) -> tuple[float, Position]:
    # Python orders strings by code point, which is the order of their UTF-8 bytes.
    return rank[0], rank[1].position


def _behind(place: _Place, ranked: list[tuple[float, Message]]) -> list[tuple[float, Message]]:
    if place.last is None:
        return ranked
    last = (place.score, place.last)
    return [rank for rank in ranked if _rank_order(rank) < last]


def _resume(
    place: _Place,
    window: list[Message],
    chosen: list[tuple[float, Message]],
) -> Cursor:
    """Return the cursor behind the last message chosen, within this window."""
    value, last = chosen[-1][0], chosen[-1][1].position
    if place.above is not None and last >= place.above:
        # The page ended with the window before: this one is yet to begin.
        return _cursor(_Place(place.above))
    bottom = place.bottom or window[-1].position
    return _cursor(_Place(place.above or _just_above(window), bottom, value, last))


def _just_above(window: list[Message]) -> Position:
    """Return a position behind which the window begins, and nothing above it.

    No id holds U+0000, so nothing sorts between an id and that id with U+0001.
    The window is closed at its top this way: what is written above it later does
    not make it grow.
    """
    return Position(window[0].timestamp, window[0].id + "\x01")


async def _shown(text: TextQuery, chosen: list[tuple[float, Message]], run: Runner) -> list[Hit]:
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
        case (above_time, above_id, bottom_time, bottom_id, int() | float() as value, time, last):
            return _Place(
                _optional(above_time, above_id),
                _optional(bottom_time, bottom_id),
                float(value),
                _optional(time, last),
            )
    raise InvalidCursorError


def _optional(timestamp: object, message_id: object) -> Position | None:
    if timestamp is None and message_id is None:
        return None
    return _position((timestamp, message_id))


def _position(parts: tuple[object, ...]) -> Position:
    match parts:
        case (int() as timestamp, str() as message_id):
            return Position(timestamp, message_id)
    raise InvalidCursorError
