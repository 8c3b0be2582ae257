"""The asynchronous iterator over results that come in pages."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar

from sagastore._arguments import checked
from sagastore._model import Page

__all__ = ["AsyncPager"]

T = TypeVar("T")


class AsyncPager(Generic[T]):
    """Items that a server sends in pages; iterate with `async for`.

    Each iteration starts at the first page and sends its own requests. Pages are
    fetched on demand; the timeout applies to each page. Iterating raises the errors
    that the method that returned the pager documents.
    """

    def __init__(self, fetch: Callable[[str], Awaitable[Page[T]]], page_token: str) -> None:
        self._fetch = fetch
        self._page_token = page_token

    @checked
    async def page(self, page_token: str | None = None) -> Page[T]:
        """Fetch the page of a token; without a token, the first page."""
        return await self._fetch(self._page_token if page_token is None else page_token)

    async def pages(self) -> AsyncGenerator[Page[T], None]:
        """Yield the pages. A page may be empty without being the last."""
        token = self._page_token
        while True:
            page = await self._fetch(token)
            yield page
            token = page.next_page_token
            if not token:
                return

    async def first(self) -> T | None:
        """Return the first item; None if there is none. Fetches no page after its own."""
        token = self._page_token
        while True:
            page = await self._fetch(token)
            if page.items:
                return page.items[0]
            token = page.next_page_token
            if not token:
                return None

    @checked
    async def limit(self, count: int) -> AsyncGenerator[T, None]:
        """Yield the first items, at most `count`. Fetches no page after the last one needed."""
        token = self._page_token
        while count > 0:
            page = await self._fetch(token)
            for item in page.items[:count]:
                yield item
            count -= len(page.items)
            token = page.next_page_token
            if not token:
                return

    async def __aiter__(self) -> AsyncGenerator[T, None]:
        """Yield the items of all pages."""
        async for page in self.pages():
            for item in page.items:
                yield item
