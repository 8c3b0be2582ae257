"""A failure that many calls share: each call ends with its own status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from sagastore.v1 import storage_pb2
from sagastore_server.rpc.admission import Limits
from sagastore_server.sqlite.backend import SQLiteStorage
from tests.support.in_process_server import Served, served
from tests.support.messages import message

CALLS = 60
FULL = "PRAGMA max_page_count = 1"
"""SQLite then reports a full disk for each transaction that needs a page: a group of writes fails
as a whole, and its callers share the error."""


@pytest.fixture
async def full_server(tmp_path: Path) -> AsyncIterator[Served]:
    backend = SQLiteStorage(tmp_path / "full.db")
    await backend.open()
    try:
        assert backend._connection is not None
        backend._connection.execute(FULL)
        async with served(backend, Limits()) as server:
            yield server
    finally:
        await backend.close()


def code_of(outcome: object) -> grpc.StatusCode:
    assert isinstance(outcome, grpc.aio.AioRpcError)
    return outcome.code()


async def test_every_save_of_a_failed_group_is_refused(full_server: Served) -> None:
    async def save(stub: Any, number: int) -> object:
        one = message(id=f"m{number}", content="x" * 20_000)
        return await stub.Save(storage_pb2.SaveRequest(message=one), timeout=60)

    async with full_server.stub() as stub:
        saves = (save(stub, number) for number in range(CALLS))
        outcomes = await asyncio.gather(*saves, return_exceptions=True)
    assert {code_of(one) for one in outcomes} == {grpc.StatusCode.RESOURCE_EXHAUSTED}


async def test_streams_of_a_failed_group_end_without_a_defect(
    full_server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream has several batches in progress, and fails with the first one."""

    async def bulk_save(stub: Any, number: int) -> None:
        requests = [
            storage_pb2.BulkSaveRequest(
                sequence=batch,
                messages=[
                    message(id=f"b{number}-{batch}-{n}", content="x" * 2000) for n in range(5)
                ],
            )
            for batch in range(8)
        ]
        # Some callers leave before they are answered.
        async for _ in stub.BulkSave(iter(requests), timeout=60 if number % 3 else 0.05):
            pass

    async with full_server.stub() as stub:
        for turn in range(5):
            streams = (bulk_save(stub, turn * CALLS + number) for number in range(CALLS))
            outcomes = await asyncio.gather(*streams, return_exceptions=True)
            assert not [one for one in outcomes if one is None]
    # gRPC logs a handler that ends with an unexpected error.
    assert [record.getMessage() for record in caplog.records if "grpc" in record.name] == []
