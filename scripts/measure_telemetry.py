"""Benchmark of metrics and traces: CPU time and throughput of Save, and startup time.

    python -m scripts.measure_telemetry [--rounds 25] [--saves 1000]

Four servers run, each on a new SQLite file: without an ops port; with metrics; with metrics and 1 %
or 100 % of the calls traced, sent to a collector that discards the spans. Each round sends the same
saves to each server in turn, by several concurrent callers, so that other load on the machine
affects all of them. Use the CPU time of the server process where the machine is shared. The report
shows medians and, for the difference to the first server in the same round, the median and the
quartiles. The cost of a scrape, and of the hooks called by each Save, is measured separately,
because it disappears in the noise of the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import os
import platform
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from grpc import aio

from sagastore.v1 import storage_pb2, storage_pb2_grpc
from sagastore_server.rpc.server import METHODS
from sagastore_server.storage.model import Store
from sagastore_server.telemetry.metrics import Metrics
from tests.support.server_process import ServerProcess
from tests.telemetry.collector import Collector

CALLERS = 16
SCRAPES = 50
HOOKS = 100_000
STARTS = 9
_TICKS = os.sysconf("SC_CLK_TCK")


class Round(NamedTuple):
    """Cost of a round of saves."""

    per_second: float
    """Saves per second."""
    processor: float
    """Microseconds of CPU time of the server process per save."""


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--saves", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Collector() as collector:
        traced = {
            "SAGASTORE_OPS_LISTEN": "127.0.0.1:0",
            "SAGASTORE_OTLP_ENDPOINT": collector.endpoint,
        }
        kinds: dict[str, dict[str, str]] = {
            "without": {},
            "metrics": {"SAGASTORE_OPS_LISTEN": "127.0.0.1:0"},
            "metrics, 1 % traced": traced | {"SAGASTORE_TRACE_SHARE": "0.01"},
            "metrics, all traced": traced,
        }
        print_line(
            f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        )
        with servers(Path(folder), kinds) as running:
            taken = asyncio.run(measure(running, given.rounds, given.saves, collector))
            report(taken)
            print_line(f"scrape: {scrape_of(running['metrics']) * 1000:.1f} ms of CPU time")
        print_line(f"hooks of a Save: {hooks():.1f} us")
        starts: dict[str, list[tuple[float, float]]] = {"without": [], "metrics": []}
        for n in range(STARTS):
            for name, found in starts.items():
                found.append(start_of(Path(folder) / f"{name}-{n}", kinds[name]))
        for name, found in starts.items():
            wall, cpu = (statistics.median(each) * 1000 for each in zip(*found, strict=True))
            print_line(f"start, {name}: {wall:.0f} ms until it serves, {cpu:.0f} ms of CPU time")


@contextmanager
def servers(folder: Path, kinds: dict[str, dict[str, str]]) -> Iterator[dict[str, ServerProcess]]:
    """Run one server of each kind."""
    with contextlib.ExitStack() as stack:
        running = {}
        for name, environment in kinds.items():
            server = ServerProcess(folder / name / "sagastore.db", env=environment)
            server.sqlite.parent.mkdir()
            running[name] = stack.enter_context(contextlib.closing(server)).start()
        yield running


async def measure(
    running: dict[str, ServerProcess], rounds: int, saves: int, collector: Collector
) -> dict[str, list[Round]]:
    """Send the same saves to each server in turn; the first round is a warm-up."""
    taken: dict[str, list[Round]] = {name: [] for name in running}
    for number in range(rounds + 1):
        order = list(running)
        # The order rotates from round to round.
        for name in order[number % len(order) :] + order[: number % len(order)]:
            found = await one_round(running[name], number, saves)
            collector.requests.clear()
            if number:
                taken[name].append(found)
    return taken


async def one_round(server: ServerProcess, number: int, saves: int) -> Round:
    """Send the saves of a round to one server."""
    async with aio.insecure_channel(server.address) as channel:
        stub = storage_pb2_grpc.StorageServiceStub(channel)
        await channel.channel_ready()
        numbers = iter(range(saves))
        text = "It is said that the pudding is proved by the eating. " * 4

        async def save() -> None:
            for one in numbers:
                request = storage_pb2.SaveRequest()
                request.message.id = f"{number}-{one}"
                request.message.provider, request.message.role = "openai", "user"
                request.message.content = text
                await stub.Save(request)

        before, began = processor(server.pid), time.perf_counter()
        await asyncio.gather(*(save() for _ in range(CALLERS)))
        took = time.perf_counter() - began
        return Round(saves / took, (processor(server.pid) - before) / saves * 1e6)


def scrape_of(server: ServerProcess) -> float:
    """Return the CPU time of the server for one scrape, in seconds."""
    ops = str(server.wait_for_event("serving")["ops"])
    before = processor(server.pid)
    for _ in range(SCRAPES):
        _scrape(ops)
    return (processor(server.pid) - before) / SCRAPES


def hooks() -> float:
    """Return the microseconds that a single Save spends in the hooks."""
    metrics = Metrics("0", METHODS)
    name = METHODS[0]

    def save() -> None:
        metrics.call_started(name)
        metrics.group_committed(Store.SQLITE, 1, 1, 0.003)
        metrics.call_ended(name, "OK", 0.004)

    return min(timeit.repeat(save, timer=time.thread_time, number=HOOKS, repeat=5)) / HOOKS * 1e6


def _scrape(ops: str) -> None:
    with contextlib.closing(http.client.HTTPConnection(ops, timeout=10)) as connection:
        connection.request("GET", "/metrics")
        connection.getresponse().read()


def processor(pid: int) -> float:
    """Return the CPU time of a process in seconds, with a resolution of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def start_of(folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Return the wall time and the CPU time from process start to serving, in seconds."""
    folder.mkdir(exist_ok=True)
    with contextlib.closing(ServerProcess(folder / "a.db", env=environment)) as server:
        began = time.perf_counter()
        server.start()
        return time.perf_counter() - began, processor(server.pid)


def report(taken: dict[str, list[Round]]) -> None:
    """Print medians, and the difference of each server to the first."""
    base = next(iter(taken))
    for name, rounds in taken.items():
        cpu = statistics.median(one.processor for one in rounds)
        speed = statistics.median(one.per_second for one in rounds)
        line = f"{name}: {cpu:.0f} us of CPU time per save, {speed:.0f} saves/s"
        if name != base:
            pairs = list(zip(rounds, taken[base], strict=True))
            more = [one.processor / other.processor - 1 for one, other in pairs]
            less = [one.per_second / other.per_second - 1 for one, other in pairs]
            line += f"; CPU time {_spread(more)}, throughput {_spread(less)}"
        print_line(line)


def print_line(line: str) -> None:
    """Print a line and flush."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _spread(shares: list[float]) -> str:
    low, middle, high = statistics.quantiles(shares, n=4)
    return f"{middle:+.1%} ({low:+.1%} to {high:+.1%})"


if __name__ == "__main__":
    main()
