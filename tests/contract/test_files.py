from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import (
    FileRecordExistsError,
    FileRecordNotFoundError,
    FileRevisionMismatchError,
    NotFoundError,
)
from sagastore_server.storage.files import FileScan, NewFile
from tests.support.backends import Place, opened
from tests.support.drafts import NOW, draft


def record(file_id: str = "f-1", **fields: Any) -> NewFile:
    """Return the draft of a file record."""
    values = ("notes.md", "/in/notes.md", "text/markdown", "text", ("a",), 17, NOW, '{"k": 1}')
    return NewFile(file_id, *values)._replace(**fields)


async def listing(backend: StorageBackend, limit: int = 3, *tags: str) -> list[str]:
    """Return the ids of all pages."""
    found: list[str] = []
    scan = FileScan(limit, None, tags)
    while True:
        page = await backend.list_files(scan)
        assert len(page.files) <= limit
        found += [one.id for one in page.files]
        if not page.more:
            return found
        scan = scan._replace(after=page.files[-1].position)


async def test_saved_file_is_read_back(backend: StorageBackend) -> None:
    wanted = record(
        filename="a\u0308 \U0001f600.pdf",
        tags=("b", "a", "b"),
        extracted_text="line\nline '\u4e2d\u6587' \\u0000",
        file_size=2**63 - 1,
        uploaded_at=-62_135_596_800_000_000,
        metadata='{"n": 1.0, "o": {"a": null}}',
    )
    result = await backend.save_file(wanted)
    assert (result.id, result.created) == ("f-1", True)
    found = await backend.get_file("f-1")
    assert found[:9] == wanted
    assert found.revision == result.revision
    assert found.created_at is not None
    assert found.extra == "{}"


async def test_repeated_save_changes_nothing(backend: StorageBackend) -> None:
    first = await backend.save_file(record(uploaded_at=None))
    before = await backend.get_file("f-1")
    again = await backend.save_file(record(uploaded_at=None))
    assert (again.revision, again.created) == (first.revision, False)
    assert await backend.get_file("f-1") == before
    changed = await backend.save_file(record(uploaded_at=None, extracted_text="", tags=()))
    after = await backend.get_file("f-1")
    assert changed.revision > first.revision
    assert (after.extracted_text, after.tags) == ("", ())
    assert (after.uploaded_at, after.created_at) == (before.uploaded_at, before.created_at)


async def test_guards_of_save(backend: StorageBackend) -> None:
    with pytest.raises(FileRevisionMismatchError) as missing:
        await backend.save_file(record(), if_revision=7)
    assert missing.value.stored is None
    first = await backend.save_file(record(), if_revision=0)
    with pytest.raises(FileRecordExistsError) as exists:
        await backend.save_file(record(), if_revision=0)
    assert exists.value.revision == first.revision
    second = await backend.save_file(record(file_size=2), if_revision=first.revision)
    with pytest.raises(FileRevisionMismatchError) as stale:
        await backend.save_file(record(file_size=3), if_revision=first.revision)
    assert stale.value.stored == second.revision
    assert (await backend.get_file("f-1")).file_size == 2


async def test_delete_and_save_again(backend: StorageBackend) -> None:
    with pytest.raises(FileRecordNotFoundError):
        await backend.delete_file("f-1")
    first = await backend.save_file(record())
    with pytest.raises(FileRevisionMismatchError):
        await backend.delete_file("f-1", first.revision + 1)
    await backend.delete_file("f-1", first.revision)
    with pytest.raises(FileRecordNotFoundError):
        await backend.get_file("f-1")
    with pytest.raises(NotFoundError):
        await backend.delete_file("f-1")
    assert await listing(backend) == []
    again = await backend.save_file(record())
    assert again.created
    assert again.revision > first.revision


async def test_files_and_messages_have_separate_ids(backend: StorageBackend) -> None:
    await backend.save(draft("same"))
    await backend.save_file(record("same"))
    await backend.delete("same")
    assert (await backend.get_file("same")).id == "same"
    await backend.save(draft("same"))
    await backend.delete_file("same")
    assert (await backend.get("same")).id == "same"


async def test_list_is_newest_first(backend: StorageBackend) -> None:
    names = [f"f-{number}" for number in range(9)] + ["F-a", "f-\u00e4", "f-\U0001f600"]
    for place, name in enumerate(names):
        await backend.save_file(record(name, uploaded_at=NOW + place // 4))
    ordered = sorted(enumerate(names), key=lambda one: (one[0] // 4, one[1].encode()), reverse=True)
    expected = [name for _, name in ordered]
    for limit in (1, 3, 12, 100):
        assert await listing(backend, limit) == expected
    await backend.save_file(record("f-0", uploaded_at=NOW + 100))
    assert (await listing(backend))[0] == "f-0"


async def test_list_by_tags(backend: StorageBackend) -> None:
    tags = [(), ("a",), ("a", "b"), ("b", "A"), ("a b",), ("'", '"', "\u4e2d")]
    for number, some in enumerate(tags):
        await backend.save_file(record(f"f-{number}", tags=some, uploaded_at=NOW + number))
    assert await listing(backend, 3, "a") == ["f-2", "f-1"]
    assert await listing(backend, 3, "a", "a", "b") == ["f-2"]
    assert await listing(backend, 1, "b") == ["f-3", "f-2"]
    assert await listing(backend, 3, "'", '"') == ["f-5"]
    assert await listing(backend, 3, "\u4e2d") == ["f-5"]
    assert await listing(backend, 3, "none") == []
    assert len(await listing(backend, 3)) == len(tags)


async def test_large_files_fill_pages(backend: StorageBackend) -> None:
    largest = "x" * (3 * 1024 * 1024)
    for number in range(4):
        await backend.save_file(
            record(f"f-{number}", extracted_text=largest, uploaded_at=NOW + number)
        )
    heavy = {"tags": ("t" * 256,) * 512, "metadata": f'{{"k": "{"y" * 1_000_000}"}}'}
    await backend.save_file(record("f-4", extracted_text=largest, uploaded_at=NOW + 4, **heavy))
    await backend.save_file(record("f-5", uploaded_at=NOW + 5))
    assert await listing(backend, 100) == [f"f-{number}" for number in range(5, -1, -1)]


async def test_concurrent_saves_of_one_id(backend: StorageBackend) -> None:
    results = await asyncio.gather(
        *(backend.save_file(record(file_size=number)) for number in range(20))
    )
    assert len({one.revision for one in results}) == 20
    assert sum(one.created for one in results) == 1
    last = max(results, key=lambda one: one.revision)
    assert (await backend.get_file("f-1")).revision == last.revision


async def test_writes_of_files_and_messages_together(backend: StorageBackend) -> None:
    saves = [backend.save(draft(f"m-{number}")) for number in range(10)]
    files = [backend.save_file(record(f"f-{number}")) for number in range(10)]
    appended = backend.append("s-2", [draft("n", session_id="s-2")])
    done = await asyncio.gather(*saves, *files)
    await appended
    revisions = [one.revision for one in done]
    assert len(set(revisions)) == 20
    assert len(await listing(backend)) == 10


async def test_files_survive_a_restart(place: Place) -> None:
    async with opened(place.make) as backend:
        saved = await backend.save_file(record())
        await backend.save_file(record("gone"))
        await backend.delete_file("gone")
        before = await backend.get_file("f-1")
    async with opened(place.make) as backend:
        assert await backend.get_file("f-1") == before
        again = await backend.save_file(record("gone"))
        assert again.created
        assert again.revision > saved.revision
