"""Measurement of read replicas: who answers reads of own writes, and how long they wait.

Run it from the repository: ``.venv/bin/python -m scripts.measure_replicas [SECONDS [CLIENTS]]``. It
starts a primary and a standby of PostgreSQL and a server. Each client saves a message, then reads
it and its session several times with the position of the write.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from sagastore.v1 import message_pb2, storage_pb2, storage_pb2_grpc
from tests.support.server_process import ServerProcess
from tests.support.standby import ReplicatedPostgres, replicated_postgres
from tests.support.waiting import until
from tests.telemetry.ops import ON, ops_of, scrape

READS = 4
"""Reads after each save: two of the message and two of its session."""

_WAIT = "sagastore_replica_wait_seconds"
_READS = "sagastore_postgres_reads_total"
_CALLS = "SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'"

Requirement = message_pb2.Consistency


class Result(NamedTuple):
    """One measurement."""

    saves: int
    reads: int
    stale: int
    seconds: float


async def client(stub: Any, number: int, end: float, *, at_least: bool) -> tuple[int, int, int]:
    """Save and read until ``end``; return the numbers of saves, reads and stale answers."""
    saves = reads = stale = 0
    while time.monotonic() < end:
        id, content = f"{number}", f"{number}: {saves}"
        session = f"session-{number}-{saves // 20}"
        message = message_pb2.Message(
            id=id, provider="openai", role="user", content=content, session_id=session
        )
        saved = await stub.Save(storage_pb2.SaveRequest(message=message))
        saves += 1
        need = Requirement(at_least=saved.position) if at_least else Requirement(latest=True)
        for _ in range(READS // 2):
            got = await stub.Get(storage_pb2.GetRequest(id=id, consistency=need))
            page = await stub.List(
                storage_pb2.ListRequest(session_id=session, consistency=need, page_size=20)
            )
            stale += (got.message.content != content) + (page.messages[-1].content != content)
            reads += 2
    return saves, reads, stale


async def load(address: str, seconds: float, clients: int, *, at_least: bool) -> Result:
    """Run the clients."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = storage_pb2_grpc.StorageServiceStub(channel)
        began = time.monotonic()
        done = await asyncio.gather(
            *(client(stub, number, began + seconds, at_least=at_least) for number in range(clients))
        )
        saves, reads, stale = (sum(column) for column in zip(*done, strict=True))
        return Result(saves, reads, stale, time.monotonic() - began)


def quantile(samples: dict[str, float], share: float, unwaited: float) -> float:
    """Return an upper bound of a quantile of the waits, of which ``unwaited`` were zero."""
    buckets = sorted(
        (float(name.split('"')[1]), count)
        for name, count in samples.items()
        if name.startswith(f"{_WAIT}_bucket")
    )
    total = samples[f"{_WAIT}_count"] + unwaited
    if unwaited >= share * total:
        return 0.0
    return next(bound for bound, count in buckets if count + unwaited >= share * total)


async def measure(postgres: ReplicatedPostgres, folder: Path, seconds: float, clients: int) -> None:
    """Measure, and print the results."""
    await postgres.configure(synchronous_standby_names="")
    env = {**ON, "SAGASTORE_POSTGRES_REPLICAS": postgres.standby.dsn}
    server = ServerProcess(folder / "unused", env=env, postgres=postgres.primary.dsn)
    try:
        server.start()
        ops = ops_of(server)
        await until(lambda: scrape(ops)['sagastore_replica_in_rotation{replica="1"}'] == 1)
        for at_least in (False, True):
            before, primary = scrape(ops), await postgres.value(_CALLS)
            result = await load(server.address, seconds, clients, at_least=at_least)
            # PostgreSQL counts the last transactions of a connection a second later.
            await asyncio.sleep(2)
            primary = await postgres.value(_CALLS) - primary
            after = scrape(ops)
            gained = {name: value - before.get(name, 0) for name, value in after.items()}
            report(result, gained, primary, "at_least" if at_least else "latest")
    finally:
        server.close()


def report(result: Result, gained: dict[str, float], primary: int, requirement: str) -> None:
    """Print one measurement."""
    by_replica = gained.get(f'{_READS}{{node="1",requirement="{requirement}"}}', 0)
    reads = result.reads / result.seconds
    waits = gained[f"{_WAIT}_count"]
    lines = [
        f"{requirement}: {result.saves / result.seconds:.0f} saves/s, {reads:.0f} reads/s",
        f"  stale: {result.stale} of {result.reads} reads",
        f"  transactions on the primary: {primary / result.saves:.2f} per save",
    ]
    if requirement == "at_least":
        lines += [
            f"  answered by the replica: {100 * by_replica / result.reads:.2f} %",
            f"  reads that waited: {100 * waits / result.reads:.1f} %",
        ]
        for share in (0.5, 0.99):
            of_all = 1000 * quantile(gained, share, result.reads - waits)
            of_waits = 1000 * quantile(gained, share, 0)
            lines.append(
                f"  p{100 * share:.0f} of the wait: at most {of_all:.0f} ms of all reads, "
                f"{of_waits:.0f} ms of those that waited"
            )
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> None:
    """Run the measurement."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    clients = int(sys.argv[2]) if len(sys.argv) > 2 else 16
    with tempfile.TemporaryDirectory() as folder, replicated_postgres() as postgres:

        async def run() -> None:
            await postgres.start()
            await measure(postgres, Path(folder), seconds, clients)

        asyncio.run(run())


if __name__ == "__main__":
    main()
