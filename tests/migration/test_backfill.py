"""The backfill reads a page while the one before it is stored; what it has read is old by then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.storage.errors import UnavailableError
from sagastore_server.storage.model import Message, OnConflict
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import MigrationState
from tests.migration.conftest import Place
from tests.support.drafts import NOW, draft
from tests.support.migrating_service import backfilled, opened_live, walk_to

PAGE = MigrationState().batch_size


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Pages:
    """Look at each page that is read and stored."""
    return Pages(monkeypatch)


class Pages:
    """Tells of the pages of a backfill, and calls ``before_storing`` with their numbers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[list[str]] = []
        self.stored = 0
        self._changed = asyncio.Condition()
        prepare, copy, pages = PostgreSQLTarget.prepare, PostgreSQLTarget.copy, self

        async def prepared(self: PostgreSQLTarget, messages: Sequence[Message]) -> Any:
            made = await prepare(self, messages)
            if messages:
                async with pages._changed:
                    pages.read.append([message.id for message in messages])
                    pages._changed.notify_all()
            return made

        async def copied(self: PostgreSQLTarget, lease: Any, rows: Any, *marks: Any) -> Any:
            if getattr(rows, "rows", None):
                pages.stored += 1
                await pages.before_storing(pages.stored)
            return await copy(self, lease, rows, *marks)

        monkeypatch.setattr(PostgreSQLTarget, "prepare", prepared)
        monkeypatch.setattr(PostgreSQLTarget, "copy", copied)

    async def before_storing(self, number: int) -> None:
        """Replaced by tests."""

    async def until_read(self, number: int) -> list[str]:
        """Wait until page ``number``, from 1, has been read; return its ids."""
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: len(self.read) >= number)
        return self.read[number - 1]


async def begun(service: MigratingService, rows: int) -> None:
    drafts = [draft(f"m-{n:04}", f"first {n}", timestamp=NOW + n) for n in range(rows)]
    await service.backend.bulk_save(drafts, OnConflict.REPLACE)
    await walk_to(service.control, Phase.DUAL_WRITE)
    await service.control.change_phase(Phase.BACKFILL, dry_run=False, accept_quarantine=False)


async def caught_up(service: MigratingService) -> None:
    async for status in service.control.watch():
        if not status.journal_rows:
            return


async def contents(dsn: str) -> dict[str, str]:
    connection = await asyncpg.connect(dsn)
    try:
        return dict(await connection.fetch("SELECT id, content FROM messages"))
    finally:
        await connection.close()


async def test_backfill_prefetched_row_that_changes_keeps_newest(
    place: Place, pages: Pages
) -> None:
    async with opened_live(*place) as service:

        async def change_what_was_read(number: int) -> None:
            if number == 1:
                # Page 2 is there already, while page 1 waits to be stored.
                changed, deleted, *_ = await pages.until_read(2)
                await service.backend.save(draft(changed, "second"))
                await service.backend.delete(deleted)
                # PostgreSQL has heard of both before the old rows come.
                await caught_up(service)

        pages.before_storing = change_what_was_read  # type: ignore[method-assign]
        await begun(service, 3 * PAGE)
        await backfilled(service.control)
        changed, deleted, kept, *_ = pages.read[1]
        stored = await contents(place.dsn)
        assert stored[changed] == "second"
        assert deleted not in stored
        assert stored[kept].startswith("first")
        assert len(stored) == 3 * PAGE - 1
        status = await service.control.status()
        assert status.last_verification is not None
        assert status.last_verification.mismatch_count == 0
        # The page that was read ahead was used, not read again.
        assert len(pages.read) == pages.stored == 3


async def test_backfill_retries_failed_page(place: Place, pages: Pages) -> None:
    async with opened_live(*place) as service:

        async def fail_once(number: int) -> None:
            if number == 2:
                await pages.until_read(3)
                raise UnavailableError("planted")

        pages.before_storing = fail_once  # type: ignore[method-assign]
        await begun(service, 3 * PAGE)
        await backfilled(service.control)
        assert len(await contents(place.dsn)) == 3 * PAGE
        # What had been read ahead of it was not taken for what comes now.
        first = [int(page[0].removeprefix("m-")) for page in pages.read]
        assert first == [0, PAGE, 2 * PAGE, PAGE, 2 * PAGE]
        status = await service.control.status()
        assert (status.backfill.copied, status.backfill.total) == (3 * PAGE, 3 * PAGE)
