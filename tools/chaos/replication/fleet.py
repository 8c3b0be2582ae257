"""Three SagaStore servers on one database, each supervised, and the environment of all rounds."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.telemetry.ops import ON, ops_of, scrape
from tools.chaos.cluster import ChaosServer, Supervisor
from tools.chaos.history import History
from tools.chaos.proxy import Proxy
from tools.chaos.replication.failover import FailoverManager
from tools.chaos.replication.nodes import SERVERS, Nodes
from tools.chaos.replication.read_metrics import counted

QUORUM, ASYNCHRONOUS = "quorum", "asynchronous"
"""Modes of replication."""

SYNCHRONOUS = {QUORUM: "ANY 1 (n1, n2, n3)", ASYNCHRONOUS: ""}
"""``synchronous_standby_names`` of each mode. Every node has the same, whatever its role."""

_SETTINGS = {
    "SAGASTORE_POSTGRES_POOL_MIN": "1",
    "SAGASTORE_POSTGRES_POOL_MAX": "10",
    "SAGASTORE_POSTGRES_ACQUIRE_TIMEOUT": "2",
    "SAGASTORE_POSTGRES_STATEMENT_TIMEOUT": "4",
    "SAGASTORE_DRAIN_SECONDS": "2",
}


class ClusterBed:
    """Nodes, links and failover manager, which outlive the rounds."""

    def __init__(self) -> None:
        """Create everything; `open` starts it."""
        # Below /tmp, because the path of a Unix socket is limited to 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.folder.chmod(0o711)
        self.proxy = Proxy()
        self.nodes = Nodes(self.folder, self.proxy)
        self.history = History()
        """That of the current round."""
        self.manager = FailoverManager(self.nodes, self._mark)
        self.mode = QUORUM

    async def open(self) -> None:
        """Start the nodes."""
        await asyncio.to_thread(self.nodes.start, SYNCHRONOUS[self.mode])
        await self.manager.until_whole()

    async def begin(self, mode: str, history: History) -> None:
        """Prepare for a round with a mode of replication; its events go to ``history``."""
        self.history = history
        await self.manager.recover()
        if mode != self.mode:
            self.mode = mode
            for node in self.nodes.all:
                await node.run(
                    f"ALTER SYSTEM SET synchronous_standby_names = '{SYNCHRONOUS[mode]}'",
                    "SELECT pg_reload_conf()",
                )

    def _mark(self, kind: str, **facts: Any) -> None:
        self.history.mark(kind, **facts)

    def close(self) -> None:
        """Stop everything and remove all files."""
        self.nodes.stop()
        self.proxy.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Fleet:
    """Servers of one round."""

    def __init__(self, bed: ClusterBed, database: str, plant: str, history: History) -> None:
        """Create the servers of a database; ``plant`` names the planted fault, if any."""
        self._bed = bed
        self._database = database
        self._history = history
        synchronous = str(bed.mode == QUORUM).lower()
        env = _SETTINGS | ON | {"SAGASTORE_POSTGRES_REQUIRE_SYNC": synchronous}
        self.supervisors = [
            self._supervisor(number, env, plant) for number in range(1, SERVERS + 1)
        ]

    def _supervisor(self, number: int, env: Mapping[str, str], plant: str) -> Supervisor:
        folder = self._bed.folder / f"server{number}"
        folder.mkdir(exist_ok=True)
        dsn = self._bed.nodes.dsn(number, self._database)
        replicas = ",".join(self._bed.nodes.replicas(number, self._database))
        own = {**env, "SAGASTORE_POSTGRES_REPLICAS": replicas}
        server = ChaosServer(folder / "unused.db", own, plant, None, postgres=dsn)
        return Supervisor(
            server, lambda state: self._history.mark("server", state=state, number=number)
        )

    @property
    def addresses(self) -> list[str]:
        """Addresses of the servers, in the order of their numbers."""
        return [supervisor.server.address for supervisor in self.supervisors]

    async def open(self) -> None:
        """Create the database, start the servers, and wait until they serve."""
        await self._bed.manager.primary.run(f"CREATE DATABASE {self._database}")
        async with asyncio.timeout(180):
            # The first one creates the schema.
            for supervisor in self.supervisors:
                supervisor.start()
                if supervisor is self.supervisors[0]:
                    await supervisor.up.wait()
            for supervisor in self.supervisors:
                await supervisor.up.wait()

    async def read_counts(self) -> Counter[str]:
        """Return the metrics of reads of all servers, each since its start."""
        found: Counter[str] = Counter()
        for supervisor in self.supervisors:
            found += counted(await asyncio.to_thread(scrape, ops_of(supervisor.server)))
        return found

    async def close(self) -> None:
        """End the servers, whatever their state, and drop the database."""
        for supervisor in self.supervisors:
            await supervisor.abandon()
        await self._bed.manager.recover()
        await self._bed.manager.primary.run(
            f"DROP DATABASE IF EXISTS {self._database} WITH (FORCE)"
        )


@contextlib.contextmanager
def cluster_bed() -> Iterator[ClusterBed]:
    """Provide an environment for rounds; `ClusterBed.open` starts it."""
    bed = ClusterBed()
    try:
        yield bed
    finally:
        bed.close()
