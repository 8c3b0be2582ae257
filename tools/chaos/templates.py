"""Templates of stores in each phase, from a legacy file or a new one.

Each template is created once, by the migration itself in this process, and copied for each round:
the SQLite file with its companion files, and a database.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.storage.phase import Phase
from tests.support.legacy_sample import legacy_sample
from tests.support.migrating_service import change, opened_live, walk_to
from tools.chaos.cluster import Testbed

ROWS = 300
"""Number of plain rows in a legacy file."""

BATCH = 20
"""Batch size of a started backfill."""


class Templates:
    """Creates templates on first use."""

    def __init__(self, testbed: Testbed) -> None:
        """Keep the templates on ``testbed``."""
        self._testbed = testbed
        self._made: set[str] = set()
        self._turn = asyncio.Lock()

    async def copy_to(self, origin: str, begins: int, folder: Path, database: str) -> None:
        """Copy a template into ``folder`` and into a new ``database``."""
        phase = Phase(begins)
        async with self._turn:
            if _name(origin, phase) not in self._made:
                await self._make(origin, phase)
        await self._copy_database(_name(origin, phase), database)
        source = self._folder(origin, phase)
        for file in source.iterdir():
            shutil.copy2(file, folder / file.name)

    async def _make(self, origin: str, phase: Phase) -> None:
        folder, name = self._folder(origin, phase), _name(origin, phase)
        folder.mkdir()
        await self._testbed.drop(name)
        await self._testbed.execute(f"CREATE DATABASE {name}")
        path = folder / "memory.db"
        if origin == "legacy":
            legacy_sample(path, ROWS)
        if origin == "fresh" or phase is not Phase.SQLITE_ONLY:
            async with opened_live(path, self._testbed.dsn(name)) as service:
                await _go_to(service, phase)
        # These files name the process that created the template.
        for left in (".lock", ".owner"):
            path.with_name(path.name + left).unlink(missing_ok=True)
        self._made.add(name)

    def _folder(self, origin: str, phase: Phase) -> Path:
        return self._testbed.folder / _name(origin, phase)

    async def _copy_database(self, template: str, database: str) -> None:
        await self._testbed.drop(database)
        await self._testbed.execute(f"CREATE DATABASE {database} TEMPLATE {template}")


async def _go_to(service: MigratingService, phase: Phase) -> None:
    if phase is not Phase.BACKFILL:
        await walk_to(service.control, phase)
        return
    await walk_to(service.control, Phase.DUAL_WRITE)
    await change(service.control, Phase.BACKFILL)
    # In the middle of the backfill, unless it is complete.
    await service.control.control_backfill(paused=True, batch_size=BATCH, max_rows_per_second=None)


def _name(origin: str, phase: Phase) -> str:
    return f"{origin}_{phase.name.lower()}"
