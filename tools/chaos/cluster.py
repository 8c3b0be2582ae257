"""Real processes for one round: a server that is kept alive, PostgreSQL, and links between.

    clients ── proxy ── sagastore-server ── proxy ── PostgreSQL
                              │                          │
                         a small disk               a small disk

What outlives a round, PostgreSQL and the proxy, is the ``Testbed``.
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
from tools.chaos.proxy import Proxy

_ROOT = Path(__file__).parents[2]
_MIB = 1024 * 1024

CLIENTS, POSTGRES = "clients", "postgres"
"""The two links."""

_SETTINGS = {"max_wal_size": "64MB", "min_wal_size": "32MB", "autovacuum": "off"}
"""Of PostgreSQL: a log that fits on a small disk."""

_PORT = ".s.PGSQL.5432"
_ENDS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGKILL})


class Disk:
    """A folder on a disk of its own, where that can be had, which can be filled."""

    def __init__(self, folder: Path, mebibytes: int) -> None:
        """Mount a disk at ``folder``; a plain folder takes its place where nobody may."""
        self.folder = folder
        self._ballast = folder / "ballast"
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
        can = os.geteuid() == 0 and shutil.which("mount") is not None
        self.mounted = can and subprocess.run(command, check=False).returncode == 0

    def fill(self) -> None:
        """Leave no room at all."""
        assert self.mounted
        with self._ballast.open("ab", buffering=0) as ballast:
            for piece in (bytes(_MIB), bytes(512)):
                with contextlib.suppress(OSError):
                    while ballast.write(piece):
                        pass

    def free(self) -> None:
        """Give the room back; harmless if it was not taken."""
        with contextlib.suppress(FileNotFoundError):
            self._ballast.unlink()

    def close(self) -> None:
        """Unmount it."""
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)


class Testbed:
    """What rounds stand on: PostgreSQL, the proxy, and a place for files."""

    def __init__(self) -> None:
        """Start everything; takes some seconds."""
        # Below /tmp: the path of a socket has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.folder.chmod(0o711)
        self.disk = Disk(self.folder / "pg", 640)
        self.postgres = PostgresProcess(self.disk.folder / "p")
        self.proxy = Proxy()
        self.turn = asyncio.Lock()
        """Held by whoever ends or stops PostgreSQL."""
        self.postgres.start()

    async def open(self) -> None:
        """Give PostgreSQL its settings."""
        for name, value in _SETTINGS.items():
            await self.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        await self.execute("SELECT pg_reload_conf()")

    def dsn(self, database: str = "postgres") -> str:
        """Return a connection string that leads directly to PostgreSQL."""
        return f"postgresql://postgres@/{database}?host={self.disk.folder}/p"

    @property
    def socket(self) -> str:
        """Where PostgreSQL listens."""
        return f"{self.disk.folder}/p/{_PORT}"

    async def execute(self, statement: str, database: str = "postgres") -> None:
        """Run a statement, directly."""
        connection = await asyncpg.connect(self.dsn(database))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def drop(self, database: str) -> None:
        """Drop a database, whoever is connected."""
        await self.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    def postgres_pids(self) -> list[int]:
        """Return the processes of PostgreSQL; none if it does not run."""
        try:
            pid = self.postgres.pid
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        except (OSError, ValueError, IndexError):
            return []
        return [pid, *map(int, text.split())]

    def recover(self) -> None:
        """See to it that PostgreSQL runs and has room; waits for its recovery."""
        self.disk.free()
        for pid in self.postgres_pids():
            send(pid, signal.SIGCONT)
        until = time.monotonic() + 60
        while True:
            try:
                self.postgres.start_again()
                # One that was killed and has not been buried counts as running for pg_ctl.
                with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
                    probe.connect(self.socket)
            except (RuntimeError, OSError, subprocess.SubprocessError):
                # Children of one that was killed may live for another moment, too.
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
            else:
                return

    def close(self) -> None:
        """Leave nothing behind."""
        for pid in self.postgres_pids():
            send(pid, signal.SIGCONT)
        self.postgres.stop()
        self.proxy.close()
        self.disk.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class ChaosServer(ServerProcess):
    """The usual command, or the same with faults planted and a clock that can jump."""

    def __init__(self, sqlite: Path, env: dict[str, str], plant: str, clock: Path | None) -> None:
        """Prepare to serve; ``plant`` names what is to be wrong with it, if anything."""
        python_path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
        own = {"CHAOS_PLANT": plant, "CHAOS_CLOCK": str(clock or ""), "PYTHONPATH": python_path}
        super().__init__(sqlite, env=env | own)
        self.log: list[str] = []
        """What the processes before this one have said."""
        self._patched = bool(plant or clock)

    def spawn(self, *, bare: bool = False) -> None:
        """Start it, and do not wait."""
        self.log += self.stderr
        super().spawn(bare=bare)

    def command(self, *options: str) -> list[str]:
        """Return the command line."""
        if self._patched:
            return [sys.executable, "-m", "tools.chaos.faulty_server", "serve", *options]
        return super().command(*options)

    @property
    def said(self) -> list[str]:
        """Everything that all its processes have said."""
        return [*self.log, *self.stderr]


class Ending(NamedTuple):
    """How a process of the server has ended."""

    status: int
    asked: frozenset[int]
    """The signals that it was sent."""
    served: bool
    last_words: str


class Supervisor:
    """Starts the server again whenever it has ended, as a service manager does."""

    def __init__(self, server: ChaosServer, on_change: Callable[[str], object]) -> None:
        """Keep ``server``; ``on_change`` hears ``up`` and ``down``."""
        self.server = server
        self.up = asyncio.Event()
        self.endings: list[Ending] = []
        self.starts = 0
        self.pause = 0.0
        """Seconds that it stays down when it ends next."""
        self._on_change = on_change
        self._asked: set[int] = set()
        self._over = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to keep it."""
        self._task = asyncio.create_task(self._supervise(), name="keeper")

    def signal(self, number: signal.Signals) -> bool:
        """Send it a signal; tell whether there was somebody to hear it."""
        if not self.server.alive:
            return False
        self._asked.add(number)
        send(self.server.pid, number)
        return True

    @property
    def stopping(self) -> bool:
        """Whether it was asked to end, and has not been started again."""
        return bool(self._asked & _ENDS)

    async def end(self) -> Ending:
        """Stop it in good order, and return how that went."""
        self._over = True
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        assert self._task is not None
        try:
            async with asyncio.timeout(40):
                await self._task
        except TimeoutError:
            self.server.close()
            return Ending(-9, frozenset({15}), True, "it did not stop within 40 s")
        return self.endings[-1]

    async def abandon(self) -> None:
        """End it at once."""
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
    """One round's server, its links, disk and clock."""

    def __init__(self, testbed: Testbed, name: str) -> None:
        """Prepare a place named ``name``, which is the name of its database as well."""
        self.testbed = testbed
        self.database = name
        self.disk = Disk(testbed.folder / name, 48)
        self.path = self.disk.folder / "memory.db"
        self.clock_file = self.disk.folder / "clock"
        self.supervisor: Supervisor
        self.former: list[Supervisor] = []
        """Of servers that were replaced."""
        self._env: dict[str, str] = {}
        self.switches: FaultSwitches | None = None
        """Of the patched server; None: it is not patched."""
        self.address = ""
        """Where clients connect: through the proxy."""

    @property
    def server(self) -> ChaosServer:
        """The server."""
        return self.supervisor.server

    async def open(
        self, env: dict[str, str], plant: str, on_change: Callable[[str], object], *, clock: bool
    ) -> None:
        """Start the server on what is there, and wait until it serves."""
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
        async with asyncio.timeout(60):
            await self.supervisor.up.wait()
        self.address = f"127.0.0.1:{proxy.open(CLIENTS, server.address)}"

    def second(self, path: Path, on_change: Callable[[str], object]) -> Supervisor:
        """Prepare a second server, without a fault, on a copy of the file."""
        return Supervisor(ChaosServer(path, self._env, "", None), on_change)

    def replace(self, second: Supervisor, path: Path) -> None:
        """Go on with a second server, and its file."""
        self.former.append(self.supervisor)
        self.supervisor, self.path = second, path

    @contextlib.contextmanager
    def switch(self, name: str, number: float, after: float = 0.0) -> Iterator[None]:
        """Set a lever of the server for as long as the context lasts, and then to ``after``."""
        assert self.switches is not None
        self.switches[name] = number
        try:
            yield
        finally:
            self.switches[name] = after

    async def recover(self) -> None:
        """End all faults, and wait until everything runs."""
        for link in (CLIENTS, POSTGRES):
            self.testbed.proxy.set(link)
        if self.switches is not None:
            self.switches.reset()
        self.disk.free()
        self.supervisor.signal(signal.SIGCONT)
        async with self.testbed.turn:
            await asyncio.to_thread(self.testbed.recover)

    def close(self) -> None:
        """Remove what it has left on disk."""
        if self.switches is not None:
            self.switches.close()
        self.disk.close()
        shutil.rmtree(self.disk.folder, ignore_errors=True)
        shutil.rmtree(self.testbed.folder / f"{self.database}-second", ignore_errors=True)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal, if there is a process."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@contextlib.contextmanager
def running_testbed() -> Iterator[Testbed]:
    """Run a ground for as long as the context lasts."""
    testbed = Testbed()
    try:
        yield testbed
    finally:
        testbed.close()
