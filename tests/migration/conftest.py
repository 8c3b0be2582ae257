"""A file and a database for one migration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.postgres import fresh_schema


class Place(NamedTuple):
    """Where a test's two stores are."""

    path: Path
    dsn: str


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    """Prepare a path without a file, and an empty schema."""
    async with fresh_schema() as dsn:
        yield Place(tmp_path / "messages.db", dsn)
