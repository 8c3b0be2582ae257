"""Takeover: the server stands still for longer than its lease, and a second one replaces it.

A kind of round of its own. An operator who believes the first machine lost serves a copy of
its file elsewhere; the lease lets the second server in once it has run out. Then the first
one goes on, with calls under way. From then on it must acknowledge nothing and answer
nothing, and learn that it was fenced. Clients that go to the second server must find
everything that was ever acknowledged: the rest of the round is judged as any other.

In READ_POSTGRES the copy is made a moment before the first server stands still, while
PostgreSQL gets nothing new. So writes that are under way are in the first file only.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
from pathlib import Path

from sagastore import AsyncClient, Message, Phase, SagaStoreError
from tools.chaos.cluster import CLIENTS, Cluster, Supervisor
from tools.chaos.fault_registry import Scene
from tools.chaos.faults import ONCE
from tools.chaos.plan import Plan

TIMEOUT = 60.0
"""Seconds for a call of a client: it waits while the first server stands still."""

_SERVES_WITHIN = 40.0
_FENCED_WITHIN = 20.0
_HELD = 2.0
"""Seconds that deliveries are held up, of which less than the server's patience pass."""


async def take_over(scene: Scene, plan: Plan) -> bool:
    """Replace the server of the round; tell whether the second one serves."""
    cluster, rng = scene.cluster, scene.rng
    await cluster.supervisor.up.wait()
    await asyncio.sleep(rng.uniform(1.5, 3.0))
    folder = cluster.testbed.folder / f"{cluster.database}-second"
    folder.mkdir()
    path = folder / "memory.db"
    await _freeze(cluster, path, early=plan.begins is Phase.READ_POSTGRES)
    scene.marks.mark("server frozen for a takeover")
    second = cluster.second(path, lambda state: scene.marks.mark("second", state=state))
    second.start()
    serves = await _serves(second)
    scene.marks.mark("takeover", serves=serves)
    if not serves:
        await second.abandon()
        cluster.supervisor.signal(signal.SIGCONT)
        return False
    await asyncio.sleep(rng.uniform(0.0, 1.0))
    cluster.testbed.proxy.lead(CLIENTS, second.server.address)
    cluster.supervisor.signal(signal.SIGCONT)
    await _until_fenced(scene)
    cluster.testbed.proxy.cut(CLIENTS)
    ending = await cluster.supervisor.end()
    if ending.status:
        scene.marks.mark("wrong", what=f"TAKEOVER: the first server ended with {ending}")
    cluster.replace(second, path)
    await asyncio.sleep(rng.uniform(1.0, 3.0))
    return True


async def _freeze(cluster: Cluster, path: Path, *, early: bool) -> None:
    """Let the server stand still, and copy its file: while it does, or ``early``."""
    if not early:
        cluster.supervisor.signal(signal.SIGSTOP)
        await asyncio.to_thread(_copy, cluster.path, path)
        return
    # Released only while the server is frozen, which has read the number before.
    with cluster.switch("delivery", _HELD):
        await asyncio.sleep(0.15)
        await asyncio.to_thread(_copy, cluster.path, path)
        await asyncio.sleep(0.4)
        cluster.supervisor.signal(signal.SIGSTOP)


def _copy(path: Path, copy: Path) -> None:
    uri = f"{path.as_uri()}?mode=ro"
    with (
        contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5.0)) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)


async def _serves(second: Supervisor) -> bool:
    """Wait until the second server serves; False: it has refused, as where its copy is old."""
    up = asyncio.create_task(second.up.wait())
    try:
        async with asyncio.timeout(_SERVES_WITHIN):
            while not up.done() and not second.endings:
                await asyncio.wait({up}, timeout=0.1)
    except TimeoutError:
        return False
    finally:
        up.cancel()
    return second.up.is_set()


async def _until_fenced(scene: Scene) -> None:
    """Ask the first server to save until it says for certain that it may not."""
    async with AsyncClient(scene.cluster.server.address, retry=ONCE, timeout=3) as client:
        for _ in range(int(_FENCED_WITHIN / 0.25)):
            try:
                await client.save(Message("openai", "user", "late", id="late"))
            except SagaStoreError as exc:
                if "taken over" in str(exc):
                    return
            else:
                scene.marks.mark("wrong", what="TAKEOVER: the first server has acknowledged a save")
                return
            await asyncio.sleep(0.25)
    scene.marks.mark("wrong", what="TAKEOVER: the first server does not know of the second")
