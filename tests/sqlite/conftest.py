"""An open SQLite store for the tests of what only SQLite does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sagastore_server.sqlite.backend import SQLiteStorage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Say where the store's file is."""
    return tmp_path / "messages.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStorage]:
    """Open a store on a new file."""
    storage = SQLiteStorage(path)
    try:
        await storage.open()
        yield storage
    finally:
        await storage.close()
