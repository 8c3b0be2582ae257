"""Sizing figures: memory, disk and connections of one server.

    python -m scripts.measure_sizing [--messages 50000]

A server is filled with dialogue messages (``--messages``, the sample of the tests, repeated under
new ids), then gets idle connections, saves and reads at the same time, and a migration to an
embedded PostgreSQL. Resident memory includes worker processes. Each value is the greatest one of
its step; docs/how-to/operations.md shows a run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path

import asyncpg
import grpc

from sagastore import AsyncClient, Message, Phase
from sagastore_server.sqlite.backup.create import back_up
from tests.security.pki import Pki
from tests.support.migration_control import go_to
from tests.support.postgres import fresh_schema
from tests.support.server_process import ServerProcess
from tools.benchmarks.memory_usage import memory_of

SAMPLE = Path(__file__).parents[1] / "tests/data/sgd-sample.jsonl"
CONNECTIONS = 500
CALLS = 256
_EVERY = 0.05
"""Seconds between two counts of connections."""
_OWN = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sagastore'"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=50_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sizing-") as name:
        asyncio.run(_measure(Path(name), given.messages))


async def _measure(folder: Path, count: int) -> None:
    path = folder / "messages.db"
    async with fresh_schema() as dsn:
        with closing(ServerProcess(path, env={"SAGASTORE_POSTGRES": dsn})) as server:
            server.start()
            _print("memory after the start", _peak(server, lambda: None))
            with memory_of(server.pid) as memory:
                await _fill(server.address, count)
            _print(f"memory while {count:,} messages are saved in bulk", memory.peak)
            _print("SQLite file, bytes per message", path.stat().st_size / count, "")
            before = _peak(server, lambda: None)
            with _idle(server.address, None):
                growth = _peak(server, lambda: None) - before
            _print("memory of an idle connection, KiB", growth * 1024 / CONNECTIONS, "")
            with memory_of(server.pid) as memory:
                await _mixed(server.address)
            _print(f"memory under {CALLS} concurrent saves and reads", memory.peak)
            report = await asyncio.to_thread(back_up, path, folder / "backup.db", lambda *_: None)
            _print("backup, bytes per message", report.bytes / count, "")
            with memory_of(server.pid) as memory:
                await _migrate(server.address, dsn, count)
            _print("memory during the migration", memory.peak)
    await _measure_tls(folder)


async def _measure_tls(folder: Path) -> None:
    pki = Pki(folder / "pki")
    cert, key = pki.server()
    env = {"SAGASTORE_TLS_CERT": str(cert), "SAGASTORE_TLS_KEY": str(key)}
    with closing(ServerProcess(folder / "tls.db", env=env)) as server:
        server.start()
        before = _peak(server, lambda: None)
        with _idle(server.address, pki.ca.read_bytes()):
            growth = _peak(server, lambda: None) - before
        _print("memory of an idle connection with TLS, KiB", growth * 1024 / CONNECTIONS, "")


async def _fill(address: str, count: int) -> None:
    lines = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]

    def messages() -> Iterator[Message]:
        for number in range(count):
            one = lines[number % len(lines)]
            yield Message(
                one["provider"],
                one["role"],
                one["content"],
                id=str(uuid.uuid4()),
                tags=tuple(one["tags"]),
                session_id=f"{one['session_id']}-{number // len(lines)}",
                metadata=one["metadata"],
            )

    async with AsyncClient(address) as client:
        await client.bulk_save(messages())


async def _mixed(address: str) -> None:
    async with AsyncClient(address) as client:

        async def caller(number: int) -> None:
            for turn in range(4):
                if number % 4:
                    await client.save(Message("openai", "user", f"a table at {turn}"), timeout=120)
                else:
                    _ = [one async for one in client.list("dev-1_00000-0", timeout=120)]

        await asyncio.gather(*map(caller, range(CALLS)))


async def _migrate(address: str, dsn: str, count: int) -> None:
    async with AsyncClient(address) as client:
        for phase in (Phase.DUAL_WRITE, Phase.BACKFILL, Phase.READ_POSTGRES, Phase.POSTGRES_ONLY):
            async with _connections(dsn) as most:
                await go_to(client, phase)
            name = phase.name.lower().replace("_", "-")
            _print(f"PostgreSQL connections until {name} is reached", most[0], "")
        async with _connections(dsn) as most:
            await _mixed(address)
        _print(f"PostgreSQL connections under {CALLS} calls in postgres-only", most[0], "")
    connection = await asyncpg.connect(dsn)
    size = await connection.fetchval(
        "SELECT sum(pg_total_relation_size(oid)) FROM pg_class "
        "WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
    )
    await connection.close()
    _print("PostgreSQL tables and indexes, bytes per message", float(size) / count, "")


@asynccontextmanager
async def _connections(dsn: str) -> AsyncIterator[list[int]]:
    """Count the connections of the server while the context lasts; provide the maximum."""
    connection, most = await asyncpg.connect(dsn), [0]

    async def watch() -> None:
        while True:
            most[0] = max(most[0], await connection.fetchval(_OWN))
            await asyncio.sleep(_EVERY)

    watching = asyncio.create_task(watch())
    try:
        yield most
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await connection.close()


@contextmanager
def _idle(address: str, authority: bytes | None) -> Iterator[None]:
    """Open connections that do nothing."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            if authority is None:
                channel = grpc.insecure_channel(address, options=options)
            else:
                credentials = grpc.ssl_channel_credentials(authority)
                target = f"localhost:{address.rpartition(':')[2]}"
                channel = grpc.secure_channel(target, credentials, options=options)
            grpc.channel_ready_future(stack.enter_context(channel)).result(60)
        yield


def _peak(server: ServerProcess, work: Callable[[], None]) -> float:
    with memory_of(server.pid) as memory:
        work()
        while not memory.seen:
            os.sched_yield()
    return memory.peak


def _print(what: str, value: float, unit: str = " MiB") -> None:
    print(f"{what:62} {value:8,.0f}{unit}", flush=True)  # noqa: T201 - it is the result


if __name__ == "__main__":
    main()
