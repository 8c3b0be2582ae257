"""Clients of a round: they write and read at random and check every answer."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Any

from sagastore import Message as ClientMessage
from sagastore_server.storage.errors import (
    AlreadyExistsError,
    NotFoundError,
    RevisionMismatchError,
)
from sagastore_server.storage.model import Message, NewMessage, OnConflict, SaveResult, Store
from sagastore_server.storage.query import Criteria, Scan
from tests.simulation import session_actions
from tests.simulation.file_clients import FileClient
from tests.simulation.service import Make, RefusedError, UnknownError
from tests.support.checker import Asked, Value, WrongAnswerError

if TYPE_CHECKING:
    from tests.simulation.world import World

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST = 1_800_000_000_000_000
"""Microseconds: the ``timestamp`` of the first message of a round."""

EQUAL = 3
"""Number of different timestamps, so that the sequences order most messages."""
PAGE = 50
EXPORT_PAGE = 20
SESSIONS = ("s0", "s1")
COUNTERS = 2
RETRY_FIRST, RETRY_MOST = 0.02, 0.5
"""First and longest delay in seconds before an unanswered write is retried; doubled each time."""
THINK_SECONDS = 0.02
"""Maximum seconds between reading a counter and saving it, during which others may save it."""


class Client:
    """Client. An id belongs to one client; counters belong to all, which save them guarded."""

    def __init__(self, world: World, number: int) -> None:
        """Create client ``number`` of ``world``; it owns its share of the initial messages."""
        self._world = world
        self._service = world.service
        self._checker = world.checker
        self.name = f"client-{number}"
        self._number = number
        self._draw = Random(f"{world.seed}/{self.name}")
        self._made = itertools.count()
        old = enumerate(id for id in world.checker.ids if id.startswith("old-"))
        self._own = [id for at, id in old if at % world.settings.clients == number]
        self._files = FileClient(world, self.name, self._call, self.until_answered)

    async def run(self) -> None:
        """Act until the round ends."""
        world = self._world
        for turn in itertools.count():
            await asyncio.sleep(self._draw.random() ** 2 * world.settings.rest)
            if world.over:
                return
            action = self._choose()
            if not world.skips(self.name, turn):
                await self._act(action)

    def _choose(self) -> str:
        actions = self._world.settings.actions
        action = self._draw.choices(list(actions), list(actions.values()))[0]
        return action if self._own else "new"

    async def _act(self, action: str) -> None:
        draw = self._draw
        try:
            if action == "new":
                self._own.append(f"{draw.randrange(16):x}-{self._number}-{next(self._made)}")
                await self.save(self._own[-1])
            elif action in {"save", "again", "delete"}:
                await getattr(self, action)(draw.choice(self._own))
            elif action == "bulk":
                await self.bulk(sorted(draw.sample(self._own, min(len(self._own), 4))))
            elif action == "count":
                await self.count(f"counter-{draw.randrange(COUNTERS)}")
            elif action == "get":
                await self.get(draw.choice(self._checker.ids))
            elif action == "batch":
                ids = self._checker.ids
                await self.batch_get(draw.sample(ids, min(len(ids), 6)))
            elif action in {"export", "quarantine", "file"}:
                await getattr(self, action)()
            elif action in {"append", "session", "sessions", "rename"}:
                await self._act_on_sessions(action)
            else:
                await self.pages(draw.choice(SESSIONS), search=action == "search")
        except (UnknownError, RefusedError):
            pass

    async def _act_on_sessions(self, action: str) -> None:
        session_id = self._draw.choice(SESSIONS)
        if action == "append":
            many = self._draw.randint(1, session_actions.TURN)
            ids = [f"t-{self._number}-{next(self._made)}" for _ in range(many)]
            await session_actions.append(self, ids, session_id)
        elif action == "session":
            await session_actions.revision_of(self, session_id)
        elif action == "sessions":
            await session_actions.list_sessions(self)
        else:
            await session_actions.rename(self)

    def value_in(self, session_id: str) -> Value:
        """Return a new value of a message in a session."""
        return self._value(None)._replace(session_id=session_id)

    @staticmethod
    def drafts(values: dict[str, Value]) -> list[NewMessage]:
        """Return the messages of a turn."""
        return [draft(id, value) for id, value in values.items()]

    async def _call(self, what: str, make: Make[Any], **options: Any) -> Any:
        self._world.counts["calls"] += 1
        return await self._service.call(self.name, what, make, **options)

    async def file(self) -> None:
        """Act on a file record."""
        await self._files.act()

    async def check_files(self) -> None:
        """Read every file that a client has written."""
        await self._files.read_all()

    async def until_answered(self, what: str, make: Make[Any]) -> tuple[Any, bool]:
        """Retry a write until it is answered; return whether an earlier attempt may have taken
        effect.
        """
        earlier = False
        for attempt in itertools.count():
            try:
                return await self._call(what, make, write=True), earlier
            except RefusedError:
                pass
            except UnknownError:
                self._world.counts["unknown"] += 1
                earlier = True
            except (NotFoundError, AlreadyExistsError, RevisionMismatchError) as exc:
                return exc, earlier
            await asyncio.sleep(min(RETRY_FIRST * 2**attempt, RETRY_MOST))
        raise AssertionError  # itertools.count does not end

    # ------------------------------------------------------------------ writes

    async def save(self, id: str) -> None:
        """Save a new value, sometimes requesting durability on both stores."""
        checker = self._checker
        before = checker.last_value(id) if checker.knows(id) else None
        value = self._value(None if before is None else before.timestamp)
        number = checker.attempt(id, value)
        within = 1.0 if self._draw.random() < 0.05 else None
        saved, _ = await self.until_answered(
            f"save {id}={value.content}",
            lambda live: live.backend.save(draft(id, value), None, within),
        )
        self._acknowledge(id, number, value, saved)

    async def again(self, id: str) -> None:
        """Save the latest value again and request durability on both stores."""
        value = self._checker.value(id) if self._checker.knows(id) else None
        if value is None:
            return
        number = self._checker.versions(id) - 1
        saved = await self._call(
            f"save again {id}={value.content}",
            lambda live: live.backend.save(draft(id, value), None, 1.0),
            write=True,
        )
        self._acknowledge(id, number, value, saved)

    async def delete(self, id: str) -> None:
        """Delete a message, or save it if it does not exist."""
        if not self._checker.knows(id) or self._checker.value(id) is None:
            await self.save(id)
            return
        number = self._checker.attempt(id, None)
        result, earlier = await self.until_answered(
            f"delete {id}", lambda live: live.backend.delete(id)
        )
        if isinstance(result, NotFoundError) and not earlier:
            raise WrongAnswerError(f"{id} was acknowledged, but Delete returned NOT_FOUND")
        self._checker.acknowledge(id, number, None)
        self._world.counts["acknowledged"] += 1

    async def bulk(self, ids: list[str]) -> None:
        """Save several messages in one call."""
        checker = self._checker
        known = [id for id in ids if checker.knows(id)]
        befores = {id: checker.last_value(id) for id in known}
        values = {id: self._value(value and value.timestamp) for id, value in befores.items()}
        numbers = {id: checker.attempt(id, value) for id, value in values.items()}
        drafts = [draft(id, value) for id, value in values.items()]
        if not drafts:
            return
        await self.until_answered(
            f"bulk save {' '.join(values)}",
            lambda live: live.backend.bulk_save(drafts, OnConflict.REPLACE),
        )
        for id, value in values.items():
            checker.acknowledge(id, numbers[id], value)
        self._world.counts["acknowledged"] += len(values)

    async def count(self, id: str) -> None:
        """Increment a counter with a guarded save, concurrently with other clients."""
        found = await self.get(id)
        count = 0 if found is None else int(json.loads(found.metadata)["count"])
        await asyncio.sleep(self._draw.random() * THINK_SECONDS)
        serial = next(self._world.serials)
        metadata = {"by": f"{self.name}-{serial}", "count": count + 1}
        value = Value(
            "p", "user", f"w{serial}", (), _EPOCH + timedelta(days=30_000),
            json.dumps(metadata, sort_keys=True), "counters",
        )  # fmt: skip
        number = self._checker.attempt(id, value, count + 1)
        guard = 0 if found is None else found.revision
        try:
            saved = await self._call(
                f"count {id}={count + 1} if {guard}",
                lambda live: live.backend.save(draft(id, value), guard),
                write=True,
            )
        except (AlreadyExistsError, RevisionMismatchError):
            self._checker.refuse(id, number, value, may_have_happened=False)
        else:
            self._acknowledge(id, number, value, saved)

    def _value(self, timestamp: datetime | None) -> Value:
        serial = next(self._world.serials)
        return new_value(serial, timestamp)

    def _acknowledge(self, id: str, number: int, value: Value, saved: SaveResult) -> None:
        self._checker.acknowledge(id, number, value, saved.revision)
        self._world.sessions.note(value.session_id, saved.revision)
        self._world.counts["acknowledged"] += 1
        if Store.POSTGRESQL in saved.durable_on:
            self._world.counts["durable on both"] += 1
            self._world.check_durable(id, saved.revision)

    # ------------------------------------------------------------------ reads

    async def get(self, id: str) -> Message | None:
        since = self._checker.now()
        try:
            found: Message = await self._call(f"get {id}", lambda live: live.backend.get(id))
        except NotFoundError:
            self._checker.lacks(id, since)
            return None
        self._checker.shows(client_message(found), since)
        return found

    async def batch_get(self, ids: list[str]) -> None:
        """Read several messages at once."""
        since = self._checker.now()
        found = await self._call(
            f"batch get {' '.join(ids)}", lambda live: live.backend.batch_get(ids)
        )
        for id in ids:
            if id in found:
                self._checker.shows(client_message(found[id]), since)
            else:
                self._checker.lacks(id, since)

    async def pages(self, session: str, *, search: bool = False) -> None:
        """List or search a session page by page."""
        scan = self._checker.scan(
            Asked(session_id=session),
            place=lambda message: (message.timestamp, message.sequence),
        )
        after = None
        while True:
            wanted = Scan(newest_first=False, limit=PAGE, after=after)
            page = await self._call(f"list {session}", _listing(session, wanted, search=search))
            scan.page(_client_messages(page.messages))
            if not page.more:
                break
            after = page.messages[-1].position
        scan.end()

    async def export(self) -> None:
        """Export all messages by sequence, up to the last one at the start."""
        scan = self._checker.export()
        last = await self._call("last sequence", lambda live: live.backend.last_sequence())
        after = 0
        while True:
            page = await self._call(f"export after {after}", _exporting(after, last))
            scan.page(_client_messages(page.messages))
            if not page.more:
                break
            after = page.messages[-1].sequence
        scan.end()

    async def quarantine(self) -> None:
        """Read the quarantine, which no phase changes."""
        rows = await self._call("quarantine", lambda live: live.backend.quarantine(0, 10))
        count = await self._call("quarantine count", lambda live: live.backend.quarantine_count())
        found, keys = {row.source_key for row in rows}, self._world.quarantine_keys
        certain = keys - self._world.removed_at_cutover
        # The cutover may happen between the two calls.
        if not (certain <= found <= keys and len(certain) <= count <= len(keys)):
            raise WrongAnswerError(
                f"the quarantine has {count} rows and returns {sorted(found)}, instead of "
                f"{sorted(keys)}; only {sorted(keys - certain)} may be missing"
            )


def _listing(session: str, scan: Scan, *, search: bool) -> Make[Any]:
    if search:
        return lambda live: live.backend.search(Criteria(session_id=session), scan)
    return lambda live: live.backend.list_session(session, scan)


def _exporting(after: int, last: int) -> Make[Any]:
    return lambda live: live.backend.scan_sequences(after, last, EXPORT_PAGE)


def new_value(serial: int, timestamp: datetime | None) -> Value:
    """Return a value that no other write of the round uses, with a timestamp that many share."""
    at = timestamp or _EPOCH + (_FIRST + serial % EQUAL) * _MICROSECOND
    return Value(
        "p", "user", f"w{serial}", (), at, json.dumps({"n": serial}), SESSIONS[serial % 2]
    )  # fmt: skip


def draft(id: str, value: Value) -> NewMessage:
    """Return the request that saves a value."""
    timestamp = (value.timestamp - _EPOCH) // _MICROSECOND
    return NewMessage(
        id, value.provider, value.role, value.content, value.tags, timestamp, value.metadata,
        value.session_id,
    )  # fmt: skip


def _client_messages(messages: Iterable[Message]) -> Iterable[ClientMessage]:
    return map(client_message, messages)


@lru_cache(maxsize=4096)
def client_message(message: Message) -> ClientMessage:
    """Return a stored message as the client library returns it."""
    created = message.created_at
    return ClientMessage(
        message.provider,
        message.role,
        message.content,
        id=message.id,
        tags=message.tags,
        timestamp=_EPOCH + message.timestamp * _MICROSECOND,
        metadata=json.loads(message.metadata),
        session_id=message.session_id,
        created_at=None if created is None else _EPOCH + created * _MICROSECOND,
        revision=message.revision,
        sequence=message.sequence,
    )
