"""Fixtures of the PostgreSQL tests: an empty schema for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.postgres import fresh_schema


@pytest.fixture
async def dsn() -> AsyncIterator[str]:
    """Return a connection string of an empty schema."""
    async with fresh_schema() as dsn:
        yield dsn
