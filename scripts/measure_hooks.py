"""Measures what counting costs a Save, on a machine that does other things as well.

    python -m scripts.measure_hooks [--blocks 200] [--saves 100]

One server in this process, one client in another. Every so many saves the server begins to count,
or leaves off; so that neighbouring blocks, a few hundredths of a second each, differ in that
alone. What is compared is the processor time of this process, in all its threads, for a save.
Scrapes and the sampler are no part of it; ``scripts.measure_sight`` has the whole.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from grpc import aio

from sagastore.v1 import storage_pb2, storage_pb2_grpc
from sagastore_server.migration.alone import Alone
from sagastore_server.ops import loop
from sagastore_server.ops.metrics import Metrics
from sagastore_server.ports.instruments import Instruments
from sagastore_server.rpc.server import METHODS, RpcServer, Terms
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.model import Store
from sagastore_server.storage.phase import Phase

CALLERS = 16
TEXT = "It is said that the pudding is proved by the eating. " * 4
LEFT_OUT = 10
"""Blocks at the beginning, while everything warms up."""


class Switch(Instruments):
    """Counts, or does not, and notes the processor time of each block of saves."""

    def __init__(self, saves: int, blocks: int) -> None:
        """Switch after so many saves, until there are so many blocks."""
        self._metrics = Metrics("0", METHODS)
        self._saves = saves
        self._ended = 0
        self._since = time.process_time()
        self._on = False
        self._enough = blocks
        self.done = asyncio.Event()
        self.blocks: list[float] = []
        """Seconds of each block; it counted in every second one."""

    def call_started(self, method: str) -> None:
        """See the contract."""
        if self._on:
            self._metrics.call_started(method)

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """See the contract."""
        if self._on:
            self._metrics.call_ended(method, code, seconds)
        self._ended += 1
        if self._ended % self._saves == 0:
            now = time.process_time()
            self.blocks.append(now - self._since)
            self._since, self._on = now, not self._on
            if len(self.blocks) == self._enough:
                self.done.set()

    def group_committed(self, store: Store, writes: int, rows: int, seconds: float) -> None:
        """See the contract."""
        if self._on:
            self._metrics.group_committed(store, writes, rows, seconds)


async def measure(folder: Path, blocks: int, saves: int) -> list[float]:
    """Serve until there are enough blocks, and return them."""
    switch = Switch(saves, blocks + LEFT_OUT)
    backend = SQLiteStorage(folder / "sagastore.db")
    backend.observe(switch.group_committed)
    await backend.open()
    server = RpcServer(backend, Alone(backend, Phase.SQLITE_ONLY), Terms(instruments=switch))
    port = await server.start("127.0.0.1:0")
    await server.open_gate()
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scripts.measure_hooks", "--client", f"127.0.0.1:{port}"
    )
    await switch.done.wait()
    client.terminate()
    await client.wait()
    await server.stop()
    await backend.close()
    return switch.blocks[LEFT_OUT : LEFT_OUT + blocks]


async def save_on_and_on(address: str) -> None:
    """Save until somebody ends it."""
    async with aio.insecure_channel(address) as channel:
        stub = storage_pb2_grpc.StorageServiceStub(channel)

        async def save() -> None:
            while True:
                request = storage_pb2.SaveRequest()
                request.message.provider, request.message.role = "openai", "user"
                request.message.content = (
                    "It is said that the pudding is proved by the eating. " * 4
                )
                await stub.Save(request)

        await asyncio.gather(*(save() for _ in range(CALLERS)))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=200)
    parser.add_argument("--saves", type=int, default=100)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        asyncio.run(save_on_and_on(given.client))
        return
    with tempfile.TemporaryDirectory() as folder:
        blocks = loop.run(measure(Path(folder), given.blocks, given.saves))
    silent, counting = blocks[0::2], blocks[1::2]
    shares = [on / off - 1 for off, on in zip(silent, counting, strict=True)]
    low, middle, high = statistics.quantiles(shares, n=4)
    unit = 1e6 / given.saves
    sys.stdout.write(
        f"a save takes {statistics.median(silent) * unit:.0f} us of processor, "
        f"counting {statistics.median(counting) * unit:.0f} us: {middle:+.1%} "
        f"(median of {len(shares)} neighbours; quartiles {low:+.1%} to {high:+.1%})\n"
    )


if __name__ == "__main__":
    main()
