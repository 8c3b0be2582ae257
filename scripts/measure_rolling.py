"""Figures of rolling restarts and upgrades, and of a start with a silent host.

    python -m scripts.measure_rolling [--rounds 3]

Three server processes use an embedded PostgreSQL (of the tests, fsync off). The client library
calls them with its default timeout and retry policy: saves, appends, reads and searches from four
callers. Every acknowledged message is read at the end. docs/how-to/upgrade.md shows a run.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from sagastore_server.postgresql.schema import SCHEMA_VERSION
from tests.support.fleet import PRESENT, Code, FleetServer, Load, fleet, load, with_step
from tests.support.postgres import fresh_schema, postgres_process

_SERVERS = 3
_CALL_TIMEOUT = 10.0
"""Seconds; the default of the client library."""

_READ_SECONDS = 8.0
"""Duration of the read behind which an upgrade waits."""

_COLUMN = "ALTER TABLE messages ADD COLUMN later BIGINT NOT NULL DEFAULT 0;"

Part = Callable[[str, list[FleetServer], Load, Path], Coroutine[Any, Any, None]]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="rolling restarts")
    rounds: int = parser.parse_args().rounds

    async def restart(dsn: str, servers: list[FleetServer], calls: Load, folder: Path) -> None:
        del dsn, folder
        for _ in range(rounds):
            await _replace_all(servers, calls, PRESENT)

    _line("| measured | calls | failed | longest call |")
    _line("|---|---|---|---|")
    asyncio.run(_measure(f"{rounds} rolling restarts of {_SERVERS} servers", restart))
    asyncio.run(_measure("rolling upgrade that the former servers may stay beside", _compatible))
    asyncio.run(_measure("rolling upgrade that excludes the former servers", _excluding))
    asyncio.run(
        _measure(f"upgrade by a fourth server behind a read of {_READ_SECONDS:g} s", _behind_a_read)
    )
    _line("\n| start of a server | seconds |")
    _line("|---|---|")
    _measure_starts()


async def _measure(name: str, part: Part) -> None:
    with tempfile.TemporaryDirectory(prefix="rolling-") as folder:
        path = Path(folder)
        async with fresh_schema() as dsn:
            with fleet(dsn, path, _SERVERS + 1) as servers:
                called = servers[:_SERVERS]
                for server in called:
                    await asyncio.to_thread(server.replace, PRESENT)
                addresses = [server.address for server in called]
                async with load(addresses, _CALL_TIMEOUT) as calls:
                    await calls.proceed()
                    await part(dsn, servers, calls, path)
                    await calls.proceed()
                _line(
                    f"| {name} | {calls.calls:,} | {len(calls.failures)} | {calls.longest:.2f} s |"
                )


async def _replace_all(servers: list[FleetServer], calls: Load, code: Code) -> None:
    for server in servers[:_SERVERS]:
        await asyncio.to_thread(server.replace, code)
        await calls.proceed()


async def _compatible(_: str, servers: list[FleetServer], calls: Load, folder: Path) -> None:
    newer = with_step(PRESENT, folder / "newer", SCHEMA_VERSION + 1, _COLUMN, SCHEMA_VERSION)
    await _replace_all(servers, calls, newer)


async def _excluding(_: str, servers: list[FleetServer], calls: Load, folder: Path) -> None:
    newer = with_step(PRESENT, folder / "newer", SCHEMA_VERSION + 1, _COLUMN, SCHEMA_VERSION + 1)
    await _replace_all(servers, calls, newer)


async def _behind_a_read(dsn: str, servers: list[FleetServer], calls: Load, folder: Path) -> None:
    newer = with_step(PRESENT, folder / "newer", SCHEMA_VERSION + 1, _COLUMN, SCHEMA_VERSION)
    # Not one of the servers that are called: their calls wait for nothing but the lock.
    async with _reading(dsn):
        starting = asyncio.create_task(asyncio.to_thread(servers[-1].replace, newer))
        await asyncio.sleep(_READ_SECONDS)
        if starting.done():
            raise RuntimeError("the upgrade did not wait for the read")
    await starting
    await calls.proceed()


@asynccontextmanager
async def _reading(dsn: str) -> AsyncIterator[None]:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("BEGIN; SELECT FROM messages LIMIT 1")
        yield
    finally:
        await connection.close()


def _measure_starts() -> None:
    with (
        postgres_process() as postgres,
        _silent_port() as silent,
        tempfile.TemporaryDirectory(prefix="rolling-") as folder,
    ):
        host, port = str(postgres.data.parent), 5432
        hosts = {
            "one host": ([host], [port]),
            "the first of two hosts is silent": (["127.0.0.1", host], [silent, port]),
            "the second of two hosts is silent": ([host, "127.0.0.1"], [port, silent]),
        }
        for name, (names, ports) in hosts.items():
            dsn = (
                f"postgresql://postgres@/postgres?host={','.join(names)}"
                f"&port={','.join(map(str, ports))}"
            )
            for warm in (False, True):
                with fleet(dsn, Path(tempfile.mkdtemp(dir=folder)), 1) as (server,):
                    server.use(PRESENT)
                    began = time.monotonic()
                    server.start()
                    if warm:
                        _line(f"| {name} | {time.monotonic() - began:.1f} |")


def _line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def _silent_port() -> Iterator[int]:
    """Accept connections and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


if __name__ == "__main__":
    main()
