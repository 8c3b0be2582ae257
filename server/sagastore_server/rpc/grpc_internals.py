"""Adapter for the private interfaces of gRPC; no other module uses any.

Calls whose answer nobody reads must be reset, for which gRPC has no public method.

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
from collections.abc import Callable, Sequence
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


def owner_of(handler: asyncio.Task[Any]) -> asyncio.Task[Any] | None:
    """Return the task that waits for the end of the call that ``handler`` serves.

    It is found by its reference to ``handler``, in about 2 microseconds for each task; None if the
    call has ended.
    """
    for owner in asyncio.all_tasks():
        if owner.get_name() == _OWNER_TASK and _refers_to(owner, handler):
            return owner
    return None


def cancel_call(handler: asyncio.Task[Any]) -> None:
    """Reset the stream of the call that the task ``handler`` serves, and free its memory.

    gRPC offers a server no method for that: a status queues behind the messages that the client
    does not read. gRPC resets the stream of a call that it releases, and it releases the call
    with the task that waits for its end. The latest call is released with the next one.
    """
    owner = owner_of(handler)
    handler.cancel()
    if owner is not None:
        owner.cancel()


def _refers_to(owner: asyncio.Task[Any], handler: asyncio.Task[Any]) -> bool:
    frame = gc.get_referents(owner.get_coro())
    return any(handler is one for part in frame for one in (part, *gc.get_referents(part)))


def _servers(first: int = 0) -> dict[int, dict[str, Any]]:
    """Return the channelz entries of the process by id, from the id ``first`` on."""
    answer = json.loads(cygrpc.channelz_get_servers(first))
    return {int(entry["ref"]["serverId"]): entry for entry in answer.get("server", ())}
