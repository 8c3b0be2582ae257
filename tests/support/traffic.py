"""Concurrent clients that write and read and check every answer.

Each writer has its own ids; all writers also increase shared counters with ``if_revision``. Actions
are drawn from seeded generators. The first wrong answer or failed call stops all clients.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Iterable
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from sagastore import (
    AsyncClient,
    Message,
    NotFoundError,
    RetryPolicy,
    SagaStoreError,
)
from tests.support.checker import Checker

T = TypeVar("T")

WORDS = ("amber", "basalt", "cobalt", "dunes", "ember", "fjord", "granite", "harbour", "indigo",
         "juniper", "krill", "lagoon")  # fmt: skip
"""Words in written messages, for searches."""

FOUND_WORDS = ("restaurant", "reservation", "tomorrow", "appointment", "francisco")
"""Words in the initial messages."""

TAGS = ("blue", "green", "red", "ünïcode ☃")
COUNTERS = 4
LATEST = datetime(2031, 1, 1, tzinfo=UTC)

NO_RETRIES = RetryPolicy(max_attempts=1)
RETRYING = RetryPolicy(max_attempts=10_000, initial_backoff=0.05, max_backoff=0.5)
"""Retry policy that bridges any outage within the deadline of a call."""


class CallFailedError(AssertionError):
    """A call failed unexpectedly."""


class Settings(NamedTuple):
    """Settings of the traffic."""

    seed: int
    writers: int = 4
    readers: int = 3
    retry: RetryPolicy = NO_RETRIES
    timeout: float = 100.0
    everywhere: bool = True
    """Whether some writes request durability on both stores; not while one may be down."""
    rest: float = 0.0
    """Average seconds between two calls of a client."""
    exports: float = 2.0
    """Relative frequency of exports; that of Get is 40."""

    @property
    def retries(self) -> bool:
        """Whether an answer may be that to a second attempt."""
        return self.retry.max_attempts != 1


class Traffic:
    """Runs the clients and counts their calls."""

    def __init__(self, checker: Checker, address: str, settings: Settings) -> None:
        """Create traffic to the server at ``address``."""
        self.checker = checker
        self.settings = settings
        self.calls: Counter[str] = Counter()
        """Answered calls by name; expected refusals count as answers."""
        self.failed = 0
        self.acknowledged = 0
        """Acknowledged writes and deletions."""
        self.writes: list[tuple[float, float]] = []
        """Start and end of each write, by ``time.monotonic``."""
        self._address = address
        self._running = True
        self._tasks: list[asyncio.Task[None]] = []
        self._answered = asyncio.Condition()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._busy = 0

    # ------------------------------------------------------------------ control

    def start(self, clients: Iterable[Client]) -> None:
        """Start the clients."""
        self._tasks = [asyncio.create_task(self._run(client)) for client in clients]

    async def more(self, calls: int) -> None:
        """Wait until ``calls`` more calls were answered; raises the failure of a client."""
        wanted = self.calls.total() + calls
        async with self._answered:
            await self._answered.wait_for(
                lambda: self.calls.total() >= wanted or any(task.done() for task in self._tasks)
            )
        self._raise()

    async def hold(self) -> None:
        """Let calls in progress end, and start no new ones."""
        self._flowing.clear()
        async with self._answered:
            await self._answered.wait_for(lambda: not self._busy)
        self._raise()

    async def during(self, work: Awaitable[T]) -> T:
        """Run ``work``; raises the failure of a client."""
        doing = asyncio.ensure_future(work)
        try:
            await asyncio.wait({doing, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
            self._raise()
            return await doing
        finally:
            doing.cancel()

    def resume(self) -> None:
        """Resume calls."""
        self._flowing.set()

    async def stop(self) -> None:
        """Stop each client after its current call; raises the failure of a client."""
        self._running = False
        self._flowing.set()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._raise()

    async def abandon(self) -> None:
        """Cancel all clients."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def longest_write(self, began: float, ended: float) -> float:
        """Return the longest duration of a write that overlaps the interval."""
        return max(
            (until - since for since, until in self.writes if until >= began and since <= ended),
            default=0.0,
        )

    # ------------------------------------------------------------------ for clients

    async def call(
        self, name: str, work: Awaitable[T], *, due: tuple[type[SagaStoreError], ...] = ()
    ) -> T:
        """Make a call; failures other than ``due`` are wrong answers."""
        try:
            return await work
        except due:
            raise
        except SagaStoreError as exc:
            self.failed += 1
            raise CallFailedError(f"{name} failed: {exc!r}") from exc
        finally:
            self.calls[name] += 1

    async def write(
        self, name: str, work: Awaitable[T], *, due: tuple[type[SagaStoreError], ...] = ()
    ) -> T:
        began = time.monotonic()
        try:
            return await self.call(name, work, due=due)
        finally:
            self.writes.append((began, time.monotonic()))

    async def _run(self, client: Client) -> None:
        try:
            async with AsyncClient(
                self._address, retry=self.settings.retry, timeout=self.settings.timeout
            ) as connection:
                while self._running:
                    await self._turn(client, connection)
        finally:
            async with self._answered:
                self._answered.notify_all()

    async def _turn(self, client: Client, connection: AsyncClient) -> None:
        await self._flowing.wait()
        if not self._running:
            return
        self._busy += 1
        try:
            await client.act(connection)
        finally:
            self._busy -= 1
            async with self._answered:
                self._answered.notify_all()
        if self.settings.rest:
            await asyncio.sleep(client.random.uniform(0, 2 * self.settings.rest))

    def _raise(self) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error


class Client:
    """Client: draws its next action."""

    def __init__(self, traffic: Traffic, name: str) -> None:
        """Join ``traffic``."""
        self.traffic = traffic
        self.checker = traffic.checker
        self.settings = traffic.settings
        self.name = name
        self.random = random.Random(f"{traffic.settings.seed}/{name}")

    async def act(self, connection: AsyncClient) -> None:
        """Perform one action."""
        raise NotImplementedError

    async def look(self, connection: AsyncClient, id: str) -> Message | None:
        since = self.checker.now()
        try:
            found = await self.traffic.call("Get", connection.get(id), due=(NotFoundError,))
        except NotFoundError:
            self.checker.lacks(id, since)
            return None
        self.checker.shows(found, since)
        return found
