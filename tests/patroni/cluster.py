"""A real Patroni cluster for tests: etcd, and three nodes of PostgreSQL under Patroni.

Everything runs on 127.0.0.1, as another user if the tests run as root. Patroni reads
``deploy/patroni/patroni.yml``; what differs between the nodes is in environment variables, as in
``deploy/patroni/node.env``. Each node has a separate session, so that a fault hits all of it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tests.support.ports import ReservedPort
from tests.support.postgres import _as_other, _children, _programs, give_away
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "deploy" / "patroni"
NODES = ("db1", "db2", "db3")

_WITHIN = 120.0
"""Seconds for a start, a failover or the return of a node on a busy machine."""


class Node:
    """One node: Patroni, and the PostgreSQL that it controls."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        """Keep everything below ``folder``; ``environment`` has the settings of all nodes."""
        self.name = name
        self.folder = folder
        self.data = folder / "data"
        self.port = ReservedPort()
        self.api = ReservedPort()
        self.environment = environment | {
            "PATRONI_NAME": name,
            "PATRONI_RESTAPI_LISTEN": self.api.address,
            "PATRONI_RESTAPI_CONNECT_ADDRESS": self.api.address,
            "PATRONI_POSTGRESQL_LISTEN": self.port.address,
            "PATRONI_POSTGRESQL_CONNECT_ADDRESS": self.port.address,
            "PATRONI_POSTGRESQL_DATA_DIR": str(self.data),
            "PATRONI_POSTGRESQL_PGPASS": str(folder / "pgpass"),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: list[str]) -> None:
        """Start Patroni with ``command``."""
        with (self.folder / "patroni.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_other(), *command],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def freeze(self) -> None:
        """Suspend Patroni and PostgreSQL: nothing answers, and no connection ends."""
        self._signal_patroni(signal.SIGSTOP)
        # The postmaster first, so that there is no new process meanwhile.
        _signal(self._postgres(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume all processes."""
        _signal(reversed(list(self._postgres())), signal.SIGCONT)
        self._signal_patroni(signal.SIGCONT)

    def kill(self) -> None:
        """Kill Patroni and PostgreSQL, also if they are frozen."""
        self.freeze()
        _signal(list(self._postgres()), signal.SIGKILL)
        self._signal_patroni(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def kill_postgres(self) -> None:
        """Kill the postmaster; Patroni continues."""
        _signal([next(self._postgres())], signal.SIGKILL)

    def _signal_patroni(self, number: signal.Signals) -> None:
        """Send a signal to Patroni and the programs that it runs, except PostgreSQL."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _postgres(self) -> Iterator[int]:
        """Yield the postmaster, if it runs, and then its children."""
        try:
            postmaster = int((self.data / "postmaster.pid").read_text().splitlines()[0])
            # The file remains after a crash, and its number can belong to another process.
            if Path(f"/proc/{postmaster}/cwd").readlink() != self.data:
                return
        except (OSError, ValueError, IndexError):
            return
        yield postmaster
        with suppress(OSError):
            yield from _children(postmaster)

    def is_healthy(self) -> bool:
        """Return whether its Patroni says that PostgreSQL runs."""
        with suppress(OSError):
            url = f"http://{self.api.address}/health"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == HTTPStatus.OK)
        return False

    def close(self) -> None:
        """End the node at once, whatever its state."""
        self.kill()
        self.port.close()
        self.api.close()


class PatroniCluster:
    """Three nodes, and one member of etcd."""

    def __init__(self, folder: Path, patroni: Path) -> None:
        """Keep everything below ``folder``; ``patroni`` is the folder of Patroni's programs."""
        self._folder = folder
        self._patroni = patroni
        self._etcd = ReservedPort(), ReservedPort()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._proxy: ReservedPort | None = None
        self.password = secrets.token_hex(16)
        """Password of all roles."""
        environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ},
            "PATRONI_ETCD3_HOSTS": self._etcd[0].address,
            "PATRONI_RESTAPI_USERNAME": "patroni",
            "PATRONI_RESTAPI_PASSWORD": self.password,
            "PATRONI_POSTGRESQL_BIN_DIR": str(_programs()),
            "PATRONI_SUPERUSER_PASSWORD": self.password,
            "PATRONI_REPLICATION_PASSWORD": self.password,
            "PATRONI_REWIND_PASSWORD": self.password,
        }
        self.nodes = {name: Node(name, folder / name, environment) for name in NODES}

    # ------------------------------------------------------------------ start and stop

    def start(self) -> None:
        """Start everything, and wait until the cluster is complete."""
        folders = [self._folder / "etcd", *(node.folder for node in self.nodes.values())]
        for folder in folders:
            folder.mkdir()
            give_away(folder)
        # Only a test needs this: sockets in the folder of the node, not in /tmp. pg_rewind copies
        # the data directory, so they must not be there. Patroni merges the files of a folder.
        self._settings = self._folder / "settings"
        self._settings.mkdir()
        shutil.copy(SETTINGS / "patroni.yml", self._settings)
        (self._settings / "test.yml").write_text(
            "postgresql: {parameters: {unix_socket_directories: '..'}}\n", encoding="utf-8"
        )
        self._start_etcd()
        # The first one creates the cluster, the others copy it.
        self.start_node(NODES[0])
        eventually(self.running, _WITHIN, 0.2)
        for name in NODES[1:]:
            self.start_node(name)
        self.until_complete()

    def start_node(self, name: str) -> None:
        """Start Patroni on a node."""
        self.nodes[name].start([str(self._patroni / "patroni"), str(self._settings)])

    def close(self) -> None:
        """End everything at once."""
        for node in self.nodes.values():
            node.close()
        for process in self._processes:
            process.kill()
            process.wait()
        for port in (*self._etcd, *([self._proxy] if self._proxy else [])):
            port.close()

    def _start_etcd(self) -> None:
        client, peer = (f"http://{port.address}" for port in self._etcd)
        self._run(
            "etcd",
            ["etcd", "--data-dir", str(self._folder / "etcd" / "data"), "--name", "etcd",
             "--listen-client-urls", client, "--advertise-client-urls", client,
             "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
             "--initial-cluster", f"etcd={peer}"],
        )  # fmt: skip

    def _run(self, name: str, command: list[str], **environment: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*_as_other(), *command], cwd="/", env=os.environ | environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._processes.append(process)

    # ------------------------------------------------------------------ state

    def state(self) -> list[dict[str, Any]]:
        """Return the members as the first Patroni that answers sees them."""
        for node in self.nodes.values():
            with suppress(OSError, ValueError):
                url = f"http://{node.api.address}/cluster"
                with urllib.request.urlopen(url, timeout=2) as answer:
                    members: list[dict[str, Any]] = json.load(answer)["members"]
                return members
        return []

    def running(self) -> list[str]:
        """Return the nodes that run as primary, or stream from it."""
        return [
            member["name"] for member in self.state() if member["state"] in {"running", "streaming"}
        ]

    def leader(self) -> str | None:
        """Return the name of the primary, if there is one."""
        leaders = [m["name"] for m in self.state() if m["role"] == "leader"]
        return leaders[0] if leaders else None

    def until_complete(self) -> None:
        """Wait until there is a primary and both others are standbys of the quorum."""
        try:
            eventually(self._complete, _WITHIN, 0.2)
        except TimeoutError as exc:
            logs = "".join(f"\n----- {name}\n{text}" for name, text in self.logs())
            raise TimeoutError(f"the cluster is not complete: {self.state()}{logs}") from exc

    def _complete(self) -> bool:
        # What etcd knows of a node that has just failed may be old.
        if not all(node.is_healthy() for node in self.nodes.values()):
            return False
        members = self.state()
        roles = sorted(member["role"] for member in members)
        timelines = {member.get("timeline") for member in members}
        return (
            roles == ["leader", "quorum_standby", "quorum_standby"]
            and len(self.running()) == len(NODES)
            and len(timelines) == 1
        )

    def standbys(self) -> list[str]:
        """Return the names of the nodes that are not the primary."""
        leader = self.leader()
        return [name for name in NODES if name != leader]

    # ------------------------------------------------------------------ faults

    def kill_postgres(self, name: str) -> None:
        """Kill the postmaster of a node; its Patroni continues."""
        self.nodes[name].kill_postgres()

    def kill(self, name: str) -> None:
        """Kill all processes of a node, as a power failure does."""
        self.nodes[name].kill()

    def freeze(self, name: str) -> None:
        """Suspend all processes of a node: nothing answers, and no connection ends."""
        self.nodes[name].freeze()

    def thaw(self, name: str) -> None:
        """Resume all processes of a node."""
        self.nodes[name].thaw()

    def switch_over_from(self, primary: str) -> None:
        """Make a standby the primary, with patronictl."""
        candidate = self.standbys()[0]
        command = [
            str(self._patroni / "patronictl"), "-c", str(self._settings / "patroni.yml"),
            "switchover", "sagastore", "--leader", primary, "--candidate", candidate, "--force",
        ]  # fmt: skip
        environment = self.nodes[candidate].environment
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)

    # ------------------------------------------------------------------ connections

    def dsn(self, user: str, database: str, *names: str) -> str:
        """Return the connection string of the named nodes, or of all."""
        hosts = ",".join(self.nodes[name].port.address for name in names or NODES)
        return f"postgresql://{user}:{self.password}@{hosts}/{database}"

    def proxy_dsn(self, user: str, database: str) -> str:
        """Return the connection string of HAProxy, which is started at the first call."""
        if self._proxy is None:
            self._proxy = ReservedPort()
            numbers = {
                f"DB{at}{suffix}": value
                for at, node in enumerate(self.nodes.values(), 1)
                for suffix, value in (("", node.port.address), ("_API", str(node.api.number)))
            }
            command = ["haproxy", "-db", "-f", str(SETTINGS / "haproxy.cfg")]
            self._run("haproxy", command, LISTEN=self._proxy.address, **numbers)
        return f"postgresql://{user}:{self.password}@{self._proxy.address}/{database}"

    def logs(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the last part of every log."""
        for path in sorted(self._folder.rglob("*.log")):
            yield str(path), path.read_text(encoding="utf-8", errors="replace")[-4000:]


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
