"""Asynchronous and blocking clients of real servers, behind one interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from operator import attrgetter
from typing import Any

import pytest

from sagastore import AsyncClient, Client
from tests.support.ports import reserved_port
from tests.support.server_process import ServerProcess


class Driver:
    """Calls a client's methods by name; those of a blocking one on other threads."""

    def __init__(self, client: AsyncClient | Client) -> None:
        self.client = client

    async def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method and return what it answers."""
        method = attrgetter(name)(self.client)
        if isinstance(self.client, AsyncClient):
            return await method(*args, **kwargs)
        return await asyncio.to_thread(method, *args, **kwargs)

    async def all(self, name: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Call a method that returns an iterator and return all of its items."""
        method = attrgetter(name)(self.client)
        if isinstance(self.client, AsyncClient):
            return [item async for item in method(*args, **kwargs)]
        return await asyncio.to_thread(lambda: list(method(*args, **kwargs)))

    async def pages(self, name: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Call a method that returns a pager and return all of its pages."""
        method = attrgetter(name)(self.client)
        if isinstance(self.client, AsyncClient):
            return [page async for page in method(*args, **kwargs).pages()]
        return await asyncio.to_thread(lambda: list(method(*args, **kwargs).pages()))


@pytest.fixture(params=["async", "blocking"])
async def driver(
    request: pytest.FixtureRequest, shared_server: ServerProcess
) -> AsyncIterator[Driver]:
    """Drive a client of the shared server, of either kind."""
    if request.param == "async":
        async with AsyncClient(shared_server.address) as client:
            yield Driver(client)
    else:
        blocking = Client(shared_server.address)
        yield Driver(blocking)
        await asyncio.to_thread(blocking.close)


@pytest.fixture(params=["async", "blocking"])
async def own_driver(
    request: pytest.FixtureRequest, running_server: ServerProcess
) -> AsyncIterator[Driver]:
    """Drive a client of the test's own server, which is empty."""
    if request.param == "async":
        async with AsyncClient(running_server.address) as client:
            yield Driver(client)
    else:
        blocking = Client(running_server.address)
        yield Driver(blocking)
        await asyncio.to_thread(blocking.close)


@pytest.fixture
async def client(running_server: ServerProcess) -> AsyncIterator[AsyncClient]:
    """Call the test's own server."""
    async with AsyncClient(running_server.address) as client:
        yield client


@pytest.fixture
def refusing_address() -> Iterator[str]:
    """Name an address that refuses connections for as long as the test lasts."""
    with reserved_port() as port:
        yield f"127.0.0.1:{port}"
