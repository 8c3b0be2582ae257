"""A real service of several processes, and what its processes are."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from sagastore_server.config.address import Address
from tests.support.server_process import ServerProcess
from tests.support.waiting import eventually
from tests.telemetry.ops import Answered, get, ops_of, scrape


class Service(ServerProcess):
    """A supervising process with its workers."""

    @property
    def ops(self) -> str:
        """Address of the ops port."""
        return ops_of(self)

    @property
    def started(self) -> list[int]:
        """PIDs of all workers that were started, in this order."""
        return [event["pid"] for event in list(self.events) if event["event"] == "worker started"]

    def readiness(self) -> Answered:
        """Return the answer of `/readyz`."""
        return get(self.ops, "/readyz")

    def metrics(self) -> dict[str, float]:
        """Return all samples."""
        return scrape(self.ops)

    def ready_workers(self) -> int:
        """Return how many workers are ready."""
        return sum(worker["ready"] for worker in self.readiness().document["workers"])

    def wait_for_replacement(self, workers: int) -> None:
        """Wait until ``workers`` have been started and two of them are ready."""
        eventually(lambda: len(self.started) == workers and self.ready_workers() == 2)

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the log.

        Raises:
            ValueError: A line is not one object in JSON.

        """
        return [json.loads(line) for line in self.stderr]

    def new_connection(self) -> grpc.Channel:
        """Return a channel that shares its connection with no other one."""
        return self.channel(("grpc.use_local_subchannel_pool", 1))

    @contextlib.contextmanager
    def raw_connections(self, number: int) -> Iterator[list[socket.socket]]:
        """Open connections that speak no HTTP/2."""
        address = Address.parse(self.address)
        with contextlib.ExitStack() as stack:
            yield [
                stack.enter_context(socket.create_connection((address.host, address.port)))
                for _ in range(number)
            ]


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def arguments_and_environment(pid: int) -> str:
    """Return what other processes of the user can read of a process."""
    files = (Path(f"/proc/{pid}/{name}") for name in ("cmdline", "environ"))
    return "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
