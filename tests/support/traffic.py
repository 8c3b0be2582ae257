"""Clients that write and read at the same time, and have every answer checked.

Each writer has ids of its own, and all writers count on a few counters together, with
``if_revision``. What they do is drawn from seeded generators. The first wrong answer, and
the first call that fails, end all of it.
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
"""Words in what writers write, for searches."""

FOUND_WORDS = ("restaurant", "reservation", "tomorrow", "appointment", "francisco")
"""Words in what was there before."""

TAGS = ("blue", "green", "red", "ünïcode ☃")
COUNTERS = 4
LATEST = datetime(2031, 1, 1, tzinfo=UTC)

NO_RETRIES = RetryPolicy(max_attempts=1)
RETRYING = RetryPolicy(max_attempts=10_000, initial_backoff=0.05, max_backoff=0.5)
"""Bridges an outage of any length within the time of a call."""


class CallFailedError(AssertionError):
    """A call has failed that must not."""


class Settings(NamedTuple):
    """What goes on."""

    seed: int
    writers: int = 4
    readers: int = 3
    retry: RetryPolicy = NO_RETRIES
    timeout: float = 30.0
    everywhere: bool = True
    """Some writes ask for both stores; not while one of them may be down."""
    rest: float = 0.0
    """Seconds that each client rests between two calls, on average."""
    exports: float = 2.0
    """How often a reader exports everything; a get has 40."""

    @property
    def retries(self) -> bool:
        """Whether an answer may be that to a second attempt."""
        return self.retry.max_attempts > 1


class Traffic:
    """Runs the clients, and counts what they do."""

    def __init__(self, checker: Checker, address: str, settings: Settings) -> None:
        """Prepare to call the server at ``address``."""
        self.checker = checker
        self.settings = settings
        self.calls: Counter[str] = Counter()
        """Calls answered, by name; refusals that were due are answers."""
        self.failed = 0
        self.acknowledged = 0
        """Messages written or deleted, as the service said."""
        self.writes: list[tuple[float, float]] = []
        """When each write began and ended, by ``time.monotonic``."""
        self._address = address
        self._running = True
        self._tasks: list[asyncio.Task[None]] = []
        self._answered = asyncio.Condition()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._busy = 0

    # ------------------------------------------------------------------ from outside

    def start(self, clients: Iterable[Client]) -> None:
        """Let them begin."""
        self._tasks = [asyncio.create_task(self._run(client)) for client in clients]

    async def more(self, calls: int) -> None:
        """Wait until so many more calls were answered; raises what went wrong, if it did."""
        wanted = self.calls.total() + calls
        async with self._answered:
            await self._answered.wait_for(
                lambda: self.calls.total() >= wanted or any(task.done() for task in self._tasks)
            )
        self._raise()

    async def hold(self) -> None:
        """Let the calls under way end, and no new ones begin."""
        self._flowing.clear()
        async with self._answered:
            await self._answered.wait_for(lambda: not self._busy)
        self._raise()

    async def during(self, work: Awaitable[T]) -> T:
        """Do something else meanwhile; what goes wrong with a client ends that, too."""
        doing = asyncio.ensure_future(work)
        try:
            await asyncio.wait({doing, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
            self._raise()
            return await doing
        finally:
            doing.cancel()

    def go_on(self) -> None:
        """Let them begin again."""
        self._flowing.set()

    async def stop(self) -> None:
        """End it, each client after its call; raises what went wrong, if it did."""
        self._running = False
        self._flowing.set()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._raise()

    async def abandon(self) -> None:
        """End it at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def longest_write(self, began: float, ended: float) -> float:
        """Return how long the slowest of the writes took that were under way in between."""
        return max(
            (until - since for since, until in self.writes if until >= began and since <= ended),
            default=0.0,
        )

    # ------------------------------------------------------------------ for clients

    async def call(
        self, name: str, work: Awaitable[T], *, due: tuple[type[SagaStoreError], ...] = ()
    ) -> T:
        """Make a call; failures are wrong answers, but for those in ``due``."""
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
        """Make a call that writes."""
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
    """One of the clients: draws what to do next."""

    def __init__(self, traffic: Traffic, name: str) -> None:
        """Take part in ``traffic``."""
        self.traffic = traffic
        self.checker = traffic.checker
        self.settings = traffic.settings
        self.name = name
        self.random = random.Random(f"{traffic.settings.seed}/{name}")

    async def act(self, connection: AsyncClient) -> None:
        """Do one thing."""
        raise NotImplementedError

    async def look(self, connection: AsyncClient, id: str) -> Message | None:
        """Get a message."""
        since = self.checker.now()
        try:
            found = await self.traffic.call("Get", connection.get(id), due=(NotFoundError,))
        except NotFoundError:
            self.checker.lacks(id, since)
            return None
        self.checker.shows(found, since)
        return found
