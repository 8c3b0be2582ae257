"""Several servers on one database: every guarantee holds across servers."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from sagastore_server.postgresql import batch
from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.changes import Changes
from sagastore_server.storage.errors import (
    AlreadyExistsError,
    NotFoundError,
    RevisionMismatchError,
    SessionExistsError,
    SessionNotFoundError,
    SessionRevisionMismatchError,
    UnavailableError,
)
from sagastore_server.storage.model import OnConflict, SaveResult
from sagastore_server.storage.query import Scan
from tests.support.backends import opened
from tests.support.drafts import NOW, draft, lone, save_all


@pytest.fixture
async def servers(dsn: str) -> AsyncIterator[list[PostgreSQLStorage]]:
    options = PostgreSQLOptions(dsn, pool_min=1, pool_max=6, writers=3)
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(3):
            backend = PostgreSQLStorage(options)
            await stack.enter_async_context(opened(lambda made=backend: made))  # type: ignore[misc]
            found.append(backend)
        yield found


async def test_concurrent_starts_create_one_schema(dsn: str) -> None:
    backends = [PostgreSQLStorage(PostgreSQLOptions(dsn, pool_min=1)) for _ in range(5)]
    await asyncio.gather(*(backend.open() for backend in backends))
    await backends[0].save(draft())
    assert (await backends[4].get("m-1")).content == draft().content
    await asyncio.gather(*(backend.close() for backend in backends))


async def test_write_is_visible_on_all_servers(servers: list[PostgreSQLStorage]) -> None:
    for number in range(30):
        await servers[number % 3].save(draft("m", f"version {number}"))
        for server in servers:
            assert (await server.get("m")).content == f"version {number}"


async def test_concurrent_first_saves_have_one_winner(servers: list[PostgreSQLStorage]) -> None:
    for turn in range(10):
        results = await asyncio.gather(
            *(server.save(draft(f"m-{turn}", f"by {at}"), 0) for at, server in enumerate(servers)),
            return_exceptions=True,
        )
        first = [result for result in results if isinstance(result, SaveResult)]
        assert len(first) == 1
        assert sum(isinstance(result, AlreadyExistsError) for result in results) == 2


async def test_guarded_saves_lose_no_update_across_servers(
    servers: list[PostgreSQLStorage],
) -> None:
    """A counter that is only increased by compare-and-swap counts every success."""
    await servers[0].save(draft("counter", "0"))

    async def count(server: PostgreSQLStorage) -> int:
        successes = 0
        while successes < 10:
            message = await server.get("counter")
            after = draft("counter", str(int(message.content) + 1))
            try:
                await server.save(after, message.revision)
            except RevisionMismatchError:
                continue
            successes += 1
        return successes

    total = sum(await asyncio.gather(*(count(server) for server in servers for _ in range(2))))
    assert (await servers[0].get("counter")).content == str(total)


async def test_revisions_increase_across_servers(servers: list[PostgreSQLStorage]) -> None:
    """Concurrent saves and deletions of a few ids on all servers."""
    ids = [f"m-{number}" for number in range(4)]
    seen: dict[str, list[int]] = {key: [] for key in ids}

    async def act(server: PostgreSQLStorage, seed: int) -> None:
        chance = random.Random(seed)
        for step in range(40):
            key = chance.choice(ids)
            if chance.random() < 0.4:
                with contextlib.suppress(NotFoundError):
                    await server.delete(key)
            elif chance.random() < 0.3:
                drafts = [draft(one, f"{seed} {step}") for one in chance.sample(ids, 3)]
                await server.bulk_save(drafts, OnConflict.REPLACE)
            else:
                before = len(seen[key])
                floor = max(seen[key], default=0) if before else 0
                result = await server.save(draft(key, f"{seed} {step}"))
                # Acknowledged before this save began: it must be lower.
                assert result.revision > floor
                seen[key].append(result.revision)

    acts = (act(server, at * 10 + n) for at, server in enumerate(servers) for n in range(3))
    await asyncio.gather(*acts)
    for numbers in seen.values():
        assert len(set(numbers)) == len(numbers)
    tombstones = await servers[0]._pool.rows("SELECT id, revision FROM tombstones")
    stored = await servers[0].batch_get(ids)
    for key, revision in tombstones:
        if key in stored:
            assert stored[key].revision > revision


async def test_later_call_has_greater_sequence_on_every_server(
    servers: list[PostgreSQLStorage],
) -> None:
    """Writers on all servers; what was acknowledged before a call began has lower sequences."""
    acknowledged = [0]

    async def write(server: PostgreSQLStorage, name: str) -> None:
        for number in range(25):
            ids = [f"{name}-{number}-{9 - one}" for one in range(3)]
            before = max(acknowledged)
            if number % 2:
                await server.bulk_save([draft(one) for one in ids], OnConflict.REPLACE)
            else:
                for one in ids:
                    await server.save(draft(one))
            stored = await server.batch_get(ids)
            sequences = [stored[one].sequence for one in ids]
            assert before < sequences[0] < sequences[1] < sequences[2]
            acknowledged.append(sequences[-1])

    writers = (write(server, f"{at}{n}") for at, server in enumerate(servers) for n in range(2))
    await asyncio.gather(*writers)
    listed = [await _listed(server, "") for server in servers]
    assert listed[0] == listed[1] == listed[2]
    assert len(listed[0]) == 6 * 25 * 3
    for server in servers:
        assert await _exported(server) == listed[0]


async def test_calls_on_alternating_servers_list_in_their_order(
    servers: list[PostgreSQLStorage],
) -> None:
    ids = [f"m-{number}" for number in random.Random(3).sample(range(1000), 30)]
    for at, key in enumerate(ids):
        if at % 3:
            await servers[at % 3].save(draft(key))
        else:
            await servers[0].bulk_save([draft(key)], OnConflict.REPLACE)
    await servers[1].save(draft(ids[4], "replaced"))
    await servers[2].delete(ids[7])
    await servers[0].save(draft(ids[7]))
    expected = [*ids[:7], *ids[8:], ids[7]]
    for server in servers:
        assert await _listed(server, "") == expected


async def test_stale_revision_is_not_used_after_deletion(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id is new when it is looked up, is created and deleted, and is new again when written."""
    options = PostgreSQLOptions(dsn, pool_min=1, writers=1)
    async with (
        opened(lambda: PostgreSQLStorage(options)) as one,
        opened(lambda: PostgreSQLStorage(options)) as other,
    ):
        load = batch.load
        meanwhile = [True]

        async def slow_load(*arguments: object) -> object:
            changes = await load(*arguments)  # type: ignore[arg-type]
            if meanwhile.pop() if meanwhile else False:
                await other.save(draft("m", "short life"))
                await other.delete("m")
            return changes

        monkeypatch.setattr("sagastore_server.postgresql.writer.load", slow_load)
        result = await one.save(draft("m", "second life"))
        ((buried,),) = await one._pool.rows("SELECT revision FROM tombstones")  # type: ignore[attr-defined]
        assert result.created
        assert result.revision > buried


class _AlwaysFirst:
    """Another server that takes an id each time it was found free, a limited number of times."""

    def __init__(self, other: StorageBackend, times: int, patch: pytest.MonkeyPatch) -> None:
        self._other = other
        self._left = times
        self._acting = False
        self._load = batch.load
        patch.setattr("sagastore_server.postgresql.writer.load", self)

    async def __call__(self, *arguments: Any) -> Changes:
        if self._acting or not self._left:
            return await self._load(*arguments)
        self._left -= 1
        self._acting = True
        try:
            with contextlib.suppress(NotFoundError):
                await self._other.delete("m")
            changes = await self._load(*arguments)
            await self._other.save(lone("m", "first"))
        finally:
            self._acting = False
        return changes


@pytest.mark.parametrize(("losses", "gets_on"), [(20, True), (-1, False)])
async def test_contended_write_succeeds_or_is_aborted(
    dsn: str, monkeypatch: pytest.MonkeyPatch, losses: int, gets_on: bool
) -> None:
    patient = PostgreSQLOptions(dsn, pool_min=1, writers=1, acquire_timeout=60 if gets_on else 1)
    async with (
        opened(lambda: PostgreSQLStorage(patient)) as one,
        opened(lambda: PostgreSQLStorage(PostgreSQLOptions(dsn, pool_min=1))) as other,
    ):
        _AlwaysFirst(other, losses, monkeypatch)
        if gets_on:
            assert not (await one.save(lone("m", "second"))).created
        else:
            with pytest.raises(UnavailableError, match="conflicted with other writes; try again"):
                await one.save(lone("m", "second"))
        assert (await one.get("m")).content == ("second" if gets_on else "first")


async def test_opposite_bulk_orders_do_not_deadlock(
    servers: list[PostgreSQLStorage],
) -> None:
    for turn in range(5):
        drafts = [draft(f"m-{number}", f"turn {turn}") for number in range(200)]
        results = await asyncio.gather(
            servers[0].bulk_save(drafts, OnConflict.REPLACE),
            servers[1].bulk_save(drafts[::-1], OnConflict.REPLACE),
            servers[2].bulk_save(drafts[100:] + drafts[:100], OnConflict.SKIP),
        )
        assert all(sum(result) == 200 for result in results)


async def test_export_and_paging_during_concurrent_writes(servers: list[PostgreSQLStorage]) -> None:
    old = [draft(f"old-{number:04}", timestamp=NOW + number) for number in range(600)]
    await save_all(servers[0], old)
    stop = asyncio.Event()

    async def write(server: PostgreSQLStorage, name: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            key = f"{name}-{number % 400:04}"
            await server.save(draft(key, str(number), timestamp=NOW + number))
            if number % 3 == 0:
                await server.delete(key)

    writers = [asyncio.create_task(write(server, f"new-{at}")) for at, server in enumerate(servers)]
    try:
        for _ in range(3):
            exported = await _exported(servers[1])
            listed = await _listed(servers[2])
            for ids in (exported, listed):
                assert len(set(ids)) == len(ids)
                assert {one.id for one in old} <= set(ids)
    finally:
        stop.set()
        await asyncio.gather(*writers)


async def _exported(server: PostgreSQLStorage) -> list[str]:
    ids: list[str] = []
    after, upto = 0, await server.last_sequence()
    while True:
        page = await server.scan_sequences(after, upto, 70)
        ids += [message.id for message in page.messages]
        if not page.more:
            return ids
        after = page.messages[-1].sequence


async def _listed(server: PostgreSQLStorage, prefix: str = "old-") -> list[str]:
    ids: list[str] = []
    scan = Scan(False, 70)
    while True:
        page = await server.list_session("s-1", scan)
        ids += [message.id for message in page.messages if message.id.startswith(prefix)]
        if not page.more:
            return ids
        scan = scan._replace(after=page.messages[-1].position)


async def test_sixteen_writers_append_to_the_same_sessions(
    servers: list[PostgreSQLStorage],
) -> None:
    """Guards lose no turn, counts are exact, and turns do not interleave, across servers."""
    turns, names = 10, [f"s-{number}" for number in range(5)]
    won: dict[str, list[str]] = {name: [] for name in names}

    async def write(number: int) -> None:
        server, chance = servers[number % 2], random.Random(number)
        for turn in range(turns):
            name = chance.choice(names)
            ids = [f"w{number}-{turn}-{at}" for at in range(3)]
            messages = [draft(one, session_id=name, timestamp=NOW) for one in ids]
            while True:
                try:
                    guard = (await server.get_session(name)).revision
                except SessionNotFoundError:
                    guard = 0
                try:
                    result = await server.append(name, messages, guard)
                except (SessionRevisionMismatchError, SessionExistsError):
                    continue
                sequences = [one.sequence for one in result.saved]
                assert sequences == list(range(sequences[0], sequences[0] + 3))
                won[name] += ids
                break

    await asyncio.gather(*(write(number) for number in range(16)))
    for name in names:
        listed: list[str] = []
        scan = Scan(False, 100)
        while True:
            page = await servers[2].list_session(name, scan)
            listed += [one.id for one in page.messages]
            if not page.more:
                break
            scan = scan._replace(after=page.messages[-1].position)
        assert sorted(listed) == sorted(won[name])
        assert listed == [f"{one[:-2]}-{at}" for one in listed[::3] for at in range(3)], (
            "a turn was interrupted"
        )
        found = await servers[2].get_session(name)
        assert found.message_count == len(listed)
        assert found.last_sequence == (await servers[2].get(listed[-1])).sequence


async def test_one_session_changes_on_all_servers_at_once(servers: list[PostgreSQLStorage]) -> None:
    """Saves, moves, deletions and titles of one session: its values follow from its messages."""

    async def change(number: int) -> None:
        server, chance = servers[number % 3], random.Random(number)
        for turn in range(25):
            name, session_id = f"m-{chance.randrange(12)}", chance.choice(("s", "t"))
            with contextlib.suppress(NotFoundError):
                match chance.randrange(4):
                    case 0:
                        await server.delete(name)
                    case 1:
                        await server.update_session(session_id, title=f"{number}-{turn}")
                    case _:
                        provider = chance.choice(("openai", "google"))
                        moment = NOW + chance.randrange(5)
                        message = draft(name, f"{number}-{turn}", session_id=session_id)
                        await server.save(message._replace(provider=provider, timestamp=moment))

    await asyncio.gather(*(change(number) for number in range(9)))
    for session_id in ("s", "t"):
        session = await servers[0].get_session(session_id)
        page = await servers[1].list_session(session_id, Scan(False, 100))
        messages = page.messages
        assert session.message_count == len(messages)
        assert dict(session.providers) == Counter(one.provider for one in messages)
        if messages:
            assert (session.first_time, session.last_time) == (
                messages[0].timestamp,
                messages[-1].timestamp,
            )
            assert session.first_message == messages[0].content
            assert session.last_sequence == max(one.sequence for one in messages)
