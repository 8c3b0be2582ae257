from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from sagastore_server.search.parser import parse_query
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import NotFoundError, UnavailableError
from sagastore_server.storage.model import Message, OnConflict
from sagastore_server.storage.query import Criteria, Scan
from tests.support.backends import Place, opened
from tests.support.drafts import NOW, draft, found, save_all

CALLS: dict[str, Callable[[StorageBackend], Awaitable[object]]] = {
    "save": lambda backend: backend.save(draft()),
    "bulk_save": lambda backend: backend.bulk_save([draft()], OnConflict.REPLACE),
    "delete": lambda backend: backend.delete("m-1"),
    "get": lambda backend: backend.get("m-1"),
    "batch_get": lambda backend: backend.batch_get(["m-1"]),
    "list_session": lambda backend: backend.list_session("s-1", Scan(False, 10)),
    "search": lambda backend: backend.search(Criteria(parse_query("fox")), Scan(False, 10)),
    "scan_ids": lambda backend: backend.scan_ids("", "z", 10),
    "last_id": lambda backend: backend.last_id(),
    "scan_sequences": lambda backend: backend.scan_sequences(0, 100, 10),
    "last_sequence": lambda backend: backend.last_sequence(),
    "quarantine": lambda backend: backend.quarantine(0, 10),
    "quarantine_count": lambda backend: backend.quarantine_count(),
}


async def test_closed_store_is_unavailable(place: Place, subtests: pytest.Subtests) -> None:
    async with opened(place.make) as backend:
        await backend.save(draft())
    for name, call in CALLS.items():
        with subtests.test(call=name), pytest.raises(UnavailableError):
            await call(backend)
    health = await backend.health()
    assert not health.healthy
    assert health.detail


async def test_close_is_idempotent(place: Place) -> None:
    backend = place.make()
    await backend.close()
    backend = place.make()
    await backend.open()
    await backend.close()
    await backend.close()


async def test_close_finishes_calls_in_progress(place: Place) -> None:
    """Each call that races with ``close`` succeeds or fails with a retryable error."""
    backend = place.make()
    await backend.open()
    await backend.save(draft())
    ids = [f"n-{number}" for number in range(100)]
    writes = [asyncio.create_task(backend.save(draft(one))) for one in ids]
    reads = [
        asyncio.ensure_future(CALLS[name](backend))
        for name in ("get", "search", "list_session", "batch_get", "scan_ids", "last_id")
        for _ in range(20)
    ]
    await asyncio.sleep(0)
    await backend.close()
    results = await asyncio.gather(*writes, *reads, return_exceptions=True)
    strange = [
        result
        for result in results
        if isinstance(result, BaseException) and not isinstance(result, UnavailableError)
    ]
    assert strange == []
    acknowledged = {
        one for one, result in zip(ids, results, strict=False) if isinstance(result, tuple)
    }
    async with opened(place.make) as backend:
        assert acknowledged <= set(await backend.batch_get(ids))


async def _everything(backend: StorageBackend) -> dict[str, Message]:
    page = await backend.scan_ids("", "\U0010ffff", 1000)
    assert not page.more
    return {message.id: message for message in page.messages}


async def test_data_survives_reopening(place: Place) -> None:
    async with opened(place.make) as backend:
        await save_all(
            backend,
            [
                draft("a", "first text", tags=("t",), metadata='{"k": 1}'),
                draft("b", "second text", session_id=None, timestamp=-1),
                draft("c", "third text", session_id=""),
                draft("\U0001f600", "Ünï", timestamp=NOW + 1),
            ],
        )
        await backend.save(draft("b", "second again", session_id=None))
        await backend.delete("c")
        before = await _everything(backend)
    for _ in range(2):
        async with opened(place.make) as backend:
            assert await _everything(backend) == before
            assert await found(backend, "text") == ["a"]
            assert await found(backend, "uni") == ["\U0001f600"]
            assert await found(backend, Criteria(tags=("t",), metadata='{"k": 1.0}')) == ["a"]
            assert (await backend.list_session("", Scan(False, 10))).messages == []
            assert await backend.last_id() == "\U0001f600"
            with pytest.raises(NotFoundError):
                await backend.get("c")
            again = await backend.bulk_save(
                [draft("b", "second again", session_id=None)], OnConflict.REPLACE
            )
            assert again == (0, 1, 0)


async def test_highest_revision_is_not_reused_after_delete(place: Place) -> None:
    async with opened(place.make) as backend:
        await backend.save(draft("a"))
        second = await backend.save(draft("b"))
        await backend.delete("b")
    async with opened(place.make) as backend:
        third = await backend.save(draft("b"))
        assert third.revision > second.revision
        await backend.delete("b")
    async with opened(place.make) as backend:
        assert (await backend.save(draft("b"))).revision > third.revision


async def test_created_at_survives_reopening(place: Place) -> None:
    async with opened(place.make) as backend:
        await backend.save(draft("a"))
        before = await backend.get("a")
    async with opened(place.make) as backend:
        await backend.save(draft("a", "other"))
        after = await backend.get("a")
    assert after.created_at == before.created_at
    assert after.revision > before.revision


async def test_cancelled_save_is_atomic(backend: StorageBackend) -> None:
    chance = random.Random(7)
    for turn in range(20):
        drafts = [draft(f"{turn}-{number}", f"word{turn} text") for number in range(20)]
        tasks = [asyncio.create_task(backend.save(one)) for one in drafts]
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        cancelled = chance.sample(tasks, 10)
        for task in cancelled:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        acknowledged = {
            one.id for one, result in zip(drafts, results, strict=True) if isinstance(result, tuple)
        }
        assert len(acknowledged) >= 10
        # A write behind them in the queue: what was cancelled is decided by then.
        await backend.save(draft("last", str(turn)))
        stored = await backend.batch_get([one.id for one in drafts])
        assert acknowledged <= set(stored)
        assert all(stored[one.id][:8] == one[:8] for one in drafts if one.id in stored)
        in_order = sorted(stored, key=lambda key: stored[key].sequence)
        assert await found(backend, f"word{turn}") == in_order
        again = await asyncio.gather(*map(backend.save, drafts))
        assert {result.id for result in again if not result.created} == set(stored)


async def test_cancelled_read_has_no_effect(backend: StorageBackend) -> None:
    await save_all(backend, [draft(f"m-{number}", "many words " * 50) for number in range(300)])
    kept = []  # A task that is still referenced must not keep a reference to what it was reading.
    for turn in range(60):
        calls = [CALLS[name] for name in ("search", "list_session", "batch_get", "scan_ids")]
        tasks = [asyncio.ensure_future(call(backend)) for call in calls]
        for _ in range(turn % 7):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        kept += tasks
    assert len(await found(backend, "words")) == 300
    await asyncio.gather(*(backend.save(draft(f"m-{number}")) for number in range(300)))
    assert len(await found(backend, "fox")) == 300
    assert (await backend.health()).healthy


async def test_last_id_is_greatest_id(backend: StorageBackend) -> None:
    assert await backend.last_id() is None
    for last in ("a", "b", "\uffee", "\U0001f600"):
        await backend.save(draft(last))
        assert await backend.last_id() == last
    await backend.save(draft("A"))
    assert await backend.last_id() == "\U0001f600"
    await backend.delete("\U0001f600")
    assert await backend.last_id() == "\uffee"


async def test_scan_ids_returns_range_in_order(backend: StorageBackend) -> None:
    ids = sorted(
        (f"{name}{n}" for name in ("a", "B", "ü", "\uffee", "\U0001f600") for n in range(4)),
        key=str.encode,
    )
    await save_all(backend, [draft(one, timestamp=NOW - at) for at, one in enumerate(ids)])
    ends = ["", "a", ids[0], ids[3], ids[7], "\uffee", ids[-1], "\U0010ffff"]
    for after in ends:
        for upto in ends:
            expected = [one for one in ids if after.encode() < one.encode() <= upto.encode()]
            for limit in (1, 3, 20, 21):
                page = await backend.scan_ids(after, upto, limit)
                assert [message.id for message in page.messages] == expected[:limit]
                assert page.more is (len(expected) > limit)


async def test_scan_ids_visits_stable_ids_exactly_once(backend: StorageBackend) -> None:
    """Despite concurrent writes and deletions."""
    chance = random.Random(11)
    stay = {f"{number:03}-stay" for number in range(0, 500, 3)}
    go = [f"{number:03}-go" for number in range(1, 500, 3)]
    await save_all(backend, [draft(one) for one in (*stay, *go)])
    upto = await backend.last_id()
    assert upto is not None
    reading = asyncio.Event()

    async def disturb() -> None:
        chance.shuffle(go)
        for step, one in enumerate(go):
            await backend.delete(one)
            await backend.save(draft(f"{chance.randrange(500):03}-new-{step}"))
            await backend.save(draft(chance.choice(sorted(stay)), f"changed {step}"))
            await reading.wait()

    disturbing = asyncio.create_task(disturb())
    seen: list[str] = []
    more = True
    while more:
        page = await backend.scan_ids(seen[-1] if seen else "", upto, 7)
        seen += [message.id for message in page.messages]
        more = page.more
        reading.set()
    disturbing.cancel()
    await asyncio.gather(disturbing, return_exceptions=True)
    assert len(set(seen)) == len(seen)
    assert seen == sorted(seen)
    assert stay <= set(seen)


async def test_concurrent_clients_agree_in_the_end(backend: StorageBackend) -> None:
    """Reads and writes of every kind run concurrently; the final state is consistent."""

    async def client(number: int) -> None:
        chance = random.Random(number)
        mine: dict[str, str] = {}
        for step in range(30):
            key = f"{number}-{chance.randrange(6)}"
            act = chance.randrange(5)
            if act == 0 and key in mine:
                await backend.delete(key)
                del mine[key]
            elif act == 1:
                page = await backend.search(
                    Criteria(parse_query("step"), tags=(f"client-{number}",)), Scan(True, 100)
                )
                assert {one.id: one.content for one in page.messages} == mine
            else:
                mine[key] = f"step {step}"
                await backend.save(
                    draft(key, mine[key], tags=(f"client-{number}",), session_id=str(number))
                )
            page = await backend.list_session(str(number), Scan(False, 100))
            assert {one.id: one.content for one in page.messages} == mine

    await asyncio.gather(*(client(number) for number in range(8)))
