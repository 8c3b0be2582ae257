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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from sagastore import (
    AbortedError,
    AlreadyExistsError,
    AsyncClient,
    Durability,
    Message,
    NotFoundError,
    OnConflict,
    Order,
    RetryPolicy,
    SagaStoreError,
    Store,
)
from tests.support.checker import Asked, Checker, Value, WrongAnswerError

T = TypeVar("T")

WORDS = ("amber", "basalt", "cobalt", "dunes", "ember", "fjord", "granite", "harbour", "indigo",
         "juniper", "krill", "lagoon")  # fmt: skip
"""Words in what writers write, for searches."""

FOUND_WORDS = ("restaurant", "reservation", "tomorrow", "appointment", "francisco")
"""Words in what was there before."""

TAGS = ("blue", "green", "red", "ünïcode ☃")
COUNTERS = 4
LATEST = datetime(2031, 1, 1, tzinfo=UTC)
_LONG = "long " * 1500
_MOST_IDS = 400
"""A writer makes no more new ids than this; then it changes those it has."""

NO_RETRIES = RetryPolicy(max_attempts=1)
STUBBORN = RetryPolicy(max_attempts=10_000, initial_backoff=0.05, max_backoff=0.5)
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

    def start(self) -> None:
        """Begin."""
        writers = [Writer(self, number) for number in range(self.settings.writers)]
        self._deal(writers)
        readers = [Reader(self, number) for number in range(self.settings.readers)]
        self._tasks = [asyncio.create_task(self._run(client)) for client in (*writers, *readers)]

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

    def _deal(self, writers: list[Writer]) -> None:
        """Share what was there before among the writers, all over the range of ids."""
        for number, id in enumerate(list(self.checker.ids)):
            writers[number % len(writers)].ids.append(id)

    def _raise(self) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error


@asynccontextmanager
async def traffic(checker: Checker, address: str, settings: Settings) -> AsyncIterator[Traffic]:
    """Have clients call ``address`` for as long as the context lasts, or `Traffic.stop`."""
    running = Traffic(checker, address, settings)
    running.start()
    try:
        yield running
        await running.stop()
    finally:
        await running.abandon()


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


class Writer(Client):
    """Writes under ids of its own, and counts."""

    def __init__(self, traffic: Traffic, number: int) -> None:
        """Begin without ids."""
        super().__init__(traffic, f"writer-{number}")
        self.ids: list[str] = []
        self._made = 0
        self._serial = 0
        self._acts: list[Callable[[AsyncClient], Awaitable[None]]] = [
            self._new, self._change, self._bulk, self._count, self._read_own, self._skip,
        ]  # fmt: skip
        self._weights = [8, 40, 4, 14, 12, 2]

    async def act(self, connection: AsyncClient) -> None:
        """Do one thing."""
        (act,) = self.random.choices(self._acts, self._weights)
        await act(connection)

    # ------------------------------------------------------------------ what it writes

    def _value(self, before: Value | None, session: str | None) -> Value:
        """Make up a value that nobody has written yet."""
        draw = self.random
        self._serial += 1
        words = " ".join(draw.sample(WORDS, 3))
        more = draw.choices(("", "naïve ☃ 東京 ", _LONG), (90, 8, 2))[0]
        metadata: dict[str, Any] = {"serial": self._serial, "by": self.name}
        if draw.random() < 0.2:
            metadata |= {"ratio": draw.random(), "nested": {"ä": [1, None, True, "x"]}}
        return Value(
            provider=draw.choice(("openai", "anthropic", "google")),
            role=draw.choice(("user", "assistant")),
            content=f"{more}{words} number {self._serial} of {self.name}",
            tags=tuple(draw.sample(TAGS, draw.randrange(3))),
            timestamp=_time(draw) if before is None else before.timestamp,
            metadata=_canonical(metadata),
            session_id=session,
        )

    def _next(self, id: str) -> Value:
        """Make up what is saved next under an id."""
        before = self._last_value(id)
        session = f"session {self.name} {self.random.randrange(6)}"
        if before is not None and self.random.random() < 0.7:
            session = before.session_id or session
        return self._value(before, session)

    def _last_value(self, id: str) -> Value | None:
        """Return the latest value that was not the absence of one: it has the time."""
        return self.checker.last_value(id) if self.checker.knows(id) else None

    def _new_id(self) -> str:
        if self._made >= _MOST_IDS:
            return self.random.choice(self.ids)
        self._made += 1
        id = f"{self.random.randrange(16**6):06x}-{self.name}-{self._made}"
        self.ids.append(id)
        return id

    # ------------------------------------------------------------------ what it does

    async def _new(self, connection: AsyncClient) -> None:
        id = self._new_id()
        if self.checker.knows(id) and self.checker.value(id) is not None:
            return await self._replace(connection, id)
        return await self._create(connection, id)

    async def _create(self, connection: AsyncClient, id: str) -> None:
        guard = 0 if self.random.random() < 0.4 else None
        created = await self._save(connection, id, self._next(id), guard=guard)
        if not created and not self.settings.retries:
            raise WrongAnswerError(f"{id} was new, and the answer says that it was not")

    async def _replace(self, connection: AsyncClient, id: str) -> None:
        guard = self.checker.revision(id) if self.random.random() < 0.4 else None
        keeps_time = self.random.random() < 0.3
        created = await self._save(
            connection, id, self._next(id), guard=guard, keeps_time=keeps_time
        )
        if created and not self.settings.retries:
            raise WrongAnswerError(f"{id} was there, and the answer says that it was new")

    async def _save(
        self,
        connection: AsyncClient,
        id: str,
        value: Value,
        *,
        guard: int | None,
        keeps_time: bool = False,
    ) -> bool:
        number = self.checker.attempt(id, value)
        everywhere = self.settings.everywhere and self.random.random() < 0.05
        saved = await self.traffic.write(
            "Save",
            connection.save(
                value.message(id, keeps_time=keeps_time),
                if_revision=guard,
                durability=Durability.BOTH if everywhere else Durability.PRIMARY,
            ),
        )
        self.checker.acknowledge(id, number, value, saved.revision)
        self.traffic.acknowledged += 1
        if not saved.durable_on or Store.UNKNOWN in saved.durable_on:
            raise WrongAnswerError(f"{id} is durable on {saved.durable_on}")
        return saved.created

    async def _change(self, connection: AsyncClient) -> None:
        if not self.ids:
            return await self._new(connection)
        id = self.random.choice(self.ids)
        if self.checker.value(id) is None:
            act = self.random.choices((self._create, self._delete_nothing), (8, 2))[0]
        else:
            ways = (self._replace, self._delete, self._repeat, self._stale)
            act = self.random.choices(ways, (55, 25, 12, 8))[0]
        return await act(connection, id)

    async def _delete(self, connection: AsyncClient, id: str) -> None:
        guard = self.checker.revision(id) if self.random.random() < 0.4 else None
        number = self.checker.attempt(id, None)
        await self.traffic.write("Delete", connection.delete(id, if_revision=guard))
        self.checker.acknowledge(id, number, None)
        self.traffic.acknowledged += 1

    async def _delete_nothing(self, connection: AsyncClient, id: str) -> None:
        try:
            await self.traffic.write("Delete", connection.delete(id), due=(NotFoundError,))
        except NotFoundError:
            return
        if not self.settings.retries:
            raise WrongAnswerError(f"{id} was deleted twice: it had come back")

    async def _repeat(self, connection: AsyncClient, id: str) -> None:
        """Send the same once more: nothing changes."""
        value = self.checker.value(id)
        assert value is not None
        number = self.checker.versions(id) - 1
        saved = await self.traffic.write("Save", connection.save(value.message(id)))
        self.checker.acknowledge(id, number, value, saved.revision)
        if saved.created:
            raise WrongAnswerError(f"{id} was saved again, and is new")

    async def _stale(self, connection: AsyncClient, id: str) -> None:
        """Ask for a revision that is not the stored one: it must be refused."""
        known = self.checker.revision(id)
        if known is None:
            return
        wrong = self._value(self._last_value(id), "never stored")
        try:
            await self.traffic.write(
                "Save",
                connection.save(wrong.message(id), if_revision=known + 1_000_000_000),
                due=(AbortedError,),
            )
        except AbortedError:
            return
        raise WrongAnswerError(f"{id}: if_revision was wrong, and the save was accepted")

    async def _bulk(self, connection: AsyncClient) -> None:
        """Save several, old and new, in one batch."""
        count = self.random.randrange(3, 25)
        ids = {self._new_id() for _ in range(count // 3)}
        ids |= set(self.random.sample(self.ids, min(count, len(self.ids))))
        values = {id: self._next(id) for id in sorted(ids)}
        numbers = {id: self.checker.attempt(id, value) for id, value in values.items()}
        batch = [value.message(id) for id, value in values.items()]
        result = await self.traffic.write("BulkSave", connection.bulk_save(batch))
        done = result.saved + (result.unchanged if self.settings.retries else 0)
        if done != len(batch):
            raise WrongAnswerError(f"of {len(batch)} in a batch: {result}")
        for id, value in values.items():
            self.checker.acknowledge(id, numbers[id], value)
        self.traffic.acknowledged += len(batch)

    async def _skip(self, connection: AsyncClient) -> None:
        """Save a batch of ids that are all there, and to be left as they are."""
        there = [id for id in self.ids if self.checker.value(id) is not None]
        ids = self.random.sample(there, min(5, len(there)))
        batch = [self._value(self._last_value(id), "never stored").message(id) for id in ids]
        work = connection.bulk_save(batch, on_conflict=OnConflict.SKIP)
        result = await self.traffic.write("BulkSave", work)
        if result.skipped != len(batch):
            raise WrongAnswerError(f"of {len(batch)} ids that are there: {result}")

    async def _count(self, connection: AsyncClient) -> None:
        """Count a counter one up, whoever else does."""
        id = f"counter-{self.random.randrange(COUNTERS)}"
        found = await self.look(connection, id)
        count = 0 if found is None else int(found.metadata["count"])
        guard = 0 if found is None else found.revision
        value = self._value(None, "counters")._replace(
            timestamp=LATEST, metadata=_canonical({"count": count + 1, "by": self.name})
        )
        number = self.checker.attempt(id, value, count + 1)
        work = connection.save(value.message(id), if_revision=guard)
        try:
            saved = await self.traffic.write("Save", work, due=(AbortedError, AlreadyExistsError))
        except (AbortedError, AlreadyExistsError):
            retries = self.settings.retries
            self.checker.refuse(id, number, value, may_have_happened=retries)
            return
        self.checker.acknowledge(id, number, value, saved.revision)
        self.traffic.acknowledged += 1

    async def _read_own(self, connection: AsyncClient) -> None:
        """Read what it has written last: nothing is in flight, so one answer is right."""
        for id in self.ids[-3:]:
            await self.look(connection, id)


class Reader(Client):
    """Reads in all ways there are."""

    def __init__(self, traffic: Traffic, number: int) -> None:
        """Begin."""
        super().__init__(traffic, f"reader-{number}")
        self._acts: list[Callable[[AsyncClient], Awaitable[None]]] = [
            self._get, self._batch_get, self._list, self._search, self._export,
        ]  # fmt: skip
        self._weights = [40, 20, 20, 25, 2]

    async def act(self, connection: AsyncClient) -> None:
        """Do one thing."""
        (act,) = self.random.choices(self._acts, self._weights)
        await act(connection)

    def _some_id(self) -> str:
        draw = self.random
        if not self.checker.ids or draw.random() < 0.02:
            return f"unknown-{draw.randrange(1000)}"
        # What was written first lately is often being changed.
        ids = self.checker.ids[-200:] if draw.random() < 0.4 else self.checker.ids
        return draw.choice(ids)

    async def _get(self, connection: AsyncClient) -> None:
        await self.look(connection, self._some_id())

    async def _batch_get(self, connection: AsyncClient) -> None:
        ids = sorted({self._some_id() for _ in range(self.random.randrange(1, 80))})
        since = self.checker.now()
        found = await self.traffic.call("BatchGet", connection.batch_get(ids))
        answered = {message.id for message in found.messages} | set(found.missing_ids)
        if answered != set(ids):
            raise WrongAnswerError(f"BatchGet has left out {set(ids) - answered}")
        for message in found.messages:
            self.checker.shows(message, since)
        for id in found.missing_ids:
            self.checker.lacks(id, since)

    async def _list(self, connection: AsyncClient) -> None:
        draw = self.random
        value = self.checker.value(draw.choice(self.checker.ids)) if self.checker.ids else None
        session = value.session_id if value is not None and value.session_id else "counters"
        newest = draw.random() < 0.5
        place = _falling if newest else _rising
        scan = self.checker.scan(Asked(session_id=session), place=place)
        pager = connection.list(session, newest_first=newest, page_size=draw.choice((7, 50, 500)))
        await self._pages("List", pager.page, scan)

    async def _search(self, connection: AsyncClient) -> None:
        draw = self.random
        asked = self._question()
        order = draw.choice((Order.NEWEST, Order.OLDEST, Order.RELEVANCE))
        if not asked.words and order is Order.RELEVANCE:
            order = Order.NEWEST
        places = {Order.NEWEST: _falling, Order.OLDEST: _rising}
        scan = self.checker.scan(asked, place=places.get(order))
        query = " ".join((*asked.words, *([f"-{asked.without}"] if asked.without else [])))
        pager = connection.search(
            query,
            tags=() if asked.tag is None else (asked.tag,),
            provider=asked.provider or "",
            session_id=asked.session_id,
            order=order,
            page_size=draw.choice((0, 200, 500)),
        )
        await self._pages("Search", pager.page, scan)

    def _question(self) -> Asked:
        draw = self.random
        words = tuple(draw.sample(WORDS, draw.choice((1, 2, 2))))
        return draw.choice(
            (
                Asked(words),
                Asked((draw.choice(FOUND_WORDS), draw.choice(FOUND_WORDS))),
                Asked(words, without=draw.choice(WORDS)),
                Asked(words[:1], tag=draw.choice(TAGS)),
                Asked(words[:1], provider="google", tag=draw.choice(TAGS)),
                Asked(tag=draw.choice(TAGS)),
                Asked(words[:1], session_id="counters"),
            )
        )

    async def _pages(
        self, name: str, fetch: Callable[[str | None], Awaitable[Any]], scan: Any
    ) -> None:
        token: str | None = None
        while token != "":
            page = await self.traffic.call(name, fetch(token))
            scan.page([getattr(item, "message", item) for item in page.items])
            token = page.next_page_token
        scan.end()

    async def _export(self, connection: AsyncClient) -> None:
        scan = self.checker.export()

        async def export() -> None:
            size = self.random.choice((50, 200, 1000))
            async with aclosing(connection.export_batches(batch_size=size)) as batches:
                async for batch in batches:
                    scan.page(batch.messages)

        await self.traffic.call("Export", export())
        scan.end()


def _rising(message: Message) -> tuple[datetime, bytes]:
    assert message.timestamp is not None
    return message.timestamp, message.id.encode()


def _falling(message: Message) -> tuple[timedelta, bytes]:
    """Turn the order around; the bytes of an id, too, and that of one with more bytes."""
    assert message.timestamp is not None
    turned = bytes(255 - byte for byte in message.id.encode()) + b"\xff"
    return LATEST - message.timestamp, turned


def _time(draw: random.Random) -> datetime:
    return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(microseconds=draw.randrange(10**12))


def _canonical(metadata: dict[str, Any]) -> str:
    return Value.of(Message("p", "r", "c", timestamp=LATEST, metadata=metadata)).metadata
