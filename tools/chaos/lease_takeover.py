"""Lease takeover: the server is frozen for longer than its lease, and a second one replaces it.

A takeover is a separate kind of round. An operator who considers the first machine lost serves a
copy of its file elsewhere; the second server gets the lease once it has expired. The first server
is then resumed with calls in progress. From then on it must neither acknowledge nor answer any
call, and must detect that it was fenced. Clients of the second server must find all acknowledged
writes; the rest of the round is judged like any other.

In READ_POSTGRES the copy is made just before the first server is frozen, while deliveries to
PostgreSQL are stopped, so that writes in progress are in the first file only. They must not be
acknowledged: the server is frozen before its patience ends, after which SQLite alone suffices.
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
"""Seconds for a call of a client, which waits while the first server is frozen."""

_SERVES_WITHIN = 120.0
_FENCED_WITHIN = 60.0
_HELD = 2.0
"""Seconds that deliveries are delayed."""
_COPIED_WITHIN = 0.6
"""Seconds for the copy. On a machine that is too busy for that, it is made again."""
_WRITES = 0.4
"""Seconds of writes between the copy and the freeze. With the copy, less than the patience."""


async def take_over(scene: Scene, plan: Plan) -> bool:
    """Replace the server of the round; return whether the second one serves."""
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
    # From the first answer of the second server on, its file is inspected.
    cluster.path = path
    cluster.testbed.proxy.lead(CLIENTS, second.server.address)
    cluster.supervisor.signal(signal.SIGCONT)
    await _until_fenced(scene)
    cluster.testbed.proxy.cut(CLIENTS)
    ending = await cluster.supervisor.end()
    if ending.status:
        scene.marks.mark("wrong", what=f"TAKEOVER: the first server ended with {ending}")
    cluster.replace(second)
    await asyncio.sleep(rng.uniform(1.0, 3.0))
    return True


async def _freeze(cluster: Cluster, path: Path, *, early: bool) -> None:
    """Freeze the server and copy its file, while frozen or (``early``) before."""
    if not early:
        cluster.supervisor.signal(signal.SIGSTOP)
        await asyncio.to_thread(_copy, cluster.path, path)
        return
    clock = asyncio.get_running_loop().time
    while True:
        began = clock()
        # Released while the server is frozen; it read the value before.
        with cluster.switch("delivery", _HELD):
            await asyncio.sleep(0.15)
            await asyncio.to_thread(_copy, cluster.path, path)
            if clock() - began <= _COPIED_WITHIN:
                await asyncio.sleep(_WRITES)
                cluster.supervisor.signal(signal.SIGSTOP)
                return
        await asyncio.sleep(_HELD)


def _copy(path: Path, copy: Path) -> None:
    uri = f"{path.as_uri()}?mode=ro"
    with (
        contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5.0)) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)


async def _serves(second: Supervisor) -> bool:
    """Wait until the second server serves; False: it refused to start, as on an old copy."""
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
    """Send saves to the first server until it reports that it is fenced."""
    async with AsyncClient(scene.cluster.server.address, retry=ONCE, timeout=3) as client:
        for _ in range(int(_FENCED_WITHIN / 0.25)):
            try:
                await client.save(Message("openai", "user", "late", id="late"))
            except SagaStoreError as exc:
                if "taken over" in str(exc):
                    return
            else:
                scene.marks.mark(
                    "wrong",
                    what="TAKEOVER: the first server acknowledged a save after the takeover",
                )
                return
            await asyncio.sleep(0.25)
    scene.marks.mark("wrong", what="TAKEOVER: the first server did not detect the takeover")
