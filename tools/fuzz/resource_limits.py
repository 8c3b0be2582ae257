"""Limits for the growth of a server's resources since its warm-up."""

from __future__ import annotations

import asyncio

from tools.fuzz.watched_server import Vitals, WatchedServer

WORKING = 384.0
"""MiB above the warm-up. The allocator does not return all memory of large requests, floods and
reset streams that were served at the same time. The growth levels off within 25,000 inputs, at 85
to 280 MiB, higher on a busy machine.
"""
MEMORY = 48.0
"""MiB above the middle of a campaign, when the growth has levelled off. A leak of one object per
call exceeds this: the state of a call that never ends takes more than 1 KiB, which is more than 48
MiB in half a campaign of 100,000 inputs.
"""
LEVEL = 10_000
"""Minimum number of inputs before the middle of a campaign for memory to count as level."""
FILES = 8
"""Connections to the store that are opened on demand."""
THREADS = 16
"""Threads of gRPC and of the store that are started on demand."""
TASKS = 4
"""Calls of the canary in progress while tasks are counted."""
_SETTLED = 45.0
"""Seconds in which the resources must be released; idle threads end after some seconds."""
_EVERY = 0.5


def exceeded(before: Vitals, middle: Vitals | None, after: Vitals) -> list[str]:
    """Return the resources that have growth beyond their limit."""
    growth = []
    if after.memory > before.memory + WORKING:
        growth.append(f"memory: {before.memory:.0f} MiB before, {after.memory:.0f} MiB after")
    if middle is not None and after.memory > middle.memory + MEMORY:
        growth.append(f"memory: {middle.memory:.0f} MiB halfway, {after.memory:.0f} MiB after")
    if after.files > before.files + FILES:
        growth.append(f"open files: {before.files} before, {after.files} after")
    if after.threads > before.threads + THREADS:
        growth.append(f"threads: {before.threads} before, {after.threads} after")
    if sum(after.tasks.values()) > sum(before.tasks.values()) + TASKS:
        growth.append(f"tasks: {before.tasks} before, {after.tasks} after")
    return growth


async def wait_until_settled(
    server: WatchedServer, before: Vitals, middle: Vitals | None
) -> tuple[Vitals, list[str]]:
    """Wait until the server's resources are back at ``before``, and its memory at ``middle`` if
    given.

    Returns:
        The resources, and a line for each one that has growth.
    """
    deadline = asyncio.get_running_loop().time() + _SETTLED
    while True:
        after = await asyncio.to_thread(server.vitals)
        growth = exceeded(before, middle, after)
        if not growth or asyncio.get_running_loop().time() > deadline:
            return after, growth
        await asyncio.sleep(_EVERY)


async def wait_until_idle(server: WatchedServer) -> Vitals:
    """Wait until the number of tasks and files stops falling; return the resources."""
    now = await asyncio.to_thread(server.vitals)
    while True:
        await asyncio.sleep(_EVERY)
        before, now = now, await asyncio.to_thread(server.vitals)
        if (now.files, len(now.tasks)) >= (before.files, len(before.tasks)):
            return now
