"""Ranking of a window of matches: by the store, or here from the messages that it returns.

A store that ranks (``StorageBackend.search_ranked``) reads no content and returns the page only.
For other criteria the window is read in pages of ``search`` and scored here. Both ways give the
same pages, so a search may begin on one store and continue on another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from sagastore_server.search.ranking import score
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.limits import WINDOW_BYTES, ranked_page_of
from sagastore_server.storage.model import Message, Position
from sagastore_server.storage.query import (
    Criteria,
    Rank,
    Ranked,
    RankedPage,
    RankedScan,
    Scan,
    TextQuery,
)

T = TypeVar("T")


class Runner(Protocol):
    """Executor of text analysis that must not block the event loop."""

    async def __call__(
        self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]
    ) -> list[T]:
        """Return ``function(*one)`` for each of ``arguments``; the last argument is a text."""


async def ranked_window(
    backend: StorageBackend, criteria: Criteria, text: TextQuery, scan: RankedScan, run: Runner
) -> RankedPage:
    """Return a page of a ranked window; ``text`` is that of ``criteria``.

    Raises:
        StorageError: As the backend's ``search``.

    """
    page = await backend.search_ranked(criteria, scan)
    return page or await _ranked_here(backend, criteria, text, scan, run)


async def _ranked_here(
    backend: StorageBackend, criteria: Criteria, text: TextQuery, scan: RankedScan, run: Runner
) -> RankedPage:
    """Rank messages as they are read. Holds no more of them than a page of each order."""
    best = _Best(scan.limit, scan.after)
    left, room = scan.window, WINDOW_BYTES
    top: Position | None = None
    last = scan.above
    more = True
    while more and left > 0:
        page = await backend.search(criteria, Scan(True, left, last, scan.bottom))
        more, messages = page.more, page.messages
        if scan.bottom is None:
            messages, room = _within(messages, room, first=top is None)
            left -= len(messages)
        if len(messages) < len(page.messages):
            more, left = True, 0
        if messages:
            top, last = top or messages[0].position, messages[-1].position
        scores = await run(score, [(text, message.content) for message in messages])
        best.add(list(map(Ranked, scores, messages)))
    bottom = scan.bottom or (last if top else None)
    return RankedPage(best.found, best.more, top, bottom, more or scan.bottom is not None)


def _within(messages: list[Message], room: int, *, first: bool) -> tuple[list[Message], int]:
    """Return the first messages, whose contents have ``room`` bytes, and the rest of the room."""
    for index, message in enumerate(messages):
        content = message.content
        room -= len(content) if content.isascii() else len(content.encode())
        if room < 0 and (index or not first):
            return messages[:index], room
    return messages, room


class _Best:
    """The page of the messages so far."""

    def __init__(self, limit: int, after: Rank | None) -> None:
        self.found: list[Ranked] = []
        self.more = False
        self._limit = limit
        self._after = after

    def add(self, ranked: list[Ranked]) -> None:
        after = self._after
        following = [one for one in ranked if after is None or one.rank < after]
        together = sorted([*self.found, *following], key=lambda one: one.rank, reverse=True)
        self.found, more = ranked_page_of(together, self._limit)
        self.more |= more
