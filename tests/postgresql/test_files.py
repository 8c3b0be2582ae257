"""File records that several servers write at once."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random

from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.storage.errors import FileRecordExistsError, FileRecordNotFoundError
from sagastore_server.storage.files import NewFile
from tests.support.backends import opened
from tests.support.drafts import NOW, draft


def new(file_id: str, size: int) -> NewFile:
    """Return the draft of a file record."""
    return NewFile(file_id, "n", "/p", "pdf", "", (), size, NOW, "{}")


def _backend(dsn: str) -> PostgreSQLStorage:
    return PostgreSQLStorage(PostgreSQLOptions(dsn, pool_min=1, pool_max=4))


async def test_one_server_creates_a_file(dsn: str) -> None:
    async with opened(lambda: _backend(dsn)) as one, opened(lambda: _backend(dsn)) as other:
        for number in range(20):
            key = f"f-{number}"
            results = await asyncio.gather(
                one.save_file(new(key, 1), if_revision=0),
                other.save_file(new(key, 2), if_revision=0),
                return_exceptions=True,
            )
            refused = [result for result in results if isinstance(result, FileRecordExistsError)]
            assert len(refused) == 1, results


async def test_revisions_of_concurrent_writes_are_unique(dsn: str) -> None:
    """Saves and deletions of a few ids, in groups with messages, lose no change."""
    draw = Random(7)
    revisions: list[int] = []

    async def work(backend: PostgreSQLStorage, number: int) -> None:
        for turn in range(15):
            key = draw.choice("abc")
            if draw.random() < 0.3:
                with contextlib.suppress(FileRecordNotFoundError):
                    await backend.delete_file(key)
            else:
                saved = await backend.save_file(new(key, number * 100 + turn))
                revisions.append(saved.revision)
            await backend.save(draft(f"m-{number}", f"text {turn}"))

    async with opened(lambda: _backend(dsn)) as one, opened(lambda: _backend(dsn)) as other:
        assert isinstance(one, PostgreSQLStorage)
        assert isinstance(other, PostgreSQLStorage)
        await asyncio.gather(*(work((one, other)[number % 2], number) for number in range(8)))
        assert len(revisions) == len(set(revisions))
        for record in (await one.scan_files("", "z", 10)).files:
            assert record.revision in revisions
            assert await other.get_file(record.id) == record
