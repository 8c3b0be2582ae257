"""Streams that a client resets at once (CVE-2023-44487) leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from sagastore.v1 import storage_pb2
from sagastore_server.rpc.admission import AdmissionControl, Limits
from sagastore_server.rpc.load_shedding import SAMPLE_INTERVAL
from sagastore_server.sqlite.backend import SQLiteStorage
from tests.support.in_process_server import served
from tests.support.messages import message
from tests.support.waiting import WITHIN, until
from tools.attacks import frames

CONNECTIONS = 10
STREAMS = 2_000
"""Streams on each connection; gRPC refuses those beyond its limit of concurrent ones."""

_DROPPED = {grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED}
GET = storage_pb2.GetRequest(id="unknown").SerializeToString()
SAVE = storage_pb2.SaveRequest(message=message()).SerializeToString()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStorage]:
    store = SQLiteStorage(tmp_path / "saga.db")
    await store.open()
    yield store
    await store.close()


def reset_stream(stream: int, method: str, request: bytes | None) -> bytes:
    """Return a call of ``method`` and its reset; without ``request`` it has only headers."""
    headers = frames.header_block(method, scheme="http")
    sent = frames.frame(frames.HEADERS, frames.END_HEADERS, stream, headers)
    if request is not None:
        sent += frames.frame(frames.DATA, frames.END_STREAM, stream, frames.message(request))
    return sent + frames.frame(frames.RST_STREAM, 0, stream, frames.CANCEL)


def flood(address: str, sent: bytes) -> None:
    """Send ``sent`` on one connection after the other."""
    host, _, port = address.rpartition(":")
    for _ in range(CONNECTIONS):
        # The server may close the connection meanwhile.
        with socket.create_connection((host, int(port))) as one, contextlib.suppress(OSError):
            one.sendall(frames.PREFACE + frames.frame(frames.SETTINGS, 0, 0) + sent)
            # gRPC reads what it was sent before it notices the end.
            one.shutdown(socket.SHUT_WR)
            while one.recv(65_536):
                pass


def is_idle(admission: AdmissionControl) -> bool:
    """Return whether nothing of any call is counted."""
    budgets = admission.requests.used + admission.answers.used
    counted = admission.calls + admission.streams + len(admission.reads) + budgets
    return not counted and not admission.load_shedder.load


@pytest.mark.parametrize(
    ("method", "body"),
    [("Save", None), ("Save", SAVE), ("Get", GET), ("Export", b""), ("BulkSave", None)],
    ids=["Save, headers", "Save", "Get", "Export", "BulkSave, headers"],
)
async def test_resets_leave_nothing_behind(
    store: SQLiteStorage, method: str, body: bytes | None
) -> None:
    async with served(store, Limits()) as server, server.stub() as stub:
        path = f"/sagastore.v1.StorageService/{method}"
        sent = b"".join(reset_stream(2 * n + 1, path, body) for n in range(STREAMS))
        await asyncio.to_thread(flood, server.address, sent)
        await _saved(stub)
        # gRPC has dropped some of the calls, whose end it never counts.
        await asyncio.sleep(2 * SAMPLE_INTERVAL)
        await until(lambda: is_idle(server.server.admission))
        assert (await stub.Save(storage_pb2.SaveRequest(message=message()))).created
        await until(lambda: server.server.calls_in_progress == 0)


async def _saved(stub: Any) -> None:
    """Save a message as soon as gRPC has handed over, or dropped, the calls of the flood.

    Until then it drops later calls as well, with CANCELLED.
    """
    async with asyncio.timeout(WITHIN):
        while True:
            try:
                await stub.Save(storage_pb2.SaveRequest(message=message()))
            except aio.AioRpcError as exc:
                if exc.code() not in _DROPPED:
                    raise
                await asyncio.sleep(0.05)
            else:
                return
