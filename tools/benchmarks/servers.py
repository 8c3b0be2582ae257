"""The servers that are measured, each in a process of its own, and how to steer ours."""

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
"""Seconds for a change of phase, which at a million messages compares all of them first."""

_RUNNER = asyncio.Runner()
"""One loop for all: gRPC's thread may still have something to tell to one that is closed."""


class Served(NamedTuple):
    """A server that runs."""

    address: str
    pid: int


@contextmanager
def program(module: str, *options: str) -> Iterator[Served]:
    """Run one of the other servers; it prints its address when it serves."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{module}", *options],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        address = "" if process.stdout is None else process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"{module} has ended before it served")
        yield Served(address, process.pid)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def ours(sqlite: Path | None = None, postgres: str | None = None) -> Iterator[ServerProcess]:
    """Run our server, with its defaults, on either store or on both."""
    if sqlite is None:
        # No such file is made: its folder is the home of the process.
        server = ServerProcess(ROOT / "build" / "none.db", postgres=postgres)
    else:
        env = {} if postgres is None else {"SAGASTORE_POSTGRES": postgres}
        server = ServerProcess(sqlite, env=env)
    try:
        yield server.start()
        if server.alive:
            server.terminate()
    finally:
        server.close()


def as_served(server: ServerProcess) -> Served:
    """Return where a server of ours is."""
    return Served(server.address, server.pid)


def copy_store(source: Path, target: Path) -> Path:
    """Copy a SQLite file that no server has open, and let the disk come to rest."""
    shutil.copyfile(source, target)
    os.sync()
    return target


def change_phases(address: str, phase: Phase) -> None:
    """Go to ``phase``, waiting for all that each step needs."""

    async def going() -> None:
        async with AsyncClient(address, timeout=_PATIENCE) as client:
            await go_to(client, phase)

    _RUNNER.run(going())


def ready_for_next(address: str) -> Migration:
    """Wait until nothing stands before the next phase."""

    async def waiting() -> Migration:
        async with AsyncClient(address, timeout=_PATIENCE) as client:
            return await until_ready(client)

    return _RUNNER.run(waiting())


def change_to(address: str, phase: Phase) -> tuple[float, float]:
    """Change the phase; return when that began and ended, in seconds since 1970."""

    async def changing() -> tuple[float, float]:
        async with AsyncClient(address, timeout=_PATIENCE) as client:
            await until_ready(client)
            began = time.time()
            await change(client, phase)
            return began, time.time()

    return _RUNNER.run(changing())


def migration_of(address: str) -> Migration:
    """Return how the migration does."""

    async def asking() -> Migration:
        async with AsyncClient(address, timeout=_PATIENCE) as client:
            return await client.migration.get()

    return _RUNNER.run(asking())


def control_backfill(address: str, *, paused: bool) -> None:
    """Pause the backfill, or let it go on."""

    async def asking() -> None:
        async with AsyncClient(address, timeout=_PATIENCE) as client:
            await client.migration.control_backfill(paused=paused)

    _RUNNER.run(asking())


def journal_is_empty(address: str) -> int:
    """Wait until the other store has everything; return how many changes it lacked."""

    async def waiting() -> int:
        async with AsyncClient(address, timeout=_PATIENCE) as client:
            most = (await client.migration.get()).journal_rows
            async for status in client.migration.watch():
                if not status.journal_rows:
                    return most
        raise RuntimeError("the watch has ended")

    return _RUNNER.run(waiting())


class Processor:
    """How much of the machine some processes, and what they started, take."""

    def __init__(self, *pids: int) -> None:
        """Begin to count."""
        self._pids = pids
        self._before = self._used()

    def seconds(self) -> float:
        """Return the seconds of one core that were taken since the beginning."""
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
