"""Workload: clients that use every kind of call and record everything in a history.

The workload expects nothing of the service: whatever it answers, the clients continue, and
`tools.chaos.checker` judges afterwards. All actions are drawn from one seed; the order in which
they reach the service is not determined.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from typing import Any

from sagastore import AsyncClient, Message, RetryPolicy
from tools.chaos.final_reads import settle
from tools.chaos.history import History
from tools.chaos.known_messages import TAGS, KnownMessage, KnownMessages
from tools.chaos.recording_client import RecordingClient, counted_attempts
from tools.chaos.turns import Turns
from tools.chaos.values import Value, shown

TIMEOUT = 1.0
"""Seconds for a call of a client that does not retry."""
PATIENT = 2.5
"""Seconds for a call of a client that retries, all attempts included."""
TRIES = 3
REST = 0.035
"""Average seconds between two actions of a client."""
AGAIN = 0.4
"""Share of unanswered saves that a client sends again."""
BASELINE = 30.0
"""Seconds in which the initial messages must have been read."""


class Workload:
    """Several clients of the servers at ``targets``."""

    def __init__(
        self,
        targets: str,
        seed: int,
        history: History,
        *,
        clients: int = 8,
        rest: float = REST,
        timeout: float | None = None,
    ) -> None:
        """Create the workload; ``timeout`` per call in seconds; None: the defaults."""
        self.history = history
        self.targets = targets
        self.draw = random.Random(f"{seed}/workload")
        self.messages = KnownMessages(seed, self.draw)
        self.numbers = itertools.count(1)
        """Numbers of scans and exports."""
        self._seed = seed
        self._clients = clients
        self._rest = rest
        self._timeout = timeout
        self.turns = Turns(targets, seed, lambda what: history.mark("wrong", what=what))

    async def run(self, stop: asyncio.Event) -> None:
        """Read the initial messages, then read and write until ``stop``; calls in progress are
        finished.

        Raises:
            SagaStoreError: The initial messages cannot be read.
        """
        await self.read_baseline()
        with counted_attempts():
            await self.live(stop)

    async def live(self, stop: asyncio.Event) -> None:
        """Read and write until ``stop``; use it inside `counted_attempts`."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._clients):
                group.create_task(self._live(number, stop), name=f"client {number}")
            group.create_task(self.turns.run(stop), name="turns")

    async def settle(self) -> None:
        """Read all data back through every kind of read, after all faults have ended.

        Raises:
            SagaStoreError: The service still does not answer.
        """
        await settle(self.targets, self.history, self.messages, self.numbers, self._clients)
        await self.turns.settle()
        self.history.mark("turns", acknowledged=self.turns.acknowledged)

    async def read_baseline(self) -> None:
        """Record the initial messages before the first write.

        Raises:
            SagaStoreError: They cannot be read.
        """
        operation = self.history.begin(-1, "Baseline", {})
        retry = RetryPolicy(max_attempts=200, initial_backoff=0.05, max_backoff=0.2)
        values: list[dict[str, Any]] = []
        items: list[Any] = []
        async with AsyncClient(self.targets, retry=retry, timeout=BASELINE) as client:
            async for message in client.export(timeout=BASELINE):
                value, item = Value.of(message, ()), shown(message)
                values.append(value.as_json())
                items.append(item)
                self.messages.begin_with(value, message.revision)
        operation.ok({"values": values, "items": items})

    async def _live(self, number: int, stop: asyncio.Event) -> None:
        # Most clients make each attempt themselves; a few rely on the library.
        patient = number % 4 == 3
        client = RecordingClient(
            self.targets,
            self.history,
            number,
            timeout=self._timeout or (PATIENT if patient else TIMEOUT),
            tries=TRIES if patient else 1,
        )
        actor = _Actor(self, client, random.Random(f"{self._seed}/client {number}"))
        try:
            while not stop.is_set():
                went = await actor.act()
                pause = self.draw.uniform(0, 2 * self._rest) + (0 if went else 0.1)
                await asyncio.sleep(pause)
        finally:
            await client.close()


class _Actor:
    """Draws the actions of a client."""

    def __init__(self, workload: Workload, client: RecordingClient, draw: random.Random) -> None:
        self._workload = workload
        self._messages = workload.messages
        self._client = client
        self._draw = draw
        self._acts: list[Callable[[], Awaitable[bool]]] = [
            self._save, self._delete, self._delete_and_save, self._get, self._batch_get,
            self._list, self._search, self._export, self._together,
        ]  # fmt: skip
        self._weights = [34, 9, 3, 24, 5, 6, 10, 2, 6]
        if client.tries == 1:
            self._acts.append(self._bulk)
            self._weights.append(5)

    async def act(self) -> bool:
        """Perform one action; return whether it was answered."""
        (act,) = self._draw.choices(self._acts, self._weights)
        return await act()

    async def _together(self) -> bool:
        """Save and read several messages at once; the library sends them in few requests."""
        acts = self._draw.choices((self._save, self._get), (2, 1), k=self._draw.randint(4, 12))
        return any(await asyncio.gather(*(act() for act in acts)))

    # ------------------------------------------------------------------ writes

    async def _save(self, target: KnownMessage | None = None) -> bool:
        target = target or self._messages.free()
        guard = self._guard(target, new=True)
        message, value = self._messages.message(target)
        both = self._draw.random() < 0.08
        with (
            self._messages.writing(target),
            _UnansweredWrites(self._workload.history, target),
        ):
            saved = await self._client.save(message, value, if_revision=guard, both=both)
            if saved is None and self._draw.random() < AGAIN:
                # Clients retry after a missing answer; some ask for durability on both stores.
                both = self._draw.random() < 0.5
                saved = await self._client.save(message, value, if_revision=guard, both=both)
        if saved is not None:
            target.revision = max(saved.revision, target.revision or 0)
        return saved is not None

    async def _delete(self, target: KnownMessage | None = None) -> bool:
        target = target or self._messages.free(known=True)
        guard = self._guard(target, new=False)
        with (
            self._messages.writing(target),
            _UnansweredWrites(self._workload.history, target),
        ):
            return await self._client.delete(target.id, if_revision=guard)

    async def _delete_and_save(self) -> bool:
        target = self._messages.free(known=True)
        return await self._delete(target) and await self._save(target)

    def _guard(self, target: KnownMessage, *, new: bool) -> int | None:
        chance = self._draw.random()
        if chance < 0.25 and target.revision is not None:
            return target.revision
        if chance < 0.33 and target.revision is not None and target.revision > 1:
            return self._draw.randrange(1, target.revision)
        if chance < 0.45 and new and (target.revision is None or chance < 0.36):
            return 0
        return None

    async def _bulk(self) -> bool:
        draw, messages = self._draw, self._messages
        size, count = draw.choice((2, 5, 12)), draw.randint(1, 4)
        chosen = messages.fresh(size * count)
        batches = [
            [messages.message(one) for one in chosen[begin : begin + size]]
            for begin in range(0, len(chosen), size)
        ]
        invalid = None
        if draw.random() < 0.2:
            batches = batches[:1]
            invalid = Message("", "user", "no provider", id=f"invalid-{draw.randrange(100)}")
        sent = chosen[: size * len(batches)]
        # Sometimes the stream is closed early.
        cut = draw.randint(1, len(batches)) if draw.random() < 0.3 else 0
        with messages.writing(*sent), _UnansweredWrites(self._workload.history, *sent):
            done = await self._client.bulk(
                batches, skip=draw.random() < 0.2, invalid=invalid, cut_after=cut
            )
        return done > 0

    # ------------------------------------------------------------------ reads

    async def _get(self) -> bool:
        target = self._messages.one()
        found = await self._client.get(target.id)
        if found is not None:
            target.revision = max(found.revision, target.revision or 0)
        return True

    async def _batch_get(self) -> bool:
        return await self._client.batch_get(self._messages.some(30))

    async def _list(self) -> bool:
        args = {"list": True, "session": self._draw.choice(self._messages.sessions)}
        order = self._draw.choice(("NEWEST", "OLDEST"))
        return await self._pages(args | {"order": order})

    async def _search(self) -> bool:
        draw = self._draw
        order = draw.choice(("NEWEST", "OLDEST", "RELEVANCE"))
        args: dict[str, Any] = {"order": order}
        if draw.random() < 0.65 and self._messages.words:
            args["word"] = draw.choice(self._messages.words[-300:])
        else:
            # Without words there is no relevance; the service then sorts the newest first.
            args |= {"tag": draw.choice(TAGS), "order": draw.choice(("NEWEST", "OLDEST"))}
        if draw.random() < 0.2:
            args["session"] = draw.choice(self._messages.sessions)
        return await self._pages(args)

    async def _pages(self, args: dict[str, Any]) -> bool:
        """Read page after page, with pauses; retry pages that fail."""
        token, patience = "", 4
        args |= {"scan": next(self._workload.numbers), "size": self._draw.choice((3, 10, 50, 500))}
        while True:
            page = await self._client.page(args, token)
            if page is None:
                patience -= 1
                if not token or not patience:
                    return False
                await asyncio.sleep(self._draw.uniform(0, 0.4))
                continue
            last, token = page
            if not token or self._draw.random() < 0.1:
                return True
            args = args | ({"after": last} if last else {})
            await asyncio.sleep(self._draw.uniform(0, 0.1))

    async def _export(self) -> bool:
        number, after, token = next(self._workload.numbers), 0, ""
        size = self._draw.choice((20, 100, 500))
        for _ in range(8):
            batches = self._draw.choice((0, 0, 1, 3))
            after, token, done = await self._client.export(
                number, after=after, token=token, size=size, batches=batches
            )
            if done:
                return True
            if not token:
                return False
            await asyncio.sleep(self._draw.uniform(0, 0.2))
        return False


class _UnansweredWrites:
    """Counts writes of unknown outcome per id."""

    def __init__(self, history: History, *messages: KnownMessage) -> None:
        self._history = history
        self._messages = messages
        self._began = len(history)

    def __enter__(self) -> None:
        """Start counting."""

    def __exit__(self, *_: object) -> None:
        """Examine the operations that began meanwhile."""
        unknown: set[str] = set()
        for operation in self._history.operations[self._began :]:
            if operation.kind in {"Save", "Delete", "BulkSave"} and operation.outcome == "unknown":
                unknown |= _ids_of(operation.args)
        for target in self._messages:
            target.unknown += target.id in unknown


def _ids_of(args: Any) -> set[str]:
    if "id" in args:
        return {args["id"]}
    values = args.get("values") or [args["value"]]
    return {value["id"] for value in values}
