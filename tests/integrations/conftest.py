"""Fixtures of the integrations: the classes of the application, and a drop-in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import ModuleType

import pytest

from tests.integrations.arc_storage import FLAVOURS, Storage, dropin
from tests.support.postgres import fresh_schema
from tests.support.server_process import ServerProcess


@pytest.fixture(params=FLAVOURS)
def models(request: pytest.FixtureRequest) -> ModuleType:
    """Each kind of model classes."""
    return FLAVOURS[request.param]


@pytest.fixture
async def storage(shared_server: ServerProcess, models: ModuleType) -> AsyncIterator[Storage]:
    """Use the shared server with the classes."""
    storage = dropin(shared_server.address, models)
    yield storage
    await storage.close()


@pytest.fixture
async def dsn() -> AsyncIterator[str]:
    """Name an empty place in PostgreSQL."""
    async with fresh_schema() as dsn:
        yield dsn
