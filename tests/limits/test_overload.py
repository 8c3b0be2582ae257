"""Overload by a factor of ten: excess calls are refused in time, none is lost."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from sagastore.v1 import storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.support.messages import message
from tests.support.rpc_errors import refusal_of
from tests.support.server_process import serving

LIMIT = 24
CALLERS = 10 * LIMIT
SAVES = 3
"""Of each caller."""

GROWTH_KIB = 48 * 1024
"""What the memory may grow by while ten times the limit is at the door: a call that waits
takes about 20 KiB, the write-ahead log and SQLite's caches of five connections some more."""


class Crowd:
    """Callers that honour the retry delay of a refusal and retry no other error."""

    def __init__(self, channels: list[aio.Channel]) -> None:
        self.stubs: list[Any] = [StorageServiceStub(channel) for channel in channels]
        self.acknowledged: set[str] = set()
        self.refused: Counter[str] = Counter()

    async def save(self, caller: int, number: int) -> None:
        wanted = message(id=f"{caller}-{number}")
        stub = self.stubs[caller % len(self.stubs)]
        while True:
            try:
                answer = await stub.Save(storage_pb2.SaveRequest(message=wanted))
            except aio.AioRpcError as error:
                told = refusal_of(error)
                assert told.code is grpc.StatusCode.RESOURCE_EXHAUSTED, told
                assert told.retry_after
                self.refused[told.reason] += 1
                await asyncio.sleep(told.retry_after)
                continue
            assert answer.created
            self.acknowledged.add(answer.id)
            return

    async def caller(self, caller: int) -> None:
        for number in range(SAVES):
            await self.save(caller, number)

    async def stored(self) -> set[str]:
        found: set[str] = set()
        async for answer in self.stubs[0].Export(storage_pb2.ExportRequest()):
            found.update(one.id for one in answer.messages)
        return found


def resident_kib(pid: int) -> int:
    """Return the resident memory of the process in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
async def test_overload_sheds_calls_and_releases_resources(tmp_path: Path) -> None:
    with serving(tmp_path / "saga.db", "--max-calls", str(LIMIT)) as server:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [aio.insecure_channel(server.address, options=options) for _ in range(8)]
        crowd = Crowd(channels)
        await asyncio.gather(*(crowd.save(-1, number) for number in range(LIMIT)))
        before = resident_kib(server.pid)
        crowd.refused.clear()
        await asyncio.gather(*map(crowd.caller, range(CALLERS)))
        assert crowd.refused["OVERLOADED"]
        assert resident_kib(server.pid) - before < GROWTH_KIB
        # It recovers: one caller alone is not refused any more, soon.
        for number in range(20):
            await crowd.save(-2, number)
        crowd.refused.clear()
        for number in range(20, 60):
            await crowd.save(-2, number)
        assert not crowd.refused
        assert crowd.acknowledged == await crowd.stored()
        assert len(crowd.acknowledged) == LIMIT + CALLERS * SAVES + 60
        for channel in channels:
            await channel.close()
