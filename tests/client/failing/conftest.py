"""A client of the scripted server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sagastore import AsyncClient
from tests.client.failing.scripted import QUICK, Script, serve


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    """Serve what the test writes into it."""
    script = Script()
    server = await serve(script)
    yield script
    await server.stop(None)


@pytest.fixture
async def client(script: Script) -> AsyncIterator[AsyncClient]:
    """Connect to the scripted server, with hardly any wait between attempts."""
    async with AsyncClient(script.address, retry=QUICK) as client:
        yield client


@pytest.fixture
async def session(script: Script) -> AsyncIterator[AsyncClient]:
    """Connect a client whose reads see at least what it has seen."""
    async with AsyncClient(script.address, retry=QUICK, reads="session") as client:
        yield client
