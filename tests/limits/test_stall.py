"""Clients that do not read occupy no memory, no writer, and no slot indefinitely."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from sagastore.v1 import migration_pb2, storage_pb2
from sagastore.v1.migration_pb2_grpc import MigrationServiceStub
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from sagastore_server.rpc.admission import Limits
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.model import OnConflict
from tests.support.drafts import draft
from tests.support.in_process_server import Served, served
from tests.support.messages import message
from tests.support.rpc_errors import refusal_of

STALLED = 12
LARGE = "x" * 90_000


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStorage]:
    """Store with an export of about 27 MB, far more than a connection buffers."""
    store = SQLiteStorage(tmp_path / "saga.db")
    await store.open()
    for start in range(0, 300, 50):
        drafts = [draft(f"m-{number:03}", LARGE) for number in range(start, start + 50)]
        await store.bulk_save(drafts, OnConflict.REPLACE)
    yield store
    await store.close()


async def unread(server: Served, channels: list[aio.Channel]) -> list[Any]:
    """Start exports and read one batch of each."""
    exports: list[Any] = []
    for _ in range(STALLED):
        channel = server.channel(("grpc.max_receive_message_length", -1))
        channels.append(channel)
        export: Any = StorageServiceStub(channel).Export(storage_pb2.ExportRequest())
        await export.read()
        exports.append(export)
    return exports


async def rest(export: Any) -> None:
    """Read an export to its end."""
    while await export.read() is not aio.EOF:
        pass


async def test_unread_exports_are_ended(store: SQLiteStorage) -> None:
    channels: list[aio.Channel] = []
    async with served(store, Limits(stall_timeout=1)) as server, server.stub() as stub:
        exports = await unread(server, channels)
        # Nobody waits for them, and the log can be emptied: they hold no transaction.
        assert (await stub.Save(storage_pb2.SaveRequest(message=message()))).created
        await store.checkpoint()
        while server.server.admission.streams:  # noqa: ASYNC110 - what is waited for sends no event
            await asyncio.sleep(0.01)
        with pytest.raises(aio.AioRpcError) as caught:
            await rest(exports[0])
        refusal = refusal_of(caught.value)
        assert refusal.code is grpc.StatusCode.UNAVAILABLE
        assert refusal.reason == "CLIENT_STALLED"
        assert refusal.retry_after
        for channel in channels:
            await channel.close()


async def test_stalled_reader_gets_unavailable(store: SQLiteStorage) -> None:
    async with served(store, Limits(stall_timeout=1)) as server, server.stub() as stub:
        export: Any = stub.Export(storage_pb2.ExportRequest())
        await export.initial_metadata()
        while server.server.admission.streams:  # noqa: ASYNC110 - what is waited for sends no event
            await asyncio.sleep(0.01)
        with pytest.raises(aio.AioRpcError) as caught:
            await rest(export)
        assert refusal_of(caught.value).reason == "CLIENT_STALLED"


async def test_disconnect_with_unread_data_is_not_an_error(
    store: SQLiteStorage, caplog: pytest.LogCaptureFixture
) -> None:
    channels: list[aio.Channel] = []
    async with served(store, Limits()) as server:
        await unread(server, channels)
        for channel in channels:
            await channel.close()
        while server.server.admission.streams:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    assert not [record.getMessage() for record in caplog.records]


async def test_stop_does_not_wait_for_stalled_readers(store: SQLiteStorage) -> None:
    channels: list[aio.Channel] = []
    async with served(store, Limits()) as server:
        await unread(server, channels)
        assert not await server.server.drain(0.2)
    while server.server.admission.streams:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0.01)
    for channel in channels:
        await channel.close()


async def test_unread_watch_is_ended_with_connection(
    store: SQLiteStorage,
) -> None:
    async with served(store, Limits()) as server:
        async with server.channel() as channel:
            watch: Any = MigrationServiceStub(channel).WatchMigration(
                migration_pb2.WatchMigrationRequest()
            )
            await watch.read()
            assert server.server.admission.streams == 1
        while server.server.admission.streams:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
