"""Fixtures of the SQLite tests: an open store on a new file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sagastore_server.sqlite.backend import SQLiteStorage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Path of the store's file."""
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
