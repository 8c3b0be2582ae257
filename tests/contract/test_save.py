from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import (
    AlreadyExistsError,
    NotFoundError,
    RevisionMismatchError,
)
from sagastore_server.storage.model import Message, NewMessage, SaveResult, Store
from sagastore_server.storage.validation import MAX_TIMESTAMP, MIN_TIMESTAMP
from tests.support.backends import Place
from tests.support.drafts import NOW, draft

FULL = NewMessage(
    id="id-ü-😀",
    provider="openai",
    role="assistant",
    content="Line one\r\nLine two\ttabbed \x01\x7f\u2028 'quoted' \"double\" 😀 \U0010ffff",
    tags=("a", "b b", "ü", "😀", "a", '"', "\\", "[x]"),
    timestamp=NOW + 123_456,
    metadata='{"a": [1, 2.50, {"b": null}], "bb": true, "é": "😀\\n"}',
    session_id="session",
)


async def test_saved_message_is_returned_unchanged(backend: StorageBackend) -> None:
    before = time.time_ns() // 1000
    result = await backend.save(FULL)
    after = time.time_ns() // 1000
    stored = await backend.get(FULL.id)
    assert stored == Message(*FULL[:8], stored.created_at, result.revision, stored.sequence)  # type: ignore[arg-type]
    assert stored.created_at is not None
    assert before <= stored.created_at <= after
    assert isinstance(stored.tags, tuple)


async def test_first_save_creates_message(backend: StorageBackend, place: Place) -> None:
    result = await backend.save(draft("m-1"))
    assert result == SaveResult("m-1", result.revision, True, result.durable_on)
    assert result.revision > 0


async def test_save_reports_durable_on(backend: StorageBackend, place: Place) -> None:
    for step in (draft(), draft(), draft(content="another")):
        result = await backend.save(step)
        assert sorted(result.durable_on, key=_name) == sorted(place.kind.durable_on, key=_name)


def _name(store: Store) -> str:
    return store.value


@pytest.mark.parametrize(
    "extreme",
    [
        draft("x", timestamp=MIN_TIMESTAMP),
        draft("x", timestamp=MAX_TIMESTAMP),
        draft("x", timestamp=-1),
        draft("x", timestamp=0),
        draft("x" * 128),
        draft("\U0010ffff" * 128, provider="p" * 64, role="r" * 32),
        draft("x", "word " * 20_000),
        draft("x", "\U0001f600" * 1_000_000),
        draft("x", ""),
        draft("x", " \n\u2003"),
        draft("x", tags=["\U0001f600" * 256] * 512),
        draft("x", session_id=""),
        draft("x", session_id="\U0001f600" * 256),
        draft("x", session_id=None),
        draft("x", metadata='{"k": "' + "v" * 1_048_500 + '"}'),
        draft("x", metadata='{"n": ' + "9" * 131_072 + "}"),
        draft("'; DROP TABLE messages; --", "'; DROP TABLE messages; --"),
    ],
    ids=itertools.count(),
)
async def test_largest_message_is_stored(backend: StorageBackend, extreme: NewMessage) -> None:
    await backend.save(extreme)
    assert (await backend.get(extreme.id))[:8] == tuple(extreme[:8])


async def test_identical_save_keeps_revision(backend: StorageBackend) -> None:
    first = await backend.save(FULL)
    stored = await backend.get(FULL.id)
    again = await backend.save(FULL)
    assert again == first._replace(created=False)
    assert await backend.get(FULL.id) == stored


@pytest.mark.parametrize(
    "change",
    [
        {"provider": "google"},
        {"role": "system"},
        {"content": "The quick brown fox "},
        {"tags": ("b", "a")},
        {"tags": ()},
        {"timestamp": NOW + 1},
        {"metadata": '{"n": 1.0}'},
        {"session_id": None},
        {"session_id": ""},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_changed_field_replaces_message(
    backend: StorageBackend, change: dict[str, object]
) -> None:
    original = draft(tags=("a", "b"), metadata='{"n": 1}')
    first = await backend.save(original)
    before = await backend.get(original.id)
    changed = original._replace(**change)  # type: ignore[arg-type]
    second = await backend.save(changed)
    assert second.revision > first.revision
    assert not second.created
    stored = await backend.get(original.id)
    kept = (before.created_at, second.revision, before.sequence)
    assert stored == Message(*changed[:8], *kept)  # type: ignore[arg-type]


async def test_created_at_stays_until_the_id_is_deleted(backend: StorageBackend) -> None:
    await backend.save(draft())
    first = (await backend.get("m-1")).created_at
    await backend.save(draft(content="other"))
    assert (await backend.get("m-1")).created_at == first
    await backend.delete("m-1")
    before = time.time_ns() // 1000
    result = await backend.save(draft())
    assert result.created
    later = (await backend.get("m-1")).created_at
    assert later is not None
    assert later >= before


async def test_revisions_increase_across_deletes(backend: StorageBackend) -> None:
    seen = []
    for content in ("one", "two", "one", "one"):
        seen.append((await backend.save(draft(content=content))).revision)
        if content == "one":
            await backend.delete("m-1")
    assert seen == sorted(set(seen))


async def test_missing_timestamp_of_new_message_is_now(backend: StorageBackend) -> None:
    before = time.time_ns() // 1000
    await backend.save(draft(timestamp=None))
    after = time.time_ns() // 1000
    assert before <= (await backend.get("m-1")).timestamp <= after


async def test_missing_timestamp_keeps_stored_one(backend: StorageBackend) -> None:
    first = await backend.save(draft())
    same = await backend.save(draft(timestamp=None))
    assert same == first._replace(created=False)
    await backend.save(draft(content="other", timestamp=None))
    assert (await backend.get("m-1")).timestamp == NOW
    await backend.delete("m-1")
    await backend.save(draft(timestamp=None))
    assert (await backend.get("m-1")).timestamp > NOW


async def test_if_revision_zero_requires_new_message(backend: StorageBackend) -> None:
    first = await backend.save(draft(), if_revision=0)
    assert first.created
    for attempt in (draft(), draft(content="other")):
        with pytest.raises(AlreadyExistsError) as caught:
            await backend.save(attempt, if_revision=0)
        assert (caught.value.message_id, caught.value.revision) == ("m-1", first.revision)
    assert (await backend.get("m-1")).content == draft().content
    await backend.delete("m-1")
    assert (await backend.save(draft(), if_revision=0)).created


async def test_if_revision_must_match_stored_revision(backend: StorageBackend) -> None:
    first = await backend.save(draft())
    second = await backend.save(draft(content="two"), if_revision=first.revision)
    assert second.revision > first.revision
    for stale in (first.revision, second.revision + 1, 2**62):
        with pytest.raises(RevisionMismatchError) as caught:
            await backend.save(draft(content="three"), if_revision=stale)
        error = caught.value
        assert (error.message_id, error.expected, error.stored) == ("m-1", stale, second.revision)
    stored = await backend.get("m-1")
    assert (stored.content, stored.revision) == ("two", second.revision)


async def test_if_revision_is_checked_for_unchanged_message(
    backend: StorageBackend,
) -> None:
    first = await backend.save(draft())
    await backend.save(draft(content="two"))
    with pytest.raises(RevisionMismatchError):
        await backend.save(draft(content="two"), if_revision=first.revision)


async def test_if_revision_without_change_returns_revision(backend: StorageBackend) -> None:
    first = await backend.save(draft())
    again = await backend.save(draft(), if_revision=first.revision)
    assert again == first._replace(created=False)


async def test_if_revision_for_missing_message_is_refused(backend: StorageBackend) -> None:
    for _ in range(2):
        with pytest.raises(RevisionMismatchError) as caught:
            await backend.save(draft(), if_revision=1)
        assert caught.value.stored is None
        with pytest.raises(NotFoundError):
            await backend.get("m-1")
        revision = (await backend.save(draft())).revision
        await backend.delete("m-1", if_revision=revision)


async def test_concurrent_saves_of_one_id_are_serialized(
    backend: StorageBackend,
) -> None:
    drafts = [draft(content=f"version {number}") for number in range(50)]
    results = await asyncio.gather(*map(backend.save, drafts))
    assert [result.created for result in results].count(True) == 1
    revisions = [result.revision for result in results]
    assert len(set(revisions)) == len(revisions)
    stored = await backend.get("m-1")
    assert stored.revision == max(revisions)
    assert stored.content == drafts[revisions.index(stored.revision)].content


async def test_one_concurrent_guarded_save_wins(backend: StorageBackend) -> None:
    revision = (await backend.save(draft())).revision
    drafts = [draft(content=f"version {number}") for number in range(20)]
    results = await asyncio.gather(
        *(backend.save(attempt, revision) for attempt in drafts), return_exceptions=True
    )
    won = [at for at, result in enumerate(results) if isinstance(result, SaveResult)]
    lost = [result for result in results if isinstance(result, RevisionMismatchError)]
    assert (len(won), len(lost)) == (1, 19)
    assert (await backend.get("m-1")).content == drafts[won[0]].content


async def test_one_concurrent_first_save_wins(backend: StorageBackend) -> None:
    results = await asyncio.gather(
        *(backend.save(draft(content=str(number)), 0) for number in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, SaveResult) for result in results) == 1
    assert sum(isinstance(result, AlreadyExistsError) for result in results) == 19


async def test_refused_write_does_not_affect_others(backend: StorageBackend) -> None:
    await backend.save(draft("taken"))
    writes = [
        backend.save(draft("taken", "other"), 0)
        if number % 10 == 5
        else backend.save(draft(f"n-{number:02}"))
        for number in range(50)
    ]
    writes.append(backend.delete("missing"))  # type: ignore[arg-type]
    results = await asyncio.gather(*writes, return_exceptions=True)
    refused = [type(result) for result in results if isinstance(result, Exception)]
    assert refused == [AlreadyExistsError] * 5 + [NotFoundError]
    good = [f"n-{number:02}" for number in range(50) if number % 10 != 5]
    assert sorted(await backend.batch_get(good)) == good
    assert (await backend.get("taken")).content == draft().content


async def test_save_is_visible_to_later_reads(backend: StorageBackend) -> None:
    async def client(name: str) -> None:
        for step in range(10):
            result = await backend.save(draft(name, f"step {step}"))
            assert (await backend.get(name)).revision == result.revision
        await backend.delete(name)
        with pytest.raises(NotFoundError):
            await backend.get(name)

    await asyncio.gather(*(client(f"client-{number}") for number in range(10)))
