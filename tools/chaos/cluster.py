"""Processes of a round: a supervised server, PostgreSQL, and the proxy between them.

    clients ── proxy ── sagastore-server ── proxy ── PostgreSQL
                              │                          │
                         a small disk               a small disk

PostgreSQL and the proxy outlive a round; they belong to the ``Testbed``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import asyncpg

from tests.support.postgres import PostgresProcess
from tests.support.server_process import ServerProcess
from tools.chaos.fault_switches import FaultSwitches
from tools.chaos.log_check import LogLine
from tools.chaos.proxy import Proxy

_ROOT = Path(__file__).parents[2]
_MIB = 1024 * 1024

CLIENTS, POSTGRES = "clients", "postgres"
"""Names of the two proxy links."""

_SETTINGS = {"max_wal_size": "64MB", "min_wal_size": "32MB", "autovacuum": "off"}
"""Settings of PostgreSQL that keep its WAL small enough for a small disk."""

_PORT = ".s.PGSQL.5432"
_ENDS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGKILL})


class Disk:
    """Folder on a small disk that can be filled, or a plain folder where mounting is impossible."""

    def __init__(self, folder: Path, mebibytes: int) -> None:
        """Mount a disk at ``folder``; without the permission, use a plain folder."""
        self.folder = folder
        self._ballast = folder / "ballast"
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
        can = os.geteuid() == 0 and shutil.which("mount") is not None
        self.mounted = can and subprocess.run(command, check=False).returncode == 0

    def fill(self) -> None:
        """Fill the disk completely."""
        assert self.mounted
        with self._ballast.open("ab", buffering=0) as ballast:
            for piece in (bytes(_MIB), bytes(512)):
                with contextlib.suppress(OSError):
                    while ballast.write(piece):
                        pass

    def free(self) -> None:
        """Free the space again; a no-op if the disk is not filled."""
        with contextlib.suppress(FileNotFoundError):
            self._ballast.unlink()

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)


class Testbed:
    """Environment shared by all rounds: PostgreSQL, the proxy, and a folder."""

    def __init__(self) -> None:
        """Start all processes; takes some seconds."""
        # Below /tmp, because the path of a Unix socket is limited to 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.folder.chmod(0o711)
        self.disk = Disk(self.folder / "pg", 640)
        self.postgres = PostgresProcess(self.disk.folder / "p")
        self.proxy = Proxy()
        self.turn = asyncio.Lock()
        """Held while PostgreSQL is being stopped."""
        self.postgres.start()

    async def open(self) -> None:
        """Apply the settings of PostgreSQL."""
        for name, value in _SETTINGS.items():
            await self.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        await self.execute("SELECT pg_reload_conf()")

    def dsn(self, database: str = "postgres") -> str:
        """Return a connection string that bypasses the proxy."""
        return f"postgresql://postgres@/{database}?host={self.disk.folder}/p"

    @property
    def socket(self) -> str:
        """Path of PostgreSQL's socket."""
        return f"{self.disk.folder}/p/{_PORT}"

    async def execute(self, statement: str, database: str = "postgres") -> None:
        """Run a statement, bypassing the proxy."""
        connection = await asyncpg.connect(self.dsn(database))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def drop(self, database: str) -> None:
        """Drop a database and close its connections."""
        await self.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    def postgres_pids(self) -> list[int]:
        """Return the PIDs of PostgreSQL; empty if it is not running."""
        try:
            pid = self.postgres.pid
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        except (OSError, ValueError, IndexError):
            return []
        return [pid, *map(int, text.split())]

    def recover(self) -> None:
        """Make sure that PostgreSQL runs and has disk space; wait for its crash recovery."""
        self.disk.free()
        for pid in self.postgres_pids():
            send(pid, signal.SIGCONT)
        until = time.monotonic() + 60
        while True:
            try:
                self.postgres.start_again()
                # For pg_ctl, a killed server that is still a zombie counts as running.
                with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
                    probe.connect(self.socket)
            except (RuntimeError, OSError, subprocess.SubprocessError):
                # Children of a killed server may live a little longer.
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
            else:
                return

    def close(self) -> None:
        """Stop everything and remove all files."""
        for pid in self.postgres_pids():
            send(pid, signal.SIGCONT)
        self.postgres.stop()
        self.proxy.close()
        self.disk.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class ChaosServer(ServerProcess):
    """Server process, optionally with planted faults and a controllable clock."""

    def __init__(
        self,
        sqlite: Path,
        env: dict[str, str],
        plant: str,
        clock: Path | None,
        postgres: str | None = None,
    ) -> None:
        """Create it without starting; ``plant`` names the planted fault, if any.

        With ``postgres`` it serves that database alone, and ``sqlite`` is not used.
        """
        python_path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
        own = {"CHAOS_PLANT": plant, "CHAOS_CLOCK": str(clock or ""), "PYTHONPATH": python_path}
        super().__init__(sqlite, env=env | own, postgres=postgres)
        self.said: list[LogLine] = []
        """Log of all its processes."""
        self._patched = bool(plant or clock)

    def note(self, line: str) -> None:
        """Keep a line of the log."""
        super().note(line)
        self.said.append(LogLine(time.monotonic_ns(), line))

    def command(self, *options: str) -> list[str]:
        if self._patched:
            return [sys.executable, "-m", "tools.chaos.faulty_server", "serve", *options]
        return super().command(*options)


class Ending(NamedTuple):
    """How a server process ended."""

    status: int
    asked: frozenset[int]
    """Signals that it was sent."""
    served: bool
    last_words: str


class Supervisor:
    """Restarts the server whenever it ends, as a service manager does."""

    def __init__(self, server: ChaosServer, on_change: Callable[[str], object]) -> None:
        """Supervise ``server``; ``on_change`` is called with ``up`` and ``down``."""
        self.server = server
        self.up = asyncio.Event()
        self.endings: list[Ending] = []
        self.starts = 0
        self.pause = 0.0
        """Seconds to wait before the next restart."""
        self._on_change = on_change
        self._asked: set[int] = set()
        self._over = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start supervising."""
        self._task = asyncio.create_task(self._supervise(), name="supervisor")

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; return whether the process existed."""
        if not self.server.alive:
            return False
        self._asked.add(number)
        send(self.server.pid, number)
        return True

    @property
    def stopping(self) -> bool:
        """Whether the process was asked to stop and has not been restarted yet."""
        return bool(self._asked & _ENDS)

    async def end(self) -> Ending:
        """Stop the server gracefully and return how it ended."""
        self._over = True
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        assert self._task is not None
        try:
            async with asyncio.timeout(120):
                await self._task
        except TimeoutError:
            self.server.close()
            return Ending(-9, frozenset({15}), True, "it did not stop within 120 s")
        return self.endings[-1]

    async def abandon(self) -> None:
        """Kill the server."""
        self._over = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self.server.close)

    async def _supervise(self) -> None:
        while not self._over:
            self._asked = set()
            self.starts += 1
            try:
                await asyncio.to_thread(self.server.start)
                served = True
                self.up.set()
                self._on_change("up")
            except AssertionError:
                served = False
            status = await asyncio.to_thread(self.server.wait)
            self.up.clear()
            if served:
                self._on_change("down")
            words = " | ".join(line for line in self.server.stderr[-3:])
            self.endings.append(Ending(status, frozenset(self._asked), served, words))
            if not self._over:
                await asyncio.sleep(max(self.pause, 0.0 if served else 0.3))
                self.pause = 0.0


class Cluster:
    """Server of one round, with its links, disk and clock."""

    def __init__(self, testbed: Testbed, name: str) -> None:
        """Create the cluster; ``name`` is also the name of its database."""
        self.testbed = testbed
        self.database = name
        self.disk = Disk(testbed.folder / name, 48)
        self.path = self.disk.folder / "memory.db"
        """File of the server that answers clients."""
        self.clock_file = self.disk.folder / "clock"
        self.supervisor: Supervisor
        self.former: list[Supervisor] = []
        """Supervisors of replaced servers."""
        self._env: dict[str, str] = {}
        self.switches: FaultSwitches | None = None
        """Switches of the patched server; None: it is not patched."""
        self.address = ""
        """Address of the proxy, to which clients connect."""

    @property
    def server(self) -> ChaosServer:
        return self.supervisor.server

    async def open(
        self, env: dict[str, str], plant: str, on_change: Callable[[str], object], *, clock: bool
    ) -> None:
        """Start the server on the existing files and wait until it serves."""
        proxy = self.testbed.proxy
        port = proxy.open(POSTGRES, self.testbed.socket)
        dsn = f"postgresql://postgres@127.0.0.1:{port}/{self.database}?sslmode=disable"
        if clock:
            self.switches = FaultSwitches(self.clock_file, create=True)
        self._env = env | {"SAGASTORE_POSTGRES": dsn}
        server = ChaosServer(
            self.path,
            self._env,
            plant,
            self.clock_file if clock else None,
        )
        self.supervisor = Supervisor(server, on_change)
        self.supervisor.start()
        async with asyncio.timeout(180):
            await self.supervisor.up.wait()
        self.address = f"127.0.0.1:{proxy.open(CLIENTS, server.address)}"

    def second(self, path: Path, on_change: Callable[[str], object]) -> Supervisor:
        """Prepare a second server without planted faults, on a copy of the file."""
        return Supervisor(ChaosServer(path, self._env, "", None), on_change)

    def replace(self, second: Supervisor) -> None:
        """Continue with the second server."""
        self.former.append(self.supervisor)
        self.supervisor = second

    @contextlib.contextmanager
    def switch(self, name: str, number: float, after: float = 0.0) -> Iterator[None]:
        """Set a switch of the server for the duration of the context, then to ``after``."""
        assert self.switches is not None
        self.switches[name] = number
        try:
            yield
        finally:
            self.switches[name] = after

    async def recover(self) -> None:
        """End all faults and wait until all processes run."""
        for link in (CLIENTS, POSTGRES):
            self.testbed.proxy.set(link)
        if self.switches is not None:
            self.switches.reset()
        self.disk.free()
        self.supervisor.signal(signal.SIGCONT)
        async with self.testbed.turn:
            await asyncio.to_thread(self.testbed.recover)

    def close(self) -> None:
        """Remove its files."""
        if self.switches is not None:
            self.switches.close()
        self.disk.close()
        shutil.rmtree(self.disk.folder, ignore_errors=True)
        shutil.rmtree(self.testbed.folder / f"{self.database}-second", ignore_errors=True)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal if the process exists."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@contextlib.contextmanager
def running_testbed() -> Iterator[Testbed]:
    """Run a testbed for the duration of the context."""
    testbed = Testbed()
    try:
        yield testbed
    finally:
        testbed.close()
