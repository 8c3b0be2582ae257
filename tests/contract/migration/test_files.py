"""File records in the journal of a source, and applied to a target."""

from __future__ import annotations

import pytest

from sagastore_server.storage.files import File, NewFile
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    Entry,
    MigrationSource,
    MigrationState,
    MigrationTarget,
)
from sagastore_server.storage.sessions import RecordKind
from tests.support.drafts import NOW, draft
from tests.support.migration_values import (
    LEASE,
    deleted_file,
    file_record,
    finish,
    message,
    record_of,
    saved,
    saved_file,
)

DUAL_WRITE = MigrationState(Phase.DUAL_WRITE, epoch=2)


def new(file_id: str, **fields: object) -> NewFile:
    """Return the draft of a file record."""
    values = ("n", "/p", "pdf", "text", ("t",), 1, NOW, "{}")
    return NewFile(file_id, *values)._replace(**fields)  # type: ignore[arg-type]


def keys(entries: list[Entry]) -> list[tuple[int, RecordKind, str]]:
    """Return sequence, kind and id of entries."""
    return [(one.sequence, one.kind, one.id) for one in entries]


async def content_of(target: MigrationTarget) -> dict[str, File]:
    """Return every file record by id."""
    page = await target.scan_files("", "\U0010ffff", 500)
    assert not page.more
    return {one.id: one for one in page.files}


# ------------------------------------------------------------------ the journal


async def test_changes_are_journalled(source: MigrationSource) -> None:
    await source.save_file(new("before"))
    await source.set_state(DUAL_WRITE)
    await source.save_file(new("a"))
    await source.save_file(new("a"))
    await source.save_file(new("a", file_size=2))
    await source.save_file(new("b"))
    await source.delete_file("b")
    await source.save(draft("a", session_id=None))
    entries = await source.journal(0, 100)
    found = [(one.kind, one.id, one.buried) for one in entries]
    file, text = RecordKind.FILE, RecordKind.MESSAGE
    assert found == [
        (file, "a", 0), (file, "a", 0), (file, "b", 5), (file, "b", 5), (text, "a", 0),
    ]  # fmt: skip
    stored = await source.get_file("a")
    assert [one.file for one in entries] == [stored, stored, None, None, None]
    assert entries[-1].message is not None
    assert entries[1].sequence == stored.revision
    again = await source.save_file(new("b"))
    last = (await source.journal(0, 100))[-1]
    assert (last.sequence, last.buried) == (again.revision, 5)


async def test_files_are_requeued(source: MigrationSource) -> None:
    await source.save_file(new("a"))
    await source.save_file(new("gone"))
    await source.delete_file("gone")
    await source.set_state(DUAL_WRITE)
    await source.requeue(["a", "gone", "never"], RecordKind.FILE)
    entries = await source.journal(0, 100)
    assert [(one.id, one.forced, one.buried) for one in entries] == [
        ("a", True, 0), ("gone", True, 3), ("never", True, 0),
    ]  # fmt: skip
    assert entries[0].file == await source.get_file("a")
    assert (await source.get_file("a")).revision == 1


async def test_every_record_is_journalled(source: MigrationSource) -> None:
    await source.append("s", [draft("m", session_id="s")])
    for name in ("b", "a"):
        await source.save_file(new(name))
    await source.set_state(DUAL_WRITE)
    last = await source.journal_records()
    entries = await source.journal(0, 100)
    found = [(kind, key) for _, kind, key in keys(entries)]
    file = RecordKind.FILE
    assert found == [(RecordKind.SESSION, "s"), (file, "a"), (file, "b")]
    assert entries[-1].sequence == last == source.committed


async def test_set_back_journals_files_again(source: MigrationSource) -> None:
    await source.save_file(new("old"))
    await source.set_state(DUAL_WRITE)
    await source.save_file(new("new"))
    await source.save_file(new("gone"))
    await source.delete_file("gone")
    await source.prune(source.committed)
    await source.set_state(DUAL_WRITE, rejournal_after=1)
    entries = await source.journal(0, 100)
    file = RecordKind.FILE
    # The file that is older than the position comes last, under a new sequence.
    assert keys(entries) == [(2, file, "new"), (4, file, "gone"), (5, file, "old")]
    assert [one.buried for one in entries] == [0, 4, 0]


# ------------------------------------------------------------------ applied to a target


async def test_entries_are_applied(target: MigrationTarget) -> None:
    one = file_record("f-1", 3, tags=("x", "y"), metadata='{"a": [1]}', extra='{"x": "\\u0000"}')
    bare = file_record("f-2", 4, created_at=None, uploaded_at=-5, extracted_text="")
    same_id = message("f-1", 6)
    await target.apply(
        LEASE, [saved_file(one), saved_file(bare), deleted_file("f-3", 5), saved(same_id)]
    )
    assert await content_of(target) == {"f-1": one, "f-2": bare}
    assert (await target.get("f-1")) == same_id
    assert (await record_of(target)).applied == 6
    assert await target.count_files() == 2
    assert await target.last_file() == "f-2"
    assert not (await target.inspect()).empty
    changed = bare._replace(revision=8, file_size=0)
    await target.apply(LEASE, [deleted_file("f-1", 7), saved_file(changed, buried=2)])
    assert await content_of(target) == {"f-2": changed}


async def test_older_file_replaces_nothing(target: MigrationTarget) -> None:
    await target.apply(LEASE, [saved_file(file_record("a", 5)), deleted_file("b", 6)])
    older = [file_record(name, 4, file_size=1) for name in ("a", "b")]
    await target.apply(LEASE, [saved_file(one, sequence=7) for one in older])
    assert await content_of(target) == {"a": file_record("a", 5)}
    await target.apply(LEASE, [deleted_file("a", 3, sequence=8)])
    assert await content_of(target) == {"a": file_record("a", 5)}
    again = file_record("b", 9)
    await target.apply(LEASE, [saved_file(again, buried=6)])
    assert (await content_of(target))["b"] == again


@pytest.mark.parametrize("buried", [0, 3])
async def test_forced_entry_replaces_everything(target: MigrationTarget, buried: int) -> None:
    await target.apply(LEASE, [saved_file(file_record("a", 99)), saved_file(file_record("b", 98))])
    right = file_record("a", 4)
    nothing = deleted_file("b", buried, sequence=101, forced=True)
    await target.apply(
        LEASE, [saved_file(right, sequence=100, buried=buried, forced=True), nothing]
    )
    assert await content_of(target) == {"a": right}


async def test_finished_target_continues_revisions(target: MigrationTarget) -> None:
    await target.apply(LEASE, [saved_file(file_record("a", 5)), deleted_file("b", 6)])
    await finish(target, 50)
    for name in ("a", "b"):
        assert (await target.save_file(new(name, file_size=3))).revision > 50
