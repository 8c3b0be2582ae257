"""Offloads the parsing of requests that would hold the event loop to a worker process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from sagastore.v1 import message_pb2, session_pb2, storage_pb2
from sagastore_server.runtime.worker_pool import SHORT, WorkerPool

T = TypeVar("T")

_MESSAGE = 100
"""Cost of a message in addition to its fields, in characters of metadata."""
_TAG = 4
"""Cost of a tag: it takes 0.2 to 1 microseconds."""
_CONTENT = 50
"""Characters of content that cost as much as one of metadata."""


async def parsed(pool: WorkerPool, cost: int, parse: Callable[..., T], *arguments: Any) -> T:
    """Return ``parse(*arguments)``, computed in ``pool`` if it is expensive.

    ``cost`` is the length of metadata, in characters, that takes as long. ``parse`` and its
    arguments can be pickled.
    """
    if cost < SHORT:
        return parse(*arguments)
    (result,) = await pool.map(parse, [arguments])
    return result


def append_cost(request: session_pb2.AppendRequest) -> int:
    """Return the cost of parsing an AppendRequest."""
    return sum(map(_message_cost, request.messages))


def save_cost(request: storage_pb2.SaveRequest) -> int:
    """Return the cost of parsing a SaveRequest of a batch."""
    return _message_cost(request.message)


def _message_cost(message: message_pb2.Message) -> int:
    return (
        _MESSAGE
        + len(message.metadata_json)
        + _TAG * len(message.tags)
        + len(message.content) // _CONTENT
    )
