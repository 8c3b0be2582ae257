"""Slow searches are stopped, in the database as well, without affecting others."""

from __future__ import annotations

import asyncio
import string
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc import aio

from sagastore.v1 import storage_pb2
from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.rpc.admission import Limits
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.model import OnConflict
from tests.support.drafts import NOW, draft
from tests.support.in_process_server import served
from tests.support.messages import message
from tests.support.postgres import fresh_schema
from tests.support.rpc_errors import refusal_of

LETTERS = string.ascii_lowercase
EXPENSIVE = " ".join(f"({letter}* OR {letter}{letter}*)" for letter in LETTERS)
"""Prefixes that every word begins with one of: nothing can be found without reading it all."""


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[StorageBackend]:
    yield SQLiteStorage(folder / "saga.db")


@asynccontextmanager
async def postgresql(folder: Path) -> AsyncIterator[StorageBackend]:
    async with fresh_schema() as dsn:
        yield PostgreSQLStorage(PostgreSQLOptions(dsn, pool_min=2, pool_max=4))


Making = Callable[[Path], AbstractAsyncContextManager[StorageBackend]]


@pytest.fixture(params=[sqlite, postgresql])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StorageBackend]:
    make: Making = request.param
    async with make(tmp_path) as store:
        await store.open()
        try:
            words = [first + second + str(n) for n, first in enumerate(LETTERS) for second in "aq"]
            drafts = [
                draft(f"m-{number}", f"{number} {' '.join(words)}", timestamp=NOW + number)
                for number in range(1000)
            ]
            await store.bulk_save(drafts, OnConflict.REPLACE)
            yield store
        finally:
            await store.close()


def busy(store: StorageBackend) -> int:
    """Return the number of connections in use."""
    return sum(load.connections_busy for load in store.loads())


async def test_slow_search_is_stopped_with_reason(store: StorageBackend) -> None:
    async with served(store, Limits(search_timeout=0.003)) as server, server.stub() as stub:
        for _ in range(8):  # more than there are connections
            with pytest.raises(aio.AioRpcError) as caught:
                await stub.Search(storage_pb2.SearchRequest(query=EXPENSIVE))
            refusal = refusal_of(caught.value)
            assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert refusal.reason == "SEARCH_TOO_LONG"
            # Repeated as it is, it would take as long again.
            assert refusal.retry_after is None
            # The connection is free, so nothing runs on it any more.
            while busy(store):  # noqa: ASYNC110 - what is waited for sends no event
                await asyncio.sleep(0.001)
        assert (await stub.Get(storage_pb2.GetRequest(id="m-7"))).message.id == "m-7"


async def test_caller_deadline_stops_search(store: StorageBackend) -> None:
    async with served(store, Limits()) as server, server.stub() as stub:
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Search(storage_pb2.SearchRequest(query=EXPENSIVE), timeout=0.01)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        while busy(store) or server.server.admission.calls:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.001)


async def test_quick_reads_do_not_wait_for_slow_searches(store: StorageBackend) -> None:
    async with served(store, Limits()) as server, server.stub() as stub:
        searches = [stub.Search(storage_pb2.SearchRequest(query=EXPENSIVE)) for _ in range(40)]
        while not busy(store):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.001)
        got = await stub.Get(storage_pb2.GetRequest(id="m-7"))
        assert got.message.id == "m-7"
        assert (await stub.Save(storage_pb2.SaveRequest(message=message()))).created
        waiting = [search for search in searches if not search.done()]
        assert waiting, "the searches were over before anything else was asked"
        for search in searches:
            search.cancel()
