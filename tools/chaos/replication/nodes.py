"""PostgreSQL nodes with streaming replication, and the links through which they are reached.

    server 1..3 ── proxy ── node 1..3 ── proxy ── node 1..3

Every server reaches every node through a separate link, and so does every node that receives WAL
from another one, so that any pair can be separated. The harness itself uses the Unix sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from tests.support.postgres import PostgresProcess, give_away
from tools.chaos.proxy import Proxy

SERVERS = 3
"""Number of SagaStore servers."""

NODES = 3
"""Number of PostgreSQL nodes: with quorum commit, the smallest that survives any one of them."""

ANSWER = 2.0
"""Seconds in which a healthy node answers the harness."""

BACKUP = 120.0
"""Seconds that a base backup or a rewind may take on a busy machine."""

_SETTINGS = {
    # A lost primary is noticed at once: rounds are short.
    "wal_retrieve_retry_interval": "100ms",
    "wal_receiver_timeout": "3s",
    "wal_sender_timeout": "3s",
    "wal_receiver_status_interval": "1s",
    # A former primary must find the WAL since the promotion, and a rewind the WAL before it.
    "wal_keep_size": "64MB",
    "min_wal_size": "16MB",
    "max_wal_size": "128MB",
    "shared_buffers": "16MB",
    "autovacuum": "off",
}

_LOG = 200_000
"""Characters of the log of a node that a failed round keeps."""

_SOCKET = ".s.PGSQL.5432"


class Node(PostgresProcess):
    """One PostgreSQL node, primary or standby."""

    def __init__(self, folder: Path, number: int) -> None:
        """Keep its data in ``folder``, whose path must be short; do not start it."""
        super().__init__(folder)
        self.number = number
        self.name = f"n{number}"
        """Its ``application_name`` as a standby."""
        self._freezing: contextlib.ExitStack | None = None

    @property
    def socket(self) -> str:
        """Path of its socket."""
        return f"{self._folder}/{_SOCKET}"

    @property
    def is_frozen(self) -> bool:
        """Whether its processes are suspended."""
        return self._freezing is not None

    def initialize(self) -> None:
        """Create its data directory; small WAL segments make backups quick."""
        self.create_folder()
        self._run("initdb", "--auth=trust", "--encoding=utf8", "--locale=C.UTF-8",
                  "--username=postgres", "--no-sync", "--wal-segsize=1")  # fmt: skip
        self.add_settings(_SETTINGS)

    def create_folder(self) -> None:
        """Create the folder of its data directory and its socket."""
        folder = self._data.parent
        folder.mkdir(parents=True)
        give_away(folder)

    def add_settings(self, settings: dict[str, str]) -> None:
        """Append settings to the configuration; PostgreSQL must be stopped."""
        with (self._data / "postgresql.auto.conf").open("a", encoding="utf-8") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    # ------------------------------------------------------------------ state of the process

    def freeze(self) -> None:
        """Suspend all its processes; it ends no connection and answers nothing."""
        stack = contextlib.ExitStack()
        with contextlib.suppress(OSError):
            stack.enter_context(self.frozen())
            self._freezing = stack

    def thaw(self) -> None:
        """Resume its processes; a no-op if they are not suspended."""
        freezing, self._freezing = self._freezing, None
        if freezing is not None:
            freezing.close()

    def kill(self) -> None:
        """Kill it with SIGKILL, and wait for the end of its processes; frozen ones as well."""
        pids = self.pids()
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            os.kill(pids[0], signal.SIGKILL)
        # Frozen children would keep the shared memory.
        for pid in pids[1:] if self.is_frozen else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._freezing = None
        while self._run("pg_ctl", "status", check=False) == 0:
            pass

    def pids(self) -> list[int]:
        """Return the PIDs of the postmaster and its children; empty if it does not run."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = self.pid
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
            return [pid, *map(int, children.split())]
        return []

    def demote(self) -> None:
        """Stop it cleanly: its standbys receive everything first."""
        self._run("pg_ctl", "-w", "-t", "60", "-m", "fast", "stop")

    # ------------------------------------------------------------------ roles

    def follow_again(self, source: Node, conninfo: str, how: str) -> None:
        """Become a standby of ``source``.

        Args:
            source: The primary.
            conninfo: How to receive WAL from it.
            how: ``backup``: discard all data; ``rewind``: discard only what the primary does not
                have, or all data if that fails.

        """
        self.thaw()
        self.stop()
        if how == "backup" or not self._rewind(source):
            shutil.rmtree(self._data)
            if not source.base_backup(self._data, BACKUP):
                raise RuntimeError(f"pg_basebackup of {source.name} failed")
        self.add_settings({"primary_conninfo": conninfo})
        (self._data / "standby.signal").touch()
        self.start()

    def _rewind(self, source: Node) -> bool:
        address = f"host={source.data.parent} user=postgres dbname=postgres"
        done = self._run("pg_rewind", "--no-sync", "--source-server", address, check=False)
        return done == 0

    # ------------------------------------------------------------------ questions

    async def row(self, sql: str, *arguments: Any) -> Any:
        """Return the first row of a statement.

        Raises:
            asyncpg.PostgresError, OSError, TimeoutError: It does not answer.

        """
        async with asyncio.timeout(ANSWER):
            connection = await asyncpg.connect(self.dsn, timeout=ANSWER)
            try:
                return await connection.fetchrow(sql, *arguments)
            finally:
                connection.terminate()

    async def run(self, *statements: str) -> None:
        """Run statements, each in a separate transaction.

        Raises:
            asyncpg.PostgresError, OSError, TimeoutError: It does not answer.

        """
        async with asyncio.timeout(10 * ANSWER):
            connection = await asyncpg.connect(self.dsn, timeout=ANSWER)
            try:
                for statement in statements:
                    await connection.execute(statement)
            finally:
                connection.terminate()


NO_ANSWER = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What a question to a node raises that is stopped, frozen, or starting."""


class Nodes:
    """Three nodes and all links to them."""

    def __init__(self, folder: Path, proxy: Proxy) -> None:
        """Create nodes below ``folder``; `start` starts them."""
        self.all: Sequence[Node] = [Node(folder / f"n{one}", one) for one in range(1, NODES + 1)]
        self.proxy = proxy
        self._ports: dict[str, int] = {}
        for node in self.all:
            for link in (*server_links(node), *replication_links(node)):
                self._ports[link] = proxy.open(link, node.socket)

    def start(self, synchronous: str) -> None:
        """Start node 1 as the primary and the others as its standbys.

        Args:
            synchronous: Value of ``synchronous_standby_names``.

        """
        first, *others = self.all
        first.initialize()
        first.add_settings({"synchronous_standby_names": synchronous})
        first.start()
        for node in others:
            node.create_folder()
            if not first.base_backup(node.data, BACKUP):
                raise RuntimeError("pg_basebackup failed")
            node.add_settings({"primary_conninfo": self.conninfo(node, first)})
            (node.data / "standby.signal").touch()
            node.start()

    def conninfo(self, receiver: Node, source: Node) -> str:
        """Return ``primary_conninfo`` of ``receiver`` for ``source``."""
        port = self._ports[_replication_link(receiver.number, source)]
        return (
            f"host=127.0.0.1 port={port} user=postgres application_name={receiver.name} "
            "connect_timeout=2 sslmode=disable gssencmode=disable"
        )

    def dsn(self, server: int, database: str) -> str:
        """Return the connection string of a server, which names all nodes."""
        hosts = ",".join(
            f"127.0.0.1:{self._ports[_server_link(server, node)]}" for node in self.all
        )
        return f"postgresql://postgres@{hosts}/{database}?sslmode=disable"

    def replicas(self, server: int, database: str) -> list[str]:
        """Return a connection string for each node: any may become a standby."""
        return [
            f"postgresql://postgres@127.0.0.1:{self._ports[_server_link(server, node)]}/{database}"
            "?sslmode=disable"
            for node in self.all
        ]

    @contextlib.contextmanager
    def cut_off(self, links: Sequence[str], *, silent: bool, drops: bool = False) -> Iterator[None]:
        """Interrupt links: ``silent`` holds all packets, otherwise connections are reset.

        Packets that were held are delivered at the end, unless ``drops``.
        """
        for link in links:
            if silent:
                self.proxy.set(link, hold=("up", "down"))
            else:
                self.proxy.set(link, refuse=True)
                self.proxy.cut(link)
        try:
            yield
        finally:
            for link in links:
                if drops:
                    self.proxy.cut(link)
                self.proxy.set(link)

    def logs(self) -> dict[str, str]:
        """Return the end of the log of each node, by its name."""
        return {
            node.name: (node.data.parent / "log").read_text(errors="replace")[-_LOG:]
            for node in self.all
        }

    def stop(self) -> None:
        """Stop all nodes."""
        for node in self.all:
            node.thaw()
            node.stop()


def server_links(node: Node) -> list[str]:
    """Return the links of all servers to a node."""
    return [_server_link(server, node) for server in range(1, SERVERS + 1)]


def replication_links(node: Node) -> list[str]:
    """Return the links through which other nodes receive WAL from a node."""
    return [_replication_link(one, node) for one in range(1, NODES + 1) if one != node.number]


def receiving_links(node: Node) -> list[str]:
    """Return the links through which a node receives WAL."""
    return [
        f"replication {node.number} from {one}" for one in range(1, NODES + 1) if one != node.number
    ]


def _server_link(server: int, node: Node) -> str:
    return f"server {server} to {node.number}"


def _replication_link(receiver: int, source: Node) -> str:
    return f"replication {receiver} from {source.number}"
