"""Work on many messages at once, away from the event loop, which other calls need meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sagastore_server.runtime.worker_pool import SHORT, WorkerPool

T = TypeVar("T")

_worker_pool = WorkerPool(1)
"""One process, and one thread while there is none: each would take its turn of the interpreter
from the event loop."""


async def aside(
    function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], characters: int
) -> list[T]:
    """Return ``function(*one)`` for each of ``arguments``.

    ``characters`` says how much work they are; little of it is done at once. ``function`` is
    one of a module; it and all values can be pickled.
    """
    if characters < SHORT:
        return [function(*one) for one in arguments]
    return await _worker_pool.map(function, arguments)
