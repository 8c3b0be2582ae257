"""Client that uses every kind of write."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from sagastore import (
    AbortedError,
    AlreadyExistsError,
    AsyncClient,
    Durability,
    Message,
    NotFoundError,
    OnConflict,
    Store,
)
from tests.support.checker import Value, WrongAnswerError
from tests.support.legacy_sample import ODD_SESSION
from tests.support.traffic import COUNTERS, LATEST, TAGS, WORDS, Client, Traffic

_LONG = "long " * 1500
_MOST_IDS = 400
"""Maximum number of ids that a writer creates; then it changes existing ones."""


class Writer(Client):
    """Writes its own ids and shared counters."""

    def __init__(self, traffic: Traffic, number: int) -> None:
        super().__init__(traffic, f"writer-{number}")
        self.ids: list[str] = []
        self._made = 0
        self._serial = 0
        self._acts: list[Callable[[AsyncClient], Awaitable[None]]] = [
            self._new, self._change, self._bulk, self._count, self._read_own, self._skip,
        ]  # fmt: skip
        self._weights = [8, 40, 4, 14, 12, 2]

    async def act(self, connection: AsyncClient) -> None:
        """Perform one action."""
        (act,) = self.random.choices(self._acts, self._weights)
        await act(connection)

    # ------------------------------------------------------------------ values

    def _value(self, before: Value | None, session: str | None) -> Value:
        """Return a value that no client has written yet."""
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
        """Return the next value of an id."""
        before = self._last_value(id)
        session = f"session {self.name} {self.random.randrange(6)}"
        if before is not None and self.random.random() < 0.7:
            session = before.session_id or session
        return self._value(before, session)

    def _last_value(self, id: str) -> Value | None:
        """Return the latest value that was not an absence; it has the time."""
        return self.checker.last_value(id) if self.checker.knows(id) else None

    def _new_id(self) -> str:
        if self._made >= _MOST_IDS:
            return self.random.choice(self.ids)
        self._made += 1
        id = f"{self.random.randrange(16**6):06x}-{self.name}-{self._made}"
        self.ids.append(id)
        return id

    # ------------------------------------------------------------------ actions

    async def _new(self, connection: AsyncClient) -> None:
        id = self._new_id()
        if self.checker.knows(id) and self.checker.value(id) is not None:
            return await self._replace(connection, id)
        return await self._create(connection, id)

    async def _create(self, connection: AsyncClient, id: str) -> None:
        guard = 0 if self.random.random() < 0.4 else None
        created = await self._save(connection, id, self._next(id), guard=guard)
        if not created and not self.settings.retries:
            raise WrongAnswerError(f"{id} was new, but the answer says that it existed")

    async def _replace(self, connection: AsyncClient, id: str) -> None:
        guard = self.checker.revision(id) if self.random.random() < 0.4 else None
        keeps_time = self.random.random() < 0.3
        created = await self._save(
            connection, id, self._next(id), guard=guard, keeps_time=keeps_time
        )
        if created and not self.settings.retries:
            raise WrongAnswerError(f"{id} existed, but the answer says that it was new")

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
            act = self.random.choices((self._create, self._delete_nothing), (6, 4))[0]
        else:
            ways = (self._replace, self._delete, self._repeat, self._stale)
            act = self.random.choices(ways, (50, 32, 10, 8))[0]
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
            raise WrongAnswerError(f"{id} was deleted twice: it had reappeared")

    async def _repeat(self, connection: AsyncClient, id: str) -> None:
        """Send the same message again: nothing changes."""
        value = self.checker.value(id)
        assert value is not None
        if value.session_id == ODD_SESSION:
            # Its metadata may have 0.10, which the client would send as 0.1.
            await self._replace(connection, id)
            return
        number = self.checker.versions(id) - 1
        saved = await self.traffic.write("Save", connection.save(value.message(id)))
        self.checker.acknowledge(id, number, value, saved.revision)
        if saved.created:
            raise WrongAnswerError(f"{id} was saved again, but the answer says that it was new")

    async def _stale(self, connection: AsyncClient, id: str) -> None:
        """Save with a wrong revision: it must be refused."""
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
        raise WrongAnswerError(f"{id}: the save was accepted with a wrong if_revision")

    async def _bulk(self, connection: AsyncClient) -> None:
        """Save several messages, old and new, in one batch."""
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
        """Save a batch of existing ids that must be skipped."""
        there = [id for id in self.ids if self.checker.value(id) is not None]
        ids = self.random.sample(there, min(5, len(there)))
        batch = [self._value(self._last_value(id), "never stored").message(id) for id in ids]
        work = connection.bulk_save(batch, on_conflict=OnConflict.SKIP)
        result = await self.traffic.write("BulkSave", work)
        if result.skipped != len(batch):
            raise WrongAnswerError(f"of {len(batch)} ids that are there: {result}")

    async def _count(self, connection: AsyncClient) -> None:
        """Increase a counter concurrently with other clients."""
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
        """Read the last own write: nothing is in flight, so exactly one answer is correct."""
        for id in self.ids[-3:]:
            await self.look(connection, id)


def _time(draw: random.Random) -> datetime:
    """Return a time that many messages share, so that their sequences order them."""
    return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(days=draw.randrange(20))


def _canonical(metadata: dict[str, Any]) -> str:
    return Value.of(Message("p", "r", "c", timestamp=LATEST, metadata=metadata)).metadata
