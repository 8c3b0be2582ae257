"""Faults of the server, of PostgreSQL and of the links between the processes.

A fault is an asynchronous context manager: entering starts the fault, leaving ends it. All its
parameters are drawn from the generator in its `Scene`, so a seed determines them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sagastore import AsyncClient, RetryPolicy, SagaStoreError
from tests.support.server_process import ServerProcess, clean_environment
from tools.chaos import set_back_faults, switch_faults  # noqa: F401 - they register their faults
from tools.chaos.cluster import CLIENTS, POSTGRES, send
from tools.chaos.fault_registry import FAULTS, Fault, Scene, fault, missing, mostly_up
from tools.chaos.lease_monitor import LeaseWatch
from tools.chaos.proxy import DIRECTIONS, Direction

__all__ = ["FAULTS", "ONCE", "Fault", "Scene", "missing"]

ONCE = RetryPolicy(max_attempts=1)

NOWHERE = subprocess.DEVNULL
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


# ---------------------------------------------------------------------- the server


@fault("server killed", (0.0, 1.5), weight=3)
async def _server_killed(scene: Scene) -> AsyncIterator[None]:
    await mostly_up(scene)
    supervisor = scene.cluster.supervisor
    supervisor.pause = scene.rng.choice([0.0, 0.0, 0.5, 1.0])
    supervisor.signal(signal.SIGKILL)
    yield


@fault("server stopped and started", (0.0, 1.0), weight=2)
async def _server_restarted(scene: Scene) -> AsyncIterator[None]:
    await mostly_up(scene)
    scene.cluster.supervisor.pause = scene.rng.choice([0.0, 0.5])
    scene.cluster.supervisor.signal(signal.SIGTERM)
    yield


@fault("server frozen", (0.2, 2.5), weight=2)
async def _server_frozen(scene: Scene) -> AsyncIterator[None]:
    scene.cluster.supervisor.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        scene.cluster.supervisor.signal(signal.SIGCONT)


@fault("server frozen, then killed", (0.2, 1.5))
async def _server_frozen_and_killed(scene: Scene) -> AsyncIterator[None]:
    await mostly_up(scene)
    scene.cluster.supervisor.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        scene.cluster.supervisor.signal(signal.SIGKILL)


@asynccontextmanager
async def _traced(scene: Scene, inject: str) -> AsyncIterator[None]:
    """Inject errors or delays into system calls of the server with strace."""
    await mostly_up(scene)
    if not scene.cluster.server.alive:
        yield
        return
    tracing = await asyncio.create_subprocess_exec(
        "strace", "-f", "-q", "-o", "/dev/null", "-e", "trace=fsync,fdatasync,pwrite64",
        "-e", f"inject={inject}", "-p", str(scene.cluster.server.pid),
        stdin=NOWHERE, stdout=NOWHERE, stderr=NOWHERE,
    )  # fmt: skip
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            tracing.terminate()
        await tracing.wait()


@fault("SQLite's fsync is slow", (0.5, 2.5), needs="strace")
async def _slow_fsync(scene: Scene) -> AsyncIterator[None]:
    delay = scene.rng.choice([20, 100, 400]) * 1000
    async with _traced(scene, f"fsync,fdatasync:delay_enter={delay}"):
        yield


@fault("SQLite's fsync fails", (0.3, 1.5), needs="strace")
async def _failing_fsync(scene: Scene) -> AsyncIterator[None]:
    step = scene.rng.choice(["1+2", "2+3", "1+7"])
    async with _traced(scene, f"fsync,fdatasync:error=EIO:when={step}"):
        yield


@fault("SQLite's write fails", (0.3, 1.5), needs="strace")
async def _failing_write(scene: Scene) -> AsyncIterator[None]:
    error, step = scene.rng.choice(["ENOSPC", "EIO"]), scene.rng.choice(["3+5", "2+11", "1+29"])
    async with _traced(scene, f"pwrite64:error={error}:when={step}"):
        yield


@fault("SQLite's disk is full", (0.3, 2.0), weight=2, needs="root")
async def _sqlite_full(scene: Scene) -> AsyncIterator[None]:
    await asyncio.to_thread(scene.cluster.disk.fill)
    try:
        yield
    finally:
        scene.cluster.disk.free()


# ---------------------------------------------------------------------- PostgreSQL


@asynccontextmanager
async def _slow_at_first(scene: Scene) -> AsyncIterator[None]:
    """In half of the cases, delay PostgreSQL's answers for a while so that it catches up slowly."""
    proxy = scene.cluster.testbed.proxy
    if scene.rng.random() < 0.5:
        proxy.set(POSTGRES, delay=scene.rng.choice([0.03, 0.1, 0.2]))
        try:
            yield
            await asyncio.sleep(1.5)
        finally:
            proxy.set(POSTGRES)
    else:
        yield


@fault("PostgreSQL killed", (0.0, 2.5), weight=2)
async def _postgres_killed(scene: Scene) -> AsyncIterator[None]:
    testbed = scene.cluster.testbed
    async with testbed.turn:
        pids = testbed.postgres_pids()
        for pid in pids[:1] if scene.rng.random() < 0.5 else pids:
            send(pid, signal.SIGKILL)
        try:
            yield
        finally:
            async with _slow_at_first(scene):
                await asyncio.to_thread(testbed.recover)


@fault("PostgreSQL stopped immediately", (0.0, 2.0), weight=2)
async def _postgres_stopped(scene: Scene) -> AsyncIterator[None]:
    testbed = scene.cluster.testbed
    async with testbed.turn:
        await asyncio.to_thread(testbed.postgres.stop)
        try:
            yield
        finally:
            async with _slow_at_first(scene):
                await asyncio.to_thread(testbed.recover)


@fault("PostgreSQL's connection crashes", (0.0, 0.5))
async def _backend_killed(scene: Scene) -> AsyncIterator[None]:
    """Kill one backend process; PostgreSQL then terminates the others and recovers."""
    pids = scene.cluster.testbed.postgres_pids()
    if len(pids) > 1:
        send(scene.rng.choice(pids[1:]), signal.SIGKILL)
    yield


@fault("PostgreSQL frozen", (0.2, 3.0), weight=2)
async def _postgres_frozen(scene: Scene) -> AsyncIterator[None]:
    testbed = scene.cluster.testbed
    async with testbed.turn:
        pids = testbed.postgres_pids()
        for pid in pids:
            send(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            async with _slow_at_first(scene):
                for pid in pids:
                    send(pid, signal.SIGCONT)


@fault("PostgreSQL's disk is slow", (0.5, 2.5))
async def _postgres_stalls(scene: Scene) -> AsyncIterator[None]:
    """Stop and continue all processes repeatedly, like processes that wait for a disk."""
    testbed, stop = scene.cluster.testbed, scene.rng.choice([0.03, 0.1, 0.25])

    async def stalls() -> None:
        while True:
            pids = testbed.postgres_pids()
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for pid in pids:
                    send(pid, number)
                await asyncio.sleep(stop)

    async with testbed.turn:
        stalling = asyncio.create_task(stalls())
        try:
            yield
        finally:
            stalling.cancel()
            await asyncio.gather(stalling, return_exceptions=True)
            for pid in testbed.postgres_pids():
                send(pid, signal.SIGCONT)


@fault("PostgreSQL's disk is full", (0.3, 2.0), weight=2, needs="root")
async def _postgres_full(scene: Scene) -> AsyncIterator[None]:
    testbed = scene.cluster.testbed
    async with testbed.turn:
        await asyncio.to_thread(testbed.disk.fill)
        try:
            yield
        finally:
            await asyncio.to_thread(testbed.recover)


# ---------------------------------------------------------------------- the links


def _link_faults(link: str, name: str) -> None:
    """Register the faults of a link."""

    @fault(f"{name}: cut", (0.0, 1.0), weight=1.5)
    async def cut(scene: Scene) -> AsyncIterator[None]:
        proxy = scene.cluster.testbed.proxy
        share, refuse = scene.rng.choice([0.3, 1.0]), scene.rng.random() < 0.5
        proxy.set(link, refuse=refuse)
        proxy.cut(link, share)
        try:
            yield
        finally:
            proxy.set(link)

    @fault(f"{name}: slow", (0.5, 3.0))
    async def slow(scene: Scene) -> AsyncIterator[None]:
        delay = scene.rng.choice([0.01, 0.05, 0.3])
        scene.cluster.testbed.proxy.set(link, delay=delay, jitter=delay)
        try:
            yield
        finally:
            scene.cluster.testbed.proxy.set(link)

    @fault(f"{name}: throttled", (0.5, 2.0), weight=0.7)
    async def throttled(scene: Scene) -> AsyncIterator[None]:
        scene.cluster.testbed.proxy.set(link, rate=scene.rng.choice([10_000, 100_000]))
        try:
            yield
        finally:
            scene.cluster.testbed.proxy.set(link)

    @fault(f"{name}: silent", (0.3, 3.0), weight=1.5)
    async def held(scene: Scene) -> AsyncIterator[None]:
        proxy = scene.cluster.testbed.proxy
        held: tuple[tuple[Direction, ...], ...] = (("up",), ("down",), DIRECTIONS)
        proxy.set(link, hold=scene.rng.choice(held))
        cut = scene.rng.random() < 0.5
        try:
            yield
        finally:
            if cut:
                proxy.cut(link)
            proxy.set(link)

    @fault(f"{name}: half closed", (0.0, 1.0), weight=0.7)
    async def halved(scene: Scene) -> AsyncIterator[None]:
        scene.cluster.testbed.proxy.half_close(link, scene.rng.choice(DIRECTIONS))
        yield


_link_faults(CLIENTS, "clients")
_link_faults(POSTGRES, "PostgreSQL's connections")


@fault("client storm", (0.3, 1.5))
async def _client_storm(scene: Scene) -> AsyncIterator[None]:
    """Open many connections that send little or nothing and then disappear."""

    async def one(number: int) -> None:
        host, _, port = scene.cluster.address.rpartition(":")
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(PREFACE[: number % 30] if number % 2 else PREFACE)
            await asyncio.sleep(number % 5 / 20)
            writer.transport.abort()

    async def client() -> None:
        with contextlib.suppress(SagaStoreError):
            async with AsyncClient(scene.cluster.address, retry=ONCE, timeout=1) as caller:
                await caller.batch_get(["never written"])

    storm = [asyncio.create_task(one(number)) for number in range(scene.rng.choice([50, 150]))]
    storm += [asyncio.create_task(client()) for _ in range(15)]
    try:
        yield
    finally:
        await asyncio.gather(*storm, return_exceptions=True)


# ---------------------------------------------------------------------- other processes


@fault("a second server", (0.0, 0.2), weight=1.5)
async def _second_server(scene: Scene) -> AsyncIterator[None]:
    """Start a second server on the same file, on PostgreSQL alone, or on a copy; none may serve.

    Once PostgreSQL is the only store, the last two are legitimate.
    """
    cluster, how = scene.cluster, scene.rng.choice(["file", "file", "database", "copy"])
    supervisor = cluster.supervisor
    starts, before = (supervisor.starts if supervisor.up.is_set() else 0), _phase(scene)
    folder = cluster.testbed.folder / f"second-{scene.rng.getrandbits(32):x}"
    folder.mkdir()
    dsn = cluster.testbed.dsn(cluster.database)
    if how == "database":
        second = ServerProcess(folder / "unused.db", postgres=dsn)
    else:
        path = cluster.path if how == "file" else folder / "memory.db"
        if how == "copy":
            await asyncio.to_thread(_copy_as_it_is, cluster.path, path)
        second = ServerProcess(path, env={"SAGASTORE_POSTGRES": dsn})
    try:
        async with LeaseWatch(dsn) as watch:
            await asyncio.to_thread(second.spawn)
            yield
            served, said = await asyncio.to_thread(_outcome_of, second)
        phases = {before, _phase(scene)}
        # A second server is the only one if the first one was down or stopping. If PostgreSQL was
        # down, a copy cannot detect the first server. In the first phase a copy and an empty
        # PostgreSQL are separate stores; in the last phase any server may serve.
        alone = supervisor.starts != starts or not supervisor.up.is_set() or supervisor.stopping
        alone = alone or (how == "copy" and not watch.held)
        own = how != "file" and "sqlite-only" in phases
        may = alone or own or "" in phases or "postgres-only" in phases
        scene.marks.mark("second server", how=how, served=served, may=may, said=said)
    finally:
        await asyncio.to_thread(second.close)
        shutil.rmtree(folder, ignore_errors=True)


def _phase(scene: Scene) -> str:
    """Return the last observed phase; empty: none yet."""
    seen = [mark.facts["phase"] for mark in scene.marks.marks if mark.kind == "phase"]
    return str(seen[-1]).replace("_", "-").lower() if seen else ""


def _copy_as_it_is(path: Path, copy: Path) -> None:
    """Copy the files of a running server without any lock, as an operator should not."""
    for suffix in ("", "-wal"):
        with contextlib.suppress(OSError):
            shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")


def _outcome_of(server: ServerProcess) -> tuple[bool, str]:
    try:
        server.wait_for_event("serving")
    except AssertionError:
        return False, server.stderr[-1] if server.stderr else ""
    return True, ""


@fault("a backup", (0.0, 0.2))
async def _backup(scene: Scene) -> AsyncIterator[None]:
    """Run a backup during other faults; the command verifies its result."""
    cluster = scene.cluster
    copy = cluster.testbed.folder / f"backup-{scene.rng.getrandbits(32):x}.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sagastore_server", "backup", str(copy), "--sqlite",
        str(cluster.path),
        stdin=NOWHERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=clean_environment(copy.parent),
    )  # fmt: skip
    try:
        yield
        async with asyncio.timeout(60):
            said, _ = await process.communicate()
        scene.marks.mark("backup", status=process.returncode, said=said.decode()[-300:].strip())
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        for left in copy.parent.glob(f"{copy.name}*"):
            with contextlib.suppress(OSError):
                os.unlink(left)  # noqa: PTH108 - of a file that may be gone by now
