"""The loop on a thread of its own: what is let go there, or too late, does no harm."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator

import pytest

from sagastore._portal import Portal, get_portal


class Numbers:
    """Yields numbers and notes when it is closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    async def items(self) -> AsyncGenerator[int, None]:
        """Yield without end."""
        try:
            for number in range(10**9):
                yield number
        finally:
            await asyncio.sleep(0)
            self.closed.set()


def test_one_portal_for_all_threads() -> None:
    found: list[Portal] = []
    threads = [threading.Thread(target=lambda: found.append(get_portal())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {get_portal()}


def test_an_iterator_is_closed_where_it_is_left() -> None:
    numbers = Numbers()
    iterator = get_portal().iterate(numbers.items())
    assert [next(iterator), next(iterator)] == [0, 1]
    del iterator
    assert numbers.closed.is_set()


def test_an_iterator_may_be_collected_on_the_loops_own_thread() -> None:
    """The garbage collector runs in whatever thread it is due."""
    numbers = Numbers()
    held: list[Iterator[int]] = [get_portal().iterate(numbers.items())]
    assert next(held[0]) == 0

    async def drop() -> None:
        held.clear()

    get_portal().run(drop())
    assert numbers.closed.wait(60)


def test_errors_come_through() -> None:
    async def fail() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        get_portal().run(fail())


def test_it_cannot_wait_for_itself() -> None:
    async def inner() -> None:
        """Do nothing."""

    async def outer() -> None:
        get_portal().run(inner())

    with pytest.raises(RuntimeError, match="its own event loop's thread"):
        get_portal().run(outer())
