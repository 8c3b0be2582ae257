from __future__ import annotations

import asyncio

import pytest

from sagastore_server.storage.base import PreparedTerms, StorageBackend
from sagastore_server.storage.model import BulkResult, Message, OnConflict
from sagastore_server.storage.query import Criteria
from tests.support.drafts import NOW, draft, found

REPLACE, SKIP = OnConflict.REPLACE, OnConflict.SKIP


async def test_new_messages_are_saved(backend: StorageBackend) -> None:
    drafts = [draft(f"m-{number:04}", f"text {number}") for number in range(1000)]
    assert await backend.bulk_save(drafts, REPLACE) == BulkResult(1000, 0, 0)
    stored = await backend.batch_get([one.id for one in drafts])
    assert [tuple(stored[one.id][:8]) for one in drafts] == [tuple(one[:8]) for one in drafts]
    revisions = [stored[one.id].revision for one in drafts]
    assert all(revision > 0 for revision in revisions)
    assert all(stored[one.id].created_at is not None for one in drafts)


async def test_empty_batch_saves_nothing(backend: StorageBackend) -> None:
    assert await backend.bulk_save([], REPLACE) == BulkResult(0, 0, 0)
    assert await backend.bulk_save([], SKIP) == BulkResult(0, 0, 0)


async def test_identical_batch_changes_nothing(backend: StorageBackend) -> None:
    drafts = [draft(f"m-{number}", timestamp=None) for number in range(20)]
    await backend.bulk_save(drafts, REPLACE)
    before = await backend.batch_get([one.id for one in drafts])
    assert await backend.bulk_save(drafts, REPLACE) == BulkResult(0, 20, 0)
    assert await backend.bulk_save(drafts, SKIP) == BulkResult(0, 0, 20)
    assert await backend.batch_get([one.id for one in drafts]) == before


async def test_replace_updates_existing_messages(backend: StorageBackend) -> None:
    before = [await _saved(backend, name) for name in ("same", "changed")]
    drafts = [draft("same"), draft("changed", "other"), draft("new")]
    assert await backend.bulk_save(drafts, REPLACE) == BulkResult(2, 1, 0)
    after = await backend.batch_get(["same", "changed", "new"])
    assert after["same"] == before[0]
    assert after["changed"].content == "other"
    assert after["changed"].revision > before[1].revision
    assert after["changed"].created_at == before[1].created_at


async def test_skip_keeps_existing_messages(backend: StorageBackend) -> None:
    before = [await _saved(backend, name) for name in ("same", "changed")]
    drafts = [draft("same"), draft("changed", "other"), draft("new")]
    assert await backend.bulk_save(drafts, SKIP) == BulkResult(1, 0, 2)
    after = await backend.batch_get(["same", "changed", "new"])
    assert [after["same"], after["changed"]] == before
    assert tuple(after["new"][:8]) == tuple(draft("new")[:8])


async def _saved(backend: StorageBackend, name: str) -> Message:
    await backend.save(draft(name))
    return await backend.get(name)


@pytest.mark.parametrize("on_conflict", OnConflict)
async def test_last_duplicate_wins(backend: StorageBackend, on_conflict: OnConflict) -> None:
    drafts = [draft("a", "a1"), draft("b", "b1"), draft("a", "a2"), draft("a", "a3")]
    result = await backend.bulk_save(drafts, on_conflict)
    assert result == BulkResult(2, 0, 2)
    assert (await backend.get("a")).content == "a3"
    assert (await backend.get("b")).content == "b1"


async def test_last_duplicate_equal_to_stored_changes_nothing(backend: StorageBackend) -> None:
    before = await _saved(backend, "a")
    drafts = [draft("a", "first"), draft("a")]
    assert await backend.bulk_save(drafts, REPLACE) == BulkResult(0, 1, 1)
    assert await backend.get("a") == before


async def test_missing_timestamps_keep_stored_ones(backend: StorageBackend) -> None:
    await backend.save(draft("a"))
    drafts = [draft("a", "other", timestamp=None), draft("b", timestamp=None)]
    assert await backend.bulk_save(drafts, REPLACE) == BulkResult(2, 0, 0)
    assert (await backend.get("a")).timestamp == NOW
    assert (await backend.get("b")).timestamp > NOW


async def test_deleted_id_is_new_again(backend: StorageBackend) -> None:
    before = await _saved(backend, "a")
    await backend.delete("a")
    assert await backend.bulk_save([draft("a")], SKIP) == BulkResult(1, 0, 0)
    assert (await backend.get("a")).revision > before.revision


async def test_batch_with_unusual_ids(backend: StorageBackend) -> None:
    ids = ["ü", "u\u0308", "😀", "\uffee", "a'b", 'a"b', "a\\b", "[]", "null", "1", "1.0", " "]
    drafts = [draft(name, f"text of {number}") for number, name in enumerate(ids)]
    assert await backend.bulk_save(drafts, REPLACE) == BulkResult(len(ids), 0, 0)
    stored = await backend.batch_get(ids)
    assert [tuple(stored[name][:8]) for name in ids] == [tuple(one[:8]) for one in drafts]


async def test_concurrent_overlapping_batches_are_atomic(backend: StorageBackend) -> None:
    """Each batch is atomic: no mixture of two remains."""
    batches = [
        [draft(f"m-{number}", f"batch {batch}") for number in range(50)] for batch in range(8)
    ]
    results = await asyncio.gather(*(backend.bulk_save(batch, REPLACE) for batch in batches))
    assert all(sum(result) == 50 for result in results)
    stored = await backend.batch_get([f"m-{number}" for number in range(50)])
    assert len({message.content for message in stored.values()}) == 1


async def test_reader_never_sees_partial_batch(backend: StorageBackend) -> None:
    ids = [f"m-{number}" for number in range(100)]
    await backend.bulk_save([draft(name, "version 0") for name in ids], REPLACE)

    async def write() -> None:
        for version in range(1, 10):
            await backend.bulk_save([draft(name, f"version {version}") for name in ids], REPLACE)

    writing = asyncio.create_task(write())
    while not writing.done():
        seen = {message.content for message in (await backend.batch_get(ids)).values()}
        assert len(seen) == 1
        await asyncio.sleep(0)
    await writing


async def test_batch_and_single_writes_run_concurrently(backend: StorageBackend) -> None:
    ids = [f"m-{number}" for number in range(20)]
    batch = asyncio.create_task(backend.bulk_save([draft(name, "bulk") for name in ids], REPLACE))
    saves = await asyncio.gather(*(backend.save(draft(name, "single")) for name in ids))
    bulk = await batch
    assert bulk.saved + bulk.unchanged + bulk.skipped == 20
    stored = await backend.batch_get(ids)
    assert {message.content for message in stored.values()} <= {"bulk", "single"}
    for result in saves:
        assert stored[result.id].revision >= result.revision


async def test_cancelled_batch_is_atomic(backend: StorageBackend) -> None:
    for turns in range(12):
        ids = [f"{turns}-{number}" for number in range(50)]
        drafts = [draft(name) for name in ids]
        task = asyncio.create_task(backend.bulk_save(drafts, REPLACE))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        stored = await backend.batch_get(ids)
        assert len(stored) in {0, 50}
        result = await backend.bulk_save(drafts, REPLACE)
        assert result.saved + result.unchanged == 50
        assert len(await backend.batch_get(ids)) == 50


async def _check_found(backend: StorageBackend) -> None:
    assert await found(backend, "running") == ["t-1", "t-2"]
    assert await found(backend, '"wolves running"') == ["t-1"]
    assert await found(backend, Criteria(tags=("a",))) == ["t-1"]
    assert await found(backend, Criteria(metadata='{"n": 1}')) == ["t-2"]
    assert await found(backend, "nonsense") == []


WITH_TERMS = [
    draft("t-1", "Wolves running", tags=("a",), timestamp=NOW),
    draft("t-2", "she runs, 東京", metadata='{"n": 1}', timestamp=NOW + 1),
]


async def test_prepared_terms_are_used(backend: StorageBackend) -> None:
    indexer = backend.indexer
    terms = None if indexer is None else PreparedTerms(indexer, list(map(indexer, WITH_TERMS)))
    assert await backend.bulk_save(WITH_TERMS, REPLACE, terms) == (2, 0, 0)
    await _check_found(backend)


async def test_terms_of_other_store_are_ignored(backend: StorageBackend) -> None:
    """The phase may change between preparing and saving."""
    terms = PreparedTerms(lambda one: one, [("nonsense", "nonsense", "nonsense")] * 2)
    assert await backend.bulk_save(WITH_TERMS, REPLACE, terms) == (2, 0, 0)
    await _check_found(backend)


async def test_terms_match_last_duplicate(backend: StorageBackend) -> None:
    """The last duplicate of an id wins, and so do its terms."""
    twice = [draft("t-1", "first words"), draft("t-1", "last words")]
    indexer = backend.indexer
    terms = None if indexer is None else PreparedTerms(indexer, list(map(indexer, twice)))
    await backend.bulk_save(twice, REPLACE, terms)
    assert (await found(backend, "last"), await found(backend, "first")) == (["t-1"], [])
