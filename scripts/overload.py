"""Overload demonstration: a server under ten times its capacity (``make overload``).

The server and the callers are separate processes; messages have a realistic size. There are three
rounds: as many concurrent calls as the server accepts (``max_calls``); many more, by callers that
honour the retry delay of a refusal; and the first again. In the second round all callers start at
the same moment, so the queue is full before the server processes the first call; its first seconds
are therefore shown separately. Compare the ratios between the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from rich.console import Console
from rich.table import Table

from sagastore.v1 import message_pb2, storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.support.server_process import ServerProcess

CONTENT = "I would like to find a place to eat in the city, not too far from the station. " * 3
CONNECTIONS = 16
BURST = 4.0
"""Initial seconds of the overloaded round that are shown separately."""


class Call(NamedTuple):
    """One call; times in seconds."""

    began: float
    """Start since the beginning of the round."""
    took: float


class Round(NamedTuple):
    """Result of a round, or of a part of it."""

    name: str
    seconds: float
    served: list[Call]
    refused: list[Call]
    other: list[str]
    memory: int
    """Memory of the server in MiB."""

    def part(self, name: str, since: float, until: float) -> Round:
        """Return the calls that began in an interval."""
        served, refused = (
            [call for call in calls if since <= call.began < until]
            for calls in (self.served, self.refused)
        )
        return self._replace(name=name, seconds=until - since, served=served, refused=refused)


async def _callers(address: str, name: str, at_once: int, seconds: float) -> Round:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [aio.insecure_channel(address, options=options) for _ in range(CONNECTIONS)]
    stubs: list[Any] = [StorageServiceStub(channel) for channel in channels]
    result = Round(name, seconds, [], [], [], 0)
    start = time.perf_counter()
    end = start + seconds

    async def caller(number: int) -> None:
        stub, count = stubs[number % CONNECTIONS], 0
        while time.perf_counter() < end:
            count += 1
            request = _request(f"{name}-{number}-{count}")
            began = time.perf_counter()
            try:
                await stub.Save(request)
                result.served.append(Call(began - start, time.perf_counter() - began))
            except aio.AioRpcError as error:
                took = time.perf_counter() - began
                wait = _retry_delay(error)
                if wait is None:
                    result.other.append(f"{error.code().name}: {error.details()}")
                    continue
                result.refused.append(Call(began - start, took))
                await asyncio.sleep(min(wait, max(0.0, end - time.perf_counter())))

    await asyncio.gather(*map(caller, range(at_once)))
    for channel in channels:
        await channel.close()
    return result


def _request(message_id: str) -> storage_pb2.SaveRequest:
    message = message_pb2.Message(
        id=message_id, provider="openai", role="user", content=CONTENT, tags=["load"]
    )
    return storage_pb2.SaveRequest(message=message)


def _retry_delay(error: aio.AioRpcError) -> float | None:
    """Return the seconds of RetryInfo in a RESOURCE_EXHAUSTED error; None for other errors."""
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return None
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            retry = error_details_pb2.RetryInfo()
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(retry):
                    return float(retry.retry_delay.ToMilliseconds()) / 1000
    return None


def _in_a_process(address: str, name: str, at_once: int, seconds: float) -> Round:
    return asyncio.run(_callers(address, name, at_once, seconds))


@contextmanager
def _server(folder: Path, at_once: int) -> Iterator[ServerProcess]:
    options = ("--ops-listen", "off", "--max-calls", str(at_once))
    server = ServerProcess(folder / "saga.db", *options)
    try:
        yield server.start()
    finally:
        server.close()


def _memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) // 1024 for line in status.splitlines() if "VmRSS" in line)


def _percentile(calls: list[Call], share: float) -> str:
    if len(calls) < 2:
        return "-"
    times = [call.took for call in calls]
    return f"{statistics.quantiles(times, n=100)[round(share * 100) - 1] * 1000:,.0f} ms"


def _columns(rounds: list[Round]) -> list[Round]:
    before, many, after = rounds
    burst = many.part(f"{many.name},\nfirst {BURST:g} s", 0, BURST)
    return [before, burst, many.part(f"{many.name},\nafterwards", BURST, many.seconds), after]


def _table(rounds: list[Round]) -> Table:
    rounds = _columns(rounds)
    table = Table("", *(one.name for one in rounds))
    rows = {
        "served per second": lambda r: f"{len(r.served) / r.seconds:,.0f}",
        "served: p50": lambda r: _percentile(r.served, 0.5),
        "served: p95": lambda r: _percentile(r.served, 0.95),
        "served: p99": lambda r: _percentile(r.served, 0.99),
        "refused per second": lambda r: f"{len(r.refused) / r.seconds:,.0f}",
        "refused: p50": lambda r: _percentile(r.refused, 0.5),
        "refused: p95": lambda r: _percentile(r.refused, 0.95),
        "other failures": lambda r: f"{len(r.other):,}",
        "memory of the server": lambda r: f"{r.memory} MiB",
    }
    for name, show in rows.items():
        table.add_row(name, *map(show, rounds))
    return table


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--carried", type=int, default=200, help="concurrent calls of the normal load (200)"
    )
    parser.add_argument("--times", type=int, default=10, help="factor of the overload (10)")
    parser.add_argument("--seconds", type=float, default=10, help="seconds per round (10)")
    given = parser.parse_args()
    many = given.carried * given.times
    plan = [
        (f"{given.carried} callers", given.carried, given.seconds / 2),
        (f"{many:,} callers", many, 2 * given.seconds + BURST),
        (f"{given.carried} again", given.carried, given.seconds / 2),
    ]
    rounds = []
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, _server(Path(folder), given.carried) as server:
        for name, at_once, seconds in plan:
            with spawn.Pool(1) as pool:
                done = pool.apply(_in_a_process, (server.address, name, at_once, seconds))
            rounds.append(done._replace(memory=_memory(server.pid)))
    Console().print(_table(rounds))
    others = [line for one in rounds for line in one.other]
    if others:
        sys.exit(f"error: {len(others)} calls failed with other errors; the first is {others[0]}")


if __name__ == "__main__":
    main()
