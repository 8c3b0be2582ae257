"""Answers that come in pages, as iterators."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Generic, TypeVar

from sagastore._model import Page

__all__ = ["AsyncPager", "Pager"]

T = TypeVar("T")


class AsyncPager(Generic[T]):
    """Items that a server sends in pages; iterate with `async for`.

    Nothing is asked before the iteration begins, and each iteration asks anew.
    A page is fetched when it is needed; the timeout holds for each page.
    Iterating raises what the call that made the pager says.
    """

    def __init__(self, fetch: Callable[[str], Awaitable[Page[T]]], page_token: str) -> None:
        self._fetch = fetch
        self._page_token = page_token

    async def page(self, page_token: str | None = None) -> Page[T]:
        """Fetch one page: the one of the token, or the first."""
        return await self._fetch(self._page_token if page_token is None else page_token)

    async def pages(self) -> AsyncGenerator[Page[T], None]:
        """Yield page after page. A page may be empty without being the last."""
        token = self._page_token
        while True:
            page = await self._fetch(token)
            yield page
            token = page.next_page_token
            if not token:
                return

    async def __aiter__(self) -> AsyncGenerator[T, None]:
        """Yield item after item."""
        async for page in self.pages():
            for item in page.items:
                yield item


class Pager(Generic[T]):
    """Items that a server sends in pages; iterate with `for`.

    Nothing is asked before the iteration begins, and each iteration asks anew.
    A page is fetched when it is needed; the timeout holds for each page.
    Iterating raises what the call that made the pager says.
    """

    def __init__(self, fetch: Callable[[str | None], Page[T]]) -> None:
        self._fetch = fetch

    def page(self, page_token: str | None = None) -> Page[T]:
        """Fetch one page: the one of the token, or the first."""
        return self._fetch(page_token)

    def pages(self) -> Iterator[Page[T]]:
        """Yield page after page. A page may be empty without being the last."""
        token: str | None = None
        while True:
            page = self._fetch(token)
            yield page
            token = page.next_page_token
            if not token:
                return

    def __iter__(self) -> Iterator[T]:
        """Yield item after item."""
        for page in self.pages():
            yield from page.items
