"""Records of files through the drop-in, also those of a legacy `memory.db`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ServerFactory
from tests.integrations import scenario
from tests.integrations.arc_app.dataclass_models import File, FileType
from tests.integrations.arc_storage import Storage, StorageError, dropin
from tests.integrations.migrated_app import compare_in_every_phase
from tests.support.legacy_db import legacy_db
from tests.support.server_process import ServerProcess


async def test_file_round_trips(storage: Storage, models: ModuleType) -> None:
    saved = models.File(
        filename="Grüße.pdf",
        filepath="files/Grüße.pdf",
        file_type=models.FileType.PDF,
        extracted_text="naïve\n\ttext 👋",
        tags=["b", "a", "b"],
        file_size=99_999_999,
        uploaded_at=datetime(2024, 2, 29, 12, 0, 0, 123_457),  # noqa: DTZ001 - as the class creates
        metadata={"pages": 3, "ratio": 0.1},
    )
    assert await storage.save_file(saved) == saved.id
    found = await storage.get_file_by_id(saved.id)
    assert found == saved
    assert found.file_type is models.FileType.PDF


async def test_minimal_file_round_trips(storage: Storage, models: ModuleType) -> None:
    saved = models.File(filename="a.py", filepath="files/a.py", file_type=models.FileType.CODE)
    await storage.save_file(saved)
    found = await storage.get_file_by_id(saved.id)
    assert (found.extracted_text, found.tags, found.file_size) == ("", [], 0)
    assert found.uploaded_at == saved.uploaded_at


async def test_duplicate_file_is_a_storage_error(shared_server: ServerProcess) -> None:
    storage, file = dropin(shared_server.address), File("f", "p", FileType.TEXT)
    await storage.save_file(file)
    with pytest.raises(StorageError, match=f"a file with the id '{file.id}' exists") as caught:
        await storage.save_file(file)
    assert caught.value.operation == "save_file"
    await storage.close()


async def test_unknown_and_impossible_files_are_not_found(storage: Storage) -> None:
    for id in ("nothing", "", "x" * 1000):
        assert await storage.get_file_by_id(id) is None


async def test_upload_time_with_a_zone_is_returned_as_naive_utc(
    shared_server: ServerProcess,
) -> None:
    storage, noon = dropin(shared_server.address), datetime(2026, 1, 1, 12, tzinfo=UTC)
    id = await storage.save_file(File("f", "p", FileType.TEXT, uploaded_at=noon + timedelta(1)))
    found = await storage.get_file_by_id(id)
    assert found.uploaded_at == (noon + timedelta(1)).replace(tzinfo=None)
    await storage.close()


async def test_legacy_files_are_found(server_process: ServerFactory, tmp_path: Path) -> None:
    server = server_process(sqlite=legacy_db(tmp_path / "memory.db")).start()
    storage = dropin(server.address)
    found = [await storage.get_file_by_id(f"f{number}") for number in range(3)]
    assert found == [
        File(
            filename=f"{number}.md",
            filepath=f"in/{number}.md",
            file_type=FileType.MARKDOWN,
            extracted_text=f"text of {number}",
            id=f"f{number}",
            file_size=number,
            uploaded_at=datetime(2025, 3, 1, 9),  # noqa: DTZ001 - as the class creates them
        )
        for number in range(3)
    ]
    await storage.close()


def test_files_are_the_same_in_every_phase(
    models: ModuleType, dsn: str, server_process: ServerFactory, tmp_path: Path
) -> None:
    compare_in_every_phase(tmp_path, dsn, server_process, models, scenario.files)
