"""How far a server may be from where it was after the warm-up."""

from __future__ import annotations

import asyncio

from tools.fuzz.watched_server import Vitals, WatchedServer

WORKING = 384.0
"""MiB above the warm-up. The allocator does not give everything back that large requests, floods
and streams that were reset took while they were served at the same time. It levels off within
25,000 inputs, at 85 to 280 MiB, higher on a machine that is busy with other things."""
MEMORY = 48.0
"""MiB above the middle of a campaign, where that has levelled off. A leak of one object a call
does not fit: the state of a call that is never ended takes more than 1 KiB, which is more than
48 MiB in half a campaign of 100,000."""
LEVEL = 10_000
"""Inputs to the middle of a campaign, as of which it is taken for level."""
FILES = 8
"""Connections to the store that are opened when first needed."""
THREADS = 16
"""Threads of gRPC and of the store that are started when first needed."""
TASKS = 4
"""Calls of the canary under way while it is counted."""
_SETTLED = 45.0
"""Seconds in which it must have come back: idle threads end after some."""
_EVERY = 0.5


def exceeded(before: Vitals, middle: Vitals | None, after: Vitals) -> list[str]:
    """Tell what has grown."""
    grown = []
    if after.memory > before.memory + WORKING:
        grown.append(f"memory: {before.memory:.0f} MiB before, {after.memory:.0f} MiB after")
    if middle is not None and after.memory > middle.memory + MEMORY:
        grown.append(f"memory: {middle.memory:.0f} MiB halfway, {after.memory:.0f} MiB after")
    if after.files > before.files + FILES:
        grown.append(f"open files: {before.files} before, {after.files} after")
    if after.threads > before.threads + THREADS:
        grown.append(f"threads: {before.threads} before, {after.threads} after")
    if sum(after.tasks.values()) > sum(before.tasks.values()) + TASKS:
        grown.append(f"tasks: {before.tasks} before, {after.tasks} after")
    return grown


async def wait_until_settled(
    server: WatchedServer, before: Vitals, middle: Vitals | None
) -> tuple[Vitals, list[str]]:
    """Wait until the server is back at ``before``, and in memory at ``middle``, if that counts.

    Returns:
        What it holds, and what has grown.

    """
    deadline = asyncio.get_running_loop().time() + _SETTLED
    while True:
        after = await asyncio.to_thread(server.vitals)
        grown = exceeded(before, middle, after)
        if not grown or asyncio.get_running_loop().time() > deadline:
            return after, grown
        await asyncio.sleep(_EVERY)


async def wait_until_idle(server: WatchedServer) -> Vitals:
    """Wait until the number of tasks and files falls no further, and return what it holds."""
    now = await asyncio.to_thread(server.vitals)
    while True:
        await asyncio.sleep(_EVERY)
        before, now = now, await asyncio.to_thread(server.vitals)
        if (now.files, len(now.tasks)) >= (before.files, len(before.tasks)):
            return now
