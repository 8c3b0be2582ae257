"""Adapter for the private interfaces of gRPC; no other module uses any.

Calls whose answer is not read must be reset, for which gRPC has no public method.

Load shedding needs the number of calls that gRPC's core has received, including those that it
has not handed to the event loop yet. gRPC counts them for channelz. The public way to read the
counters, the servicer of ``grpcio-channelz``, calls the same private functions and would add a
dependency and a service. `tests/limits/test_grpc_internals.py` fails if a release of gRPC
changes what this module relies on.
"""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from grpc import aio
from grpc._cython import cygrpc  # type: ignore[attr-defined] # Private, so without types.

_OWNER_TASK = "rpc_task"
"""Name of the task that gRPC starts for each call."""


class CallCounts(NamedTuple):
    """Calls of a server since it was created, unary and streaming, of every service."""

    started: int
    ended: int


def create_server(
    options: Sequence[tuple[str, int]],
) -> tuple[aio.Server, Callable[[], CallCounts]]:
    """Create a server, and a function that reads its call counts in about 0.2 ms.

    gRPC does not say which channelz entry belongs to a server. It is the one that creation adds,
    so create servers one after the other.
    """
    existing = _servers().keys()
    server = aio.server(options=(*options, ("grpc.enable_channelz", 1)))
    (server_id,) = _servers().keys() - existing

    def call_counts() -> CallCounts:
        # Absent once the server has been destroyed.
        data = _servers(server_id).get(server_id, {}).get("data", {})
        ended = int(data.get("callsSucceeded", 0)) + int(data.get("callsFailed", 0))
        return CallCounts(int(data.get("callsStarted", 0)), ended)

    return server, call_counts


def owners_of(
    handlers: Collection[asyncio.Task[Any]],
) -> dict[asyncio.Task[Any], asyncio.Task[Any]]:
    """Return, by handler, the tasks that wait for the end of the calls that ``handlers`` serve.

    They are found by their reference to a handler, in about 2 microseconds for each task of the
    process. A call that has ended is absent.
    """
    found = {}
    for owner in asyncio.all_tasks() if handlers else ():
        if owner.get_name() == _OWNER_TASK:
            handler = _referred(owner, handlers)
            if handler is not None:
                found[handler] = owner
    return found


def cancel_calls(handlers: Collection[asyncio.Task[Any]]) -> None:
    """Reset the streams of the calls that the tasks ``handlers`` serve, and free their memory.

    gRPC offers a server no method for that: a status queues behind the messages that the client
    does not read. gRPC resets the stream of a call that it releases, and it releases the call
    with the task that waits for its end. The latest call is released with the next one.
    """
    owners = owners_of(handlers)
    for handler in handlers:
        handler.cancel()
    for owner in owners.values():
        owner.cancel()


def _referred(
    owner: asyncio.Task[Any], handlers: Collection[asyncio.Task[Any]]
) -> asyncio.Task[Any] | None:
    frame = gc.get_referents(owner.get_coro())
    for part in frame:
        for one in (part, *gc.get_referents(part)):
            if isinstance(one, asyncio.Task) and one in handlers:
                return one
    return None


def _servers(first: int = 0) -> dict[int, dict[str, Any]]:
    """Return the channelz entries of the process by id, from the id ``first`` on."""
    answer = json.loads(cygrpc.channelz_get_servers(first))
    return {int(entry["ref"]["serverId"]): entry for entry in answer.get("server", ())}
