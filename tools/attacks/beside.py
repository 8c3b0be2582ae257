"""Callers beside an attack: an authenticated caller, newcomers, and a liveness probe."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from grpc import aio

from sagastore.v1 import storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.support.messages import batch, message
from tools.attacks.loopback import Address
from tools.attacks.plan import LARGE
from tools.attacks.service import Service

_PAUSE = 0.02
"""Seconds between two calls of the authenticated caller."""
_NEWCOMER_PAUSE = 0.5
_PROBE_PAUSE = 0.25
_SAMPLE = 0.05
"""Seconds between two samples of the memory."""
_TIMEOUT = 20.0
"""Seconds for a call or a probe."""
_ADMITTED = 10.0
"""Seconds within which a new connection must be accepted and its first call answered. The server
may refuse it at first, while it closes connections of the attacker."""
_READS = 8
"""Concurrent reads of the large message, more than the store has connections."""
_SAVE_EVERY, _STREAM_EVERY = 7, 5
_OWN = (("grpc.use_local_subchannel_pool", 1),)
_EAGER = (
    *_OWN,
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 500),
)


class Figures:
    """What the callers beside observed in one period."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        """Seconds of each call of the authenticated caller."""
        self.codes: Counter[str] = Counter()
        """Status codes of the authenticated caller."""
        self.newcomers: Counter[str] = Counter()
        """Status codes of calls on new connections."""
        self.probes: Counter[str] = Counter()
        """Answers of ``/livez``."""
        self.peak = 0.0
        """Largest resident memory of the server, in megabytes."""

    @property
    def p99(self) -> float:
        """The 99th percentile of the latencies, in seconds."""
        ordered = sorted(self.latencies)
        return ordered[math.ceil(len(ordered) * 0.99) - 1] if ordered else math.inf


class Beside:
    """Runs the callers. `figures` can be replaced at any time, to begin a period."""

    def __init__(self, service: Service, channel: aio.Channel, patience: float) -> None:
        self.figures = Figures()
        self._timeout, self._admitted = patience * _TIMEOUT, patience * _ADMITTED
        self._service = service
        self._storage: Any = StorageServiceStub(channel)

    @classmethod
    @asynccontextmanager
    async def running(
        cls, service: Service, stored: int, patience: float = 1.0
    ) -> AsyncIterator[Beside]:
        """Store the message `LARGE` of ``stored`` bytes; run the callers in the context.

        ``patience`` is a factor of their time limits.
        """
        credentials = service.credentials("beside")
        async with aio.secure_channel(service.address, credentials, options=_OWN) as channel:
            beside = cls(service, channel, patience)
            await beside.prepare(stored)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(one())
                    for one in (beside.call, beside.arrive, beside.probe, beside.sample)
                ]
                try:
                    yield beside
                finally:
                    for task in tasks:
                        task.cancel()

    async def prepare(self, stored: int) -> None:
        """Save the messages that the calls need."""
        wanted = [message(id="beside")]
        if stored:
            # The limit of a content is in characters; these have 4 bytes.
            wanted.append(message(id=LARGE, content="attack " + "🧨" * (stored // 4)))
        for one in wanted:
            await self._storage.Save(storage_pb2.SaveRequest(message=one), timeout=self._timeout)
        if stored:
            await self._read_large()

    async def _read_large(self) -> None:
        """Read the large message as attacks do, so that caches of the store are full before."""
        get = storage_pb2.GetRequest(id=LARGE)
        search = storage_pb2.SearchRequest(query="attack")
        await asyncio.gather(
            *(self._storage.Get(get, timeout=self._timeout) for _ in range(_READS))
        )
        # A search of such a message can exceed the time limit on a busy machine, which is enough.
        await asyncio.gather(
            *(_code(self._storage.Search(search, timeout=self._timeout)) for _ in range(_READS))
        )

    async def call(self) -> None:
        """Call again and again over one connection: reads, some writes, some streams."""
        for number in itertools.count(1):
            began = time.monotonic()
            code = await _code(self._one(number))
            self.figures.codes[code] += 1
            self.figures.latencies.append(time.monotonic() - began)
            await asyncio.sleep(_PAUSE)

    async def _one(self, number: int) -> None:
        if number % _STREAM_EVERY == 0:
            one = batch(1, message(id="beside"))
            async for _ in self._storage.BulkSave(iter([one]), timeout=self._timeout):
                pass
        elif number % _SAVE_EVERY == 0:
            request = storage_pb2.SaveRequest(message=message(id="beside"))
            await self._storage.Save(request, timeout=self._timeout)
        else:
            await self._storage.Get(storage_pb2.GetRequest(id="beside"), timeout=self._timeout)

    async def arrive(self) -> None:
        """Call over a new connection, again and again."""
        service = self._service
        credentials = service.credentials("newcomer")
        while True:
            async with aio.secure_channel(service.address, credentials, options=_EAGER) as channel:
                stub: Any = StorageServiceStub(channel)
                request = storage_pb2.GetRequest(id="beside")
                call = stub.Get(request, timeout=self._admitted, wait_for_ready=True)
                self.figures.newcomers[await _code(call)] += 1
            await asyncio.sleep(_NEWCOMER_PAUSE)

    async def probe(self) -> None:
        """Request ``/livez`` again and again."""
        address = self._service.ops
        while True:
            try:
                async with asyncio.timeout(self._timeout):
                    answer = await _livez(address)
            except TimeoutError:
                answer = "no answer"
            except OSError:
                answer = "connection closed"
            self.figures.probes[answer] += 1
            await asyncio.sleep(_PROBE_PAUSE)

    async def sample(self) -> None:
        """Record the memory of the server."""
        while True:
            self.figures.peak = max(self.figures.peak, self._service.memory())
            await asyncio.sleep(_SAMPLE)


async def _code(call: Any) -> str:
    try:
        await call
    except aio.AioRpcError as exc:
        return exc.code().name
    return "OK"


async def _livez(address: Address) -> str:
    """Return the status of ``/livez``."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await writer.drain()
        words = (await reader.readline()).split()
        return words[1].decode() if len(words) > 1 else "connection closed"
    finally:
        writer.transport.abort()
