"""File records through a whole migration: reads, writes, verification, and the archive."""

from __future__ import annotations

import pytest

from sagastore.receipt import check
from sagastore_server.migration.diff import mismatch_of
from sagastore_server.migration.records import FILES
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import FileRecordNotFoundError
from sagastore_server.storage.files import File, FileScan, NewFile
from sagastore_server.storage.model import Store
from sagastore_server.storage.phase import Phase
from tests.migration.conftest import Place
from tests.support.drafts import NOW
from tests.support.final_state import FinalState
from tests.support.legacy_db import PLAIN, legacy_db
from tests.support.migrating_service import opened_live, walk_to
from tests.support.migration_values import file_record
from tests.support.postgres import execute


def new(file_id: str, **fields: object) -> NewFile:
    """Return the draft of a file record."""
    values = ("n", "/p", "pdf", "text", ("t",), 1, NOW, "{}")
    return NewFile(file_id, *values)._replace(**fields)  # type: ignore[arg-type]


async def write_some(backend: StorageBackend, name: str, at: int) -> None:
    """Save, replace, delete and save again, under ids that begin with ``name``."""
    for number in range(5):
        await backend.save_file(new(f"{name}-{number}", uploaded_at=NOW + at + number))
    await backend.save_file(new(f"{name}-0", extracted_text=name, uploaded_at=None))
    await backend.delete_file(f"{name}-1")
    await backend.delete_file(f"{name}-2")
    await backend.save_file(new(f"{name}-2", tags=("back", name), uploaded_at=NOW + at))


async def check_some(backend: StorageBackend, name: str) -> None:
    assert (await backend.get_file(f"{name}-0")).extracted_text == name
    with pytest.raises(FileRecordNotFoundError):
        await backend.get_file(f"{name}-1")
    page = await backend.list_files(FileScan(9, None, ("back", name)))
    assert [one.id for one in page.files] == [f"{name}-2"]


async def all_of(backend: StorageBackend) -> list[File]:
    page = await backend.list_files(FileScan(500))
    assert not page.more
    return page.files


@pytest.fixture
def legacy_place(place: Place) -> Place:
    """Put a legacy file with three files, one of them unreadable, at the place."""
    legacy_db(place[0], [PLAIN], more="UPDATE files SET file_size = -7 WHERE id = 'f1';")
    return place


async def test_files_through_every_phase(legacy_place: Place) -> None:
    path, dsn = legacy_place
    names: list[str] = []
    async with opened_live(path, dsn) as service:
        for at, phase in enumerate(Phase):
            before = await all_of(service.backend)
            await walk_to(service.control, phase)
            assert await all_of(service.backend) == before
            names.append(phase.slug)
            await write_some(service.backend, phase.slug, 10 * at)
            for name in names:
                await check_some(service.backend, name)
            status = await service.control.status()
            assert status.shadow.different == 0
        found = await all_of(service.backend)
        assert len(found) == 2 + 4 * len(names)
    archive = next(path.parent.glob("*.archive"))
    final = FinalState(archive)
    await final.read(dsn)
    # The last phase has written to PostgreSQL only.
    last = {f"{Phase.POSTGRES_ONLY.slug}-{number}" for number in range(5)}
    final.compare(changed=last)
    assert final.receipt.facts["files"]["rows"] == 2 + 4 * (len(names) - 1)
    assert final.receipt.facts["quarantine"]["rows"] == 1
    assert final.receipt.report["postgresql"]["files"] == 2 + 4 * (len(names) - 1)
    assert {one.name for one in check(archive).checks} >= {"files", "file_tombstones", "sessions"}


async def test_back_and_forward_again(legacy_place: Place) -> None:
    """PostgreSQL gets what changed while it was left behind."""
    async with opened_live(*legacy_place) as service:
        control, backend = service.control, service.backend
        await walk_to(control, Phase.READ_POSTGRES)
        await write_some(backend, "one", 0)
        await walk_to(control, Phase.SQLITE_ONLY)
        await write_some(backend, "two", 10)
        await backend.delete_file("one-3")
        await backend.delete_file("f0")
        before = await all_of(backend)
        await walk_to(control, Phase.READ_POSTGRES)
        assert await all_of(backend) == before
        await walk_to(control, Phase.POSTGRES_ONLY)
        assert await all_of(backend) == before


async def test_durability_on_both_stores(legacy_place: Place) -> None:
    async with opened_live(*legacy_place) as service:
        backend = service.backend
        await backend.save_file(new("old"))
        await walk_to(service.control, Phase.DUAL_WRITE)
        both = (Store.SQLITE, Store.POSTGRESQL)
        again = await backend.save_file(new("old"), everywhere_within=20)
        assert (again.created, again.durable_on) == (False, both)
        assert (await backend.save_file(new("new"), everywhere_within=20)).durable_on == both
        assert (await backend.save_file(new("other"))).durable_on == both[:1]


async def test_verification_finds_and_repairs_files(legacy_place: Place) -> None:
    path, dsn = legacy_place
    async with opened_live(path, dsn) as service:
        await walk_to(service.control, Phase.BACKFILL)
        await write_some(service.backend, "one", 0)
        await walk_to(service.control, Phase.READ_POSTGRES)
        await service.control.change_phase(Phase.BACKFILL, dry_run=False, accept_quarantine=True)
        guard_off = "SELECT set_config('sagastore.session', session, false) FROM migration;"
        await execute(
            dsn,
            f"{guard_off} UPDATE files SET file_size = 99 WHERE id = 'one-0';"
            "DELETE FROM files WHERE id = 'f0';"
            "INSERT INTO files SELECT 'extra', filename, filepath, file_type, '', tags, 0,"
            " uploaded_at, metadata, NULL, 1, '{}' FROM files WHERE id = 'one-2'",
        )
        found = [one async for one in service.control.verify(repair=True)]
        wrong = {one.id: (one.kind, one.fields) for step in found for one in step.mismatches}
        assert wrong == {
            "files/one-0": ("DIFFERENT", ("file_size",)),
            "files/f0": ("MISSING", ()),
            "files/extra": ("EXTRA", ()),
        }
        assert found[-1].repaired == 3
        again = [one async for one in service.control.verify(repair=False)]
        assert again[-1].mismatch_count == 0


def test_mismatch_names_the_fields() -> None:
    one = file_record()
    other = one._replace(filename="other", tags=(), revision=2)
    found = mismatch_of(FILES.name(one.id), one, other)
    assert found == ("files/f-1", "DIFFERENT", ("filename", "tags", "revision"))
