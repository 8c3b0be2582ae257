"""Output of the first items of a pager, with a note if there are more.

Apart from the commands, because those of messages, sessions and files share it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import aclosing
from typing import TypeVar

from sagastore import AsyncPager
from sagastore.cli.failures import complain

__all__ = ["note", "note_more", "page_size", "print_some"]

T = TypeVar("T")
_PAGE = 500
_FIRST_PAGE = 50


def page_size(limit: int) -> int:
    """Return the page size for a number of items; 0: all."""
    # One more than the limit, to know whether there are more.
    return min(limit + 1, _PAGE) if limit else _FIRST_PAGE


async def print_some(
    items: AsyncPager[T], limit: int, show: Callable[[T], None]
) -> tuple[int, bool]:
    """Print up to `limit` items (0: all); return how many, and whether there are more."""
    count = 0
    async with aclosing(aiter(items)) as iterator:
        async for item in iterator:
            if limit and count == limit:
                return count, True
            show(item)
            count += 1
    return count, False


def note(text: str) -> None:
    """Write a line to standard error after the output."""
    sys.stdout.flush()
    complain(text)


def note_more(count: int) -> None:
    """Say that there are more items than shown."""
    note(f"{count:,} shown; there are more: --limit N shows N, --limit 0 all")
