"""Order of a conversation: by timestamp, then by sequence, the order of first storage."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from sagastore_server.search.parser import parse_query
from sagastore_server.storage.base import PreparedTerms, StorageBackend
from sagastore_server.storage.errors import NotFoundError
from sagastore_server.storage.model import BulkResult, Message, NewMessage, OnConflict, Page
from sagastore_server.storage.query import Criteria, Scan
from tests.support.backends import Place, opened
from tests.support.drafts import NOW, draft, found, save_all, walk

SHUFFLED = [f"m-{number:03}" for number in random.Random(5).sample(range(1000), 24)]
"""Neither ascending nor descending."""

REPLACE, SKIP = OnConflict.REPLACE, OnConflict.SKIP


async def _messages(backend: StorageBackend, *, newest_first: bool = False) -> list[Message]:
    """Return session ``s-1``, in pages that end between messages with equal timestamps."""
    messages: list[Message] = []
    scan = Scan(newest_first, 5)
    while True:
        page = await backend.list_session("s-1", scan)
        messages += page.messages
        if not page.more:
            return messages
        scan = scan._replace(after=messages[-1].position)


async def _ids(backend: StorageBackend) -> list[str]:
    return [message.id for message in await _messages(backend)]


async def _sequence(backend: StorageBackend, message_id: str) -> int:
    return (await backend.get(message_id)).sequence


async def _assert_order(backend: StorageBackend, expected: Sequence[str]) -> None:
    """Check List and Search in both directions, and that the sequences grow."""
    messages = await _messages(backend)
    assert [message.id for message in messages] == list(expected)
    sequences = [message.sequence for message in messages]
    assert sequences == sorted(set(sequences))
    assert sequences[0] > 0
    assert await _messages(backend, newest_first=True) == messages[::-1]
    for criteria in (
        Criteria(),
        Criteria(session_id="s-1"),
        Criteria(parse_query("fox")),
        Criteria(parse_query("fox"), role="user"),
        Criteria(parse_query("-zebra"), tags=("t",)),
    ):
        for newest_first in (False, True):
            pages = await walk(backend, criteria, newest_first=newest_first, limit=7)
            searched = [message for page in pages for message in page.messages]
            assert searched == (messages[::-1] if newest_first else messages)


def _said(*ids: str) -> list[NewMessage]:
    """Return messages with equal timestamps."""
    return [draft(one, f"the fox of {one}", tags=("t",)) for one in ids]


async def test_single_saves_of_equal_times_keep_order_of_writing(backend: StorageBackend) -> None:
    for one in _said(*SHUFFLED):
        await backend.save(one)
    await _assert_order(backend, SHUFFLED)


async def test_batch_of_equal_times_keeps_its_order(backend: StorageBackend) -> None:
    await backend.bulk_save(_said(*SHUFFLED), REPLACE)
    await _assert_order(backend, SHUFFLED)


async def test_large_batch_keeps_its_order(backend: StorageBackend) -> None:
    ids = [f"m-{number:04}" for number in random.Random(6).sample(range(5000), 1000)]
    await backend.bulk_save(_said(*ids), REPLACE)
    assert await _ids(backend) == ids


async def test_batch_with_known_ids_places_only_new_ones(backend: StorageBackend) -> None:
    await backend.bulk_save(_said("c", "a"), REPLACE)
    changed = draft("a", "another fox", tags=("t",))
    await backend.bulk_save([*_said("z"), changed, *_said("b", "c")], REPLACE)
    await _assert_order(backend, ["c", "a", "z", "b"])
    await backend.bulk_save(_said("y", "b", "x"), SKIP)
    await _assert_order(backend, ["c", "a", "z", "b", "y", "x"])


async def test_repeated_id_in_a_batch_has_the_place_of_its_first(backend: StorageBackend) -> None:
    batch = [*_said("b"), *_said("a"), draft("b", "the last fox", tags=("t",)), *_said("0")]
    assert await backend.bulk_save(batch, REPLACE) == BulkResult(3, 0, 1)
    await _assert_order(backend, ["b", "a", "0"])
    assert (await backend.get("b")).content == "the last fox"


async def test_calls_of_every_kind_share_one_order(backend: StorageBackend) -> None:
    await backend.save(_said("d")[0])
    await backend.bulk_save(_said("c", "z"), REPLACE)
    await backend.save(_said("b")[0])
    await backend.bulk_save(_said("a"), SKIP)
    await _assert_order(backend, ["d", "c", "z", "b", "a"])


async def test_time_comes_before_sequence(backend: StorageBackend) -> None:
    times = [NOW + 2, NOW, NOW + 1, NOW, NOW + 2, -1]
    for at, moment in enumerate(times):
        await backend.save(draft(f"m-{at}", "fox", tags=("t",), timestamp=moment))
    messages = await _messages(backend)
    assert [one.id for one in messages] == ["m-5", "m-1", "m-3", "m-2", "m-0", "m-4"]
    by_sequence = sorted(messages, key=lambda one: one.sequence)
    assert [one.id for one in by_sequence] == [f"m-{at}" for at in range(6)]


@pytest.mark.parametrize("in_a_batch", [False, True])
async def test_replaced_message_keeps_place_and_sequence(
    backend: StorageBackend, in_a_batch: bool
) -> None:
    await backend.bulk_save(_said("c", "b", "a"), REPLACE)
    before = await backend.get("c")
    for changed in (
        draft("c", "a second fox", tags=("t",)),
        draft("c", "a second fox", tags=("t",), timestamp=NOW + 5),
        draft("c", "a third fox", tags=("t",), role="user"),
    ):
        if in_a_batch:
            await backend.bulk_save([changed], REPLACE)
        else:
            await backend.save(changed)
    after = await backend.get("c")
    assert after.sequence == before.sequence
    assert after.revision > before.revision
    await _assert_order(backend, ["c", "b", "a"])


async def test_message_deleted_and_saved_again_goes_to_the_end(backend: StorageBackend) -> None:
    await backend.bulk_save(_said("a", "b", "c"), REPLACE)
    last = await backend.last_sequence()
    await backend.delete("a")
    await backend.save(_said("a")[0])
    await backend.delete("b")
    await backend.bulk_save(_said("b"), REPLACE)
    await _assert_order(backend, ["c", "a", "b"])
    assert await _sequence(backend, "a") > last


@pytest.mark.parametrize("in_a_batch", [False, True])
async def test_deleted_and_saved_again_at_once_goes_to_the_end(
    backend: StorageBackend, in_a_batch: bool
) -> None:
    """Both calls, and others, wait for the same group of writes."""
    await backend.bulk_save(_said("a", "b", "c"), REPLACE)
    for turn in range(10):
        last, before = await backend.last_sequence(), await backend.get("a")
        again = [draft("a", f"the fox of turn {turn % 2}", tags=("t",))]
        await asyncio.gather(
            *(backend.save(draft(f"x-{number}", session_id="x")) for number in range(3)),
            backend.delete("a"),
            backend.bulk_save(again, REPLACE) if in_a_batch else backend.save(again[0]),
        )
        try:
            after = await backend.get("a")
        except NotFoundError:
            # Saved, then deleted: the calls are concurrent.
            await backend.save(again[0])
            after = await backend.get("a")
        assert after.sequence > last >= before.sequence
        assert await _ids(backend) == ["b", "c", "a"]
        assert await found(backend, f"turn {turn % 2}") == ["a"]
        assert await found(backend, f"turn {(turn + 1) % 2}") == []


async def test_sequence_grows_from_call_to_call(place: Place) -> None:
    """Also after a deletion of the newest message, and after a restart."""
    last = 0
    for run in range(3):
        async with opened(place.make) as backend:
            for number in range(5):
                key = f"m-{9 - number}-{run}"
                if number % 2:
                    await backend.save(_said(key)[0])
                else:
                    await backend.bulk_save(_said(key), REPLACE)
                sequence = await _sequence(backend, key)
                assert sequence > last
                assert await backend.last_sequence() == sequence
                last = sequence
            await backend.delete(key)
            assert await backend.last_sequence() < last


@pytest.mark.parametrize("timestamp", [NOW, None], ids=["equal times", "no times"])
async def test_batches_started_in_order_keep_it(
    backend: StorageBackend, timestamp: int | None
) -> None:
    """As the batches of one stream, several of which are written at once."""
    batches = [
        [draft(f"{one}-{number}", timestamp=timestamp) for one in SHUFFLED] for number in range(12)
    ]
    indexer = backend.indexer

    async def store(batch: list[NewMessage]) -> None:
        terms = None
        if indexer is not None:
            terms = PreparedTerms(indexer, [indexer(one) for one in batch])
        await backend.bulk_save(batch, REPLACE, terms)

    await asyncio.gather(*map(store, batches))
    assert await _ids(backend) == [one.id for batch in batches for one in batch]


async def test_given_creation_time_is_kept_for_new_ids_only(backend: StorageBackend) -> None:
    await backend.save(draft("old"))
    before = await backend.get("old")
    batch = [one._replace(created_at=NOW - 5) for one in (draft("old"), draft("new"))]
    assert await backend.bulk_save([*batch, draft("none")], REPLACE) == BulkResult(2, 1, 0)
    assert await backend.get("old") == before
    assert (await backend.get("new")).created_at == NOW - 5
    assert ((await backend.get("none")).created_at or 0) > NOW
    changed = draft("new", "changed")._replace(created_at=NOW)
    await backend.bulk_save([changed], REPLACE)
    assert (await backend.get("new")).created_at == NOW - 5
    await backend.delete("old")
    await backend.bulk_save([batch[0]], REPLACE)
    assert (await backend.get("old")).created_at == NOW - 5


async def test_last_sequence_of_empty_store_is_zero(backend: StorageBackend) -> None:
    assert await backend.last_sequence() == 0
    assert await backend.scan_sequences(0, 2**63 - 1, 10) == Page([], False)
    await backend.save(draft())
    await backend.delete("m-1")
    assert await backend.last_sequence() == 0


async def test_scan_by_sequence_respects_range_and_limit(backend: StorageBackend) -> None:
    # The order of the sequences, not that of the times.
    drafts = [draft(key, timestamp=NOW - at) for at, key in enumerate(SHUFFLED)]
    await save_all(backend, drafts)
    stored = await backend.batch_get(SHUFFLED)
    messages = [stored[key] for key in SHUFFLED]
    upto = messages[-1].sequence
    assert await backend.scan_sequences(0, upto, 100) == Page(messages, False)
    assert await backend.scan_sequences(0, upto, 24) == Page(messages, False)
    assert await backend.scan_sequences(0, upto, 23) == Page(messages[:23], True)
    after, end = messages[3].sequence, messages[9].sequence
    assert await backend.scan_sequences(after, end, 100) == Page(messages[4:10], False)
    assert await backend.scan_sequences(after, after, 100) == Page([], False)
    assert await backend.scan_sequences(upto, 2**63 - 1, 100) == Page([], False)


async def test_scan_by_sequence_returns_each_message_once_during_writes(
    backend: StorageBackend,
) -> None:
    """Others are saved, replaced, deleted and saved again meanwhile."""
    old = [draft(f"old-{one}") for one in SHUFFLED]
    await save_all(backend, [*old, *(draft(f"moving-{at}") for at in range(6))])
    stop = asyncio.Event()

    async def write(name: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            await backend.save(draft(f"new-{name}-{number}"))
            await backend.save(draft(old[number % len(old)].id, f"{name} {number}"))
            moving = draft(f"moving-{number % 3 * 2 + (name == 'b')}", str(number))
            await backend.delete(moving.id)
            await backend.bulk_save([moving], REPLACE)

    writers = [asyncio.create_task(write(name)) for name in "ab"]
    try:
        for _ in range(5):
            seen = await _scanned(backend)
            assert [one for one in seen if one.startswith("old-")] == [one.id for one in old]
            assert len(set(seen)) == len(seen)
    finally:
        stop.set()
        await asyncio.gather(*writers)


async def _scanned(backend: StorageBackend) -> list[str]:
    """Scan as an export does, and return the ids."""
    ids: list[str] = []
    after, upto = 0, await backend.last_sequence()
    while True:
        page = await backend.scan_sequences(after, upto, 5)
        ids += [message.id for message in page.messages]
        if not page.more:
            return ids
        assert [one.sequence for one in page.messages] == sorted(
            one.sequence for one in page.messages
        )
        after = page.messages[-1].sequence
