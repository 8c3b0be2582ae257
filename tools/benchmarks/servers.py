"""Measured servers, each in a separate process, and control of the migration."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from sagastore import AsyncClient, Migration, Phase
from tests.support.migration_control import change, go_to, until_ready
from tests.support.server_process import ServerProcess

ROOT = Path(__file__).parents[2]
_PATIENCE = 120.0
"""Seconds for a phase change, which compares a million messages first."""

_RUNNER = asyncio.Runner()
"""One event loop for all calls, because gRPC's thread may still call into a closed one."""


class Served(NamedTuple):
    """Running server."""

    address: str
    pid: int


@contextmanager
def program(module: str, *options: str) -> Iterator[Served]:
    """Run one of the comparison servers; it prints its address when it serves."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"tools.benchmarks.{module}", *options],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        address = "" if process.stdout is None else process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"{module} exited before it served")
        yield Served(address, process.pid)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def ours(
    sqlite: Path | None = None, postgres: str | None = None, options: tuple[str, ...] = ()
) -> Iterator[ServerProcess]:
    """Run SagaStore with its defaults and ``options``, on one store or on both."""
    if sqlite is None:
        # The file is never created: its folder is the home of the process.
        server = ServerProcess(ROOT / "build" / "none.db", *options, postgres=postgres)
    else:
        env = {} if postgres is None else {"SAGASTORE_POSTGRES": postgres}
        server = ServerProcess(sqlite, *options, env=env)
    try:
        yield server.start()
        if server.alive:
            server.terminate()
    finally:
        server.close()


def as_served(server: ServerProcess) -> Served:
    """Return the address of a SagaStore server."""
    return Served(server.address, server.pid)


def copy_store(source: Path, target: Path) -> Path:
    """Copy a SQLite file that no server has open, and sync the disk."""
    shutil.copyfile(source, target)
    os.sync()
    return target


def change_phases(address: str, phase: Phase) -> None:
    """Advance to ``phase`` and wait for the preconditions of each step."""

    async def going() -> None:
        async with AsyncClient(address, timeout=_PATIENCE) as client:
            await go_to(client, phase)

    _RUNNER.run(going())


def ready_for_next(address: str) -> Migration:
    """Wait until nothing blocks the next phase."""

    async def waiting() -> Migration:
        async with AsyncClient(address, timeout=_PATIENCE) as client:
            return await until_ready(client)

    return _RUNNER.run(waiting())


def change_to(address: str, phase: Phase) -> tuple[float, float]:
    """Change the phase; return its start and end in seconds since 1970."""

    async def changing() -> tuple[float, float]:
        async with AsyncClient(address, timeout=_PATIENCE) as client:
            await until_ready(client)
            began = time.time()
            await change(client, phase)
            return began, time.time()

    return _RUNNER.run(changing())


def migration_of(address: str) -> Migration:
    """Return the migration status."""

    async def asking() -> Migration:
        async with AsyncClient(address, timeout=_PATIENCE) as client:
            return await client.migration.get()

    return _RUNNER.run(asking())


def control_backfill(address: str, *, paused: bool) -> None:
    """Pause or resume the backfill."""

    async def asking() -> None:
        async with AsyncClient(address, timeout=_PATIENCE) as client:
            await client.migration.control_backfill(paused=paused)

    _RUNNER.run(asking())


def journal_is_empty(address: str) -> int:
    """Wait until the other store has caught up; return the initial number of missing changes."""

    async def waiting() -> int:
        async with AsyncClient(address, timeout=_PATIENCE) as client:
            most = (await client.migration.get()).journal_rows
            async for status in client.migration.watch():
                if not status.journal_rows:
                    return most
        raise RuntimeError("the migration status stream ended")

    return _RUNNER.run(waiting())


class Processor:
    """CPU usage of processes and their children."""

    def __init__(self, *pids: int) -> None:
        """Start counting."""
        self._pids = pids
        self._before = self._used()

    def seconds(self) -> float:
        """Return the CPU seconds used since the start."""
        return self._used() - self._before

    def _used(self) -> float:
        total = 0.0
        for pid in self._pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                for one in (process, *process.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        times: Any = one.cpu_times()
                        total += times.user + times.system
        return total
