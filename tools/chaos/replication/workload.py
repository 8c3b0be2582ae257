"""Workload of the cluster rounds: clients of three servers, with and without positions.

Beside the clients of every round (`tools.chaos.workload`) there are

- one client per server that writes all the time, so that the first acknowledged write after a
  promotion is known for each server;
- clients that read with each requirement, on any server, what these and others have written;
- clients with the default retry policy, of which no call may fail.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence

from sagastore import Message, RetryPolicy
from tools.chaos.history import History
from tools.chaos.recording_client import RecordingClient, counted_attempts
from tools.chaos.replication.position_client import PositionClient, Requirement
from tools.chaos.values import Value, moment
from tools.chaos.workload import Workload

CLIENTS = 4
"""Clients that read the latest state through the client library."""
READERS = 3
PATIENT = 2
"""Clients with the default retry policy."""

TIMEOUT = 1.0
"""Seconds for a call of a client that does not retry."""
DEFAULT_TIMEOUT = 10.0
"""Default timeout of the client library in seconds."""
ANY_NUMBER = 99
"""Attempts of a call until its log has told their number; the default policy has no limit."""

FIRST = 100
"""Number of the first client of this module in the history."""
DEFAULTS = 200
"""Number of the first client with the default retry policy."""

OWN = 6
"""Messages that each writer writes again and again."""
REST = 0.03
"""Average seconds between two calls of a client."""

_MOMENT = 1_900_000_000_000_000
_REQUIREMENTS = ("at_least", "any_replica", "latest")
_SHARES = (6, 2, 2)


class ClusterWorkload:
    """All clients of a cluster round."""

    def __init__(self, addresses: Sequence[str], seed: int, history: History) -> None:
        """Create the clients of the servers at ``addresses``."""
        self._addresses = addresses
        self._seed = seed
        self._history = history
        self._latest = Workload(",".join(addresses), seed, history, clients=CLIENTS, rest=0.06)
        self._sent = itertools.count(1)
        self.written = asyncio.Event()
        """Whether the clients run: the first write was acknowledged."""

    async def run(self, stop: asyncio.Event) -> None:
        """Read and write until ``stop``."""
        await self._latest.read_baseline()
        with counted_attempts():
            await self._live(stop)

    async def _live(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._latest.live(stop))
            for server in range(1, len(self._addresses) + 1):
                group.create_task(self._write(server, stop), name=f"writer {server}")
            for number in range(READERS):
                group.create_task(self._read(number, stop), name=f"reader {number}")
            for number in range(PATIENT):
                group.create_task(self._persist(number, stop), name=f"patient {number}")

    async def settle(self) -> None:
        """Read everything back, with each requirement.

        Raises:
            SagaStoreError: The service does not answer.

        """
        await self._latest.settle()
        client = self._client(FIRST + 90)
        try:
            for server, writer in itertools.product(range(1, len(self._addresses) + 1), repeat=2):
                for name in _REQUIREMENTS:
                    wanted = Requirement(name, client.position if name == "at_least" else "")
                    await client.batch_get(server, self._ids(writer), wanted)
        finally:
            await client.close()

    # ------------------------------------------------------------------ clients

    def _client(self, number: int) -> PositionClient:
        return PositionClient(self._addresses, self._history, number, timeout=TIMEOUT)

    def _ids(self, writer: int) -> list[str]:
        return [f"own-{self._seed}-{writer}-{number}" for number in range(OWN)]

    def _session(self, writer: int) -> str:
        return f"own {self._seed}/{writer}"

    async def _write(self, server: int, stop: asyncio.Event) -> None:
        """Write through one server, and read the own writes through all of them."""
        draw = random.Random(f"{self._seed}/writer {server}")
        client = self._client(FIRST + server)
        try:
            while not stop.is_set():
                await self._write_once(client, server, draw)
                if draw.random() < 0.5:
                    await self._read_once(client, draw, server)
                await asyncio.sleep(draw.uniform(0, 2 * REST))
        finally:
            await client.close()

    async def _write_once(self, client: PositionClient, server: int, draw: random.Random) -> None:
        id = draw.choice(self._ids(server))
        if draw.random() < 0.06:
            await client.delete(server, id)
            return
        number = next(self._sent)
        message = Message(
            "openai",
            "user",
            f"w{number} of writer {server}",
            id=id,
            timestamp=moment(_MOMENT + number),
            metadata={},
            session_id=self._session(server),
        )
        if await client.save(server, message):
            self.written.set()
            # At once, while the standbys still replay it.
            wanted = Requirement("at_least", client.position)
            await client.get(draw.randint(1, len(self._addresses)), id, wanted)

    async def _read(self, number: int, stop: asyncio.Event) -> None:
        """Read what the writers write, and remember the positions of the answers."""
        draw = random.Random(f"{self._seed}/reader {number}")
        client = self._client(FIRST + 10 + number)
        try:
            while not stop.is_set():
                await self._read_once(client, draw, draw.randint(1, len(self._addresses)))
                await asyncio.sleep(draw.uniform(0, 2 * REST))
        finally:
            await client.close()

    async def _read_once(self, client: PositionClient, draw: random.Random, writer: int) -> None:
        (name,) = draw.choices(_REQUIREMENTS, _SHARES)
        wanted = Requirement(name, client.position if name == "at_least" else "")
        server, ids = draw.randint(1, len(self._addresses)), self._ids(writer)
        way = draw.random()
        if way < 0.5:
            await client.get(server, draw.choice(ids), wanted)
        elif way < 0.8:
            await client.batch_get(server, draw.sample(ids, 3), wanted)
        else:
            await client.list(server, self._session(writer), wanted)

    async def _persist(self, number: int, stop: asyncio.Event) -> None:
        """Save and read messages with the default retry policy."""
        draw = random.Random(f"{self._seed}/patient {number}")
        client = RecordingClient(
            ",".join(self._addresses),
            self._history,
            DEFAULTS + number,
            timeout=DEFAULT_TIMEOUT,
            tries=ANY_NUMBER,
            retry=RetryPolicy(),
        )
        try:
            for count in itertools.count():
                if stop.is_set():
                    return
                # A separate message per call: unanswered attempts then stay few per message.
                message = Message(
                    "openai",
                    "user",
                    f"p{count} of patient client {number}",
                    id=f"patient-{self._seed}-{number}-{count}",
                    timestamp=moment(_MOMENT + count),
                    metadata={},
                )
                await client.save(message, Value.of(message, ()), if_revision=None, both=False)
                await client.get(message.id)
                await asyncio.sleep(draw.uniform(0, 2 * REST))
        finally:
            await client.close()
