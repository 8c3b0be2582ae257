"""The background thread of the blocking client, and the release of abandoned iterators."""

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


def test_portal_is_shared_by_all_threads() -> None:
    found: list[Portal] = []
    threads = [threading.Thread(target=lambda: found.append(get_portal())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {get_portal()}


def test_abandoned_iterator_is_closed() -> None:
    numbers = Numbers()
    iterator = get_portal().iterate(numbers.items())
    assert [next(iterator), next(iterator)] == [0, 1]
    del iterator
    assert numbers.closed.is_set()


def test_iterator_can_be_collected_on_the_background_thread() -> None:
    """The garbage collector runs in whatever thread it is due."""
    numbers = Numbers()
    held: list[Iterator[int]] = [get_portal().iterate(numbers.items())]
    assert next(held[0]) == 0

    async def drop() -> None:
        held.clear()

    get_portal().run(drop())
    assert numbers.closed.wait(60)


def test_errors_are_raised_in_the_calling_thread() -> None:
    async def fail() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        get_portal().run(fail())


def test_call_on_the_background_thread_is_rejected() -> None:
    async def inner() -> None:
        """Do nothing."""

    async def outer() -> None:
        get_portal().run(inner())

    with pytest.raises(RuntimeError, match="its own event loop's thread"):
        get_portal().run(outer())
