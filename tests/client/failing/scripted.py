"""A server with scripted behaviour, over a real socket.

It uses the real protocol and fails at the exact moment that a test needs, which the
real server cannot do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message as Pb
from google.rpc import error_details_pb2, status_pb2

from sagastore import AsyncClient, RetryPolicy
from sagastore.v1 import (
    file_pb2_grpc,
    migration_pb2,
    migration_pb2_grpc,
    session_pb2_grpc,
    storage_pb2,
    storage_pb2_grpc,
)

QUICK = RetryPolicy(max_attempts=6, initial_backoff=0.001, max_backoff=0.01)

Context = grpc.aio.ServicerContext[Any, Any]
Step = Callable[[Any, Context], Awaitable[Any]]


def status_bytes(code: grpc.StatusCode, text: str, *details: Pb) -> bytes:
    """Return google.rpc.Status as a server sends it."""
    status = status_pb2.Status(code=code.value[0], message=text)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    data: bytes = status.SerializeToString()
    return data


def error_info(reason: str, **metadata: str) -> Pb:
    info: Pb = error_details_pb2.ErrorInfo(reason=reason, domain="sagastore", metadata=metadata)
    return info


def retry_info(seconds: float) -> Pb:
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(round(seconds * 1000))
    info: Pb = error_details_pb2.RetryInfo(retry_delay=delay)
    return info


def refuse(
    code: grpc.StatusCode, text: str = "refused", *details: Pb, reason: str = "TEST"
) -> Step:
    """Answer with an error, with details as the real server sends them."""

    async def step(_: Any, context: Context) -> NoReturn:
        everything = (error_info(reason), *details)
        trailer = ("grpc-status-details-bin", status_bytes(code, text, *everything))
        await context.abort(code, text, (trailer,))
        raise AssertionError("abort does not return")

    return step


def answer(response: Any) -> Step:
    """Answer with a response."""

    async def step(_: Any, __: Context) -> Any:
        return response

    return step


def hang() -> Step:
    """Never answer."""

    async def step(_: Any, __: Context) -> Any:
        await asyncio.Event().wait()

    return step


def unavailable(seconds: float | None = 0.0) -> Step:
    """Be down, and say when to come again."""
    details = () if seconds is None else (retry_info(seconds),)
    return refuse(grpc.StatusCode.UNAVAILABLE, "the store is down", *details)


class Script(
    storage_pb2_grpc.StorageServiceServicer,
    session_pb2_grpc.SessionServiceServicer,
    file_pb2_grpc.FileServiceServicer,
    migration_pb2_grpc.MigrationServiceServicer,
):
    """Plays the steps given for each RPC, the last one again and again.

    ``requests`` and ``metadata`` tell what was asked, in order.
    """

    def __init__(self) -> None:
        self.steps: dict[str, deque[Step]] = {}
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.address = ""
        self.asked = asyncio.Event()

    def play(self, rpc: str, *steps: Step) -> None:
        self.steps[rpc] = deque(steps)

    async def _next(self, rpc: str, request: Any, context: Context) -> Any:
        self.note(request, context)
        steps = self.steps[rpc]
        step = steps.popleft() if len(steps) > 1 else steps[0]
        return await step(request, context)

    def note(self, request: Any, context: Context) -> None:
        self.requests.append(request)
        self.asked.set()
        self.metadata.append({k: str(v) for k, v in context.invocation_metadata() or ()})

    async def Save(self, request: Any, context: Any) -> Any:
        return await self._next("Save", request, context)

    async def BatchSave(self, request: Any, context: Any) -> Any:
        return await self._next("BatchSave", request, context)

    async def Get(self, request: Any, context: Any) -> Any:
        return await self._next("Get", request, context)

    async def Search(self, request: Any, context: Any) -> Any:
        return await self._next("Search", request, context)

    async def ControlBackfill(self, request: Any, context: Any) -> Any:
        return await self._next("ControlBackfill", request, context)

    async def ListQuarantine(self, request: Any, context: Any) -> Any:
        return await self._next("ListQuarantine", request, context)

    async def BatchGet(self, request: Any, context: Any) -> Any:
        return await self._next("BatchGet", request, context)

    async def List(self, request: Any, context: Any) -> Any:
        return await self._next("List", request, context)

    async def Delete(self, request: Any, context: Any) -> Any:
        return await self._next("Delete", request, context)

    async def Append(self, request: Any, context: Any) -> Any:
        return await self._next("Append", request, context)

    async def GetSession(self, request: Any, context: Any) -> Any:
        return await self._next("GetSession", request, context)

    async def ListSessions(self, request: Any, context: Any) -> Any:
        return await self._next("ListSessions", request, context)

    async def UpdateSession(self, request: Any, context: Any) -> Any:
        return await self._next("UpdateSession", request, context)

    async def TruncateSession(self, request: Any, context: Any) -> Any:
        return await self._next("TruncateSession", request, context)

    async def DeleteSession(self, request: Any, context: Any) -> Any:
        return await self._next("DeleteSession", request, context)

    async def SaveFile(self, request: Any, context: Any) -> Any:
        return await self._next("SaveFile", request, context)

    async def GetFile(self, request: Any, context: Any) -> Any:
        return await self._next("GetFile", request, context)

    async def ListFiles(self, request: Any, context: Any) -> Any:
        return await self._next("ListFiles", request, context)

    async def DeleteFile(self, request: Any, context: Any) -> Any:
        return await self._next("DeleteFile", request, context)

    async def ChangePhase(self, request: Any, context: Any) -> Any:
        return await self._next("ChangePhase", request, context)

    async def GetMigration(self, request: Any, context: Any) -> Any:
        return await self._next("GetMigration", request, context)

    async def BulkSave(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        # A step is an asynchronous generator over the stream here.
        async for response in await self._next("BulkSave", requests, context):
            yield response

    async def Export(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in await self._next("Export", request, context):
            yield response

    async def WatchMigration(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in await self._next("WatchMigration", request, context):
            yield response

    async def Verify(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in await self._next("Verify", request, context):
            yield response


def streaming(
    generate: Callable[[Any, Context], AsyncIterator[Any]],
) -> Step:
    """Answer a stream with what an asynchronous generator yields."""

    async def step(request: Any, context: Context) -> Any:
        return generate(request, context)

    return step


def save_all(batches: list[storage_pb2.BulkSaveRequest], *, stop_after: int | None = None) -> Step:
    """Acknowledge batch after batch; break off once so many are acknowledged."""

    async def generate(requests: Any, context: Context) -> AsyncIterator[Any]:
        done = 0
        async for request in requests:
            if done == stop_after:
                await unavailable()(request, context)
            batches.append(request)
            done += 1
            yield storage_pb2.BulkSaveResponse(
                sequence=request.sequence, saved=len(request.messages)
            )

    return streaming(generate)


def at_phase(phase: int) -> migration_pb2.Migration:
    """Return a migration in that phase."""
    return migration_pb2.Migration(phase=migration_pb2.Phase.ValueType(phase))


async def connect(script: Script, client: AsyncClient) -> None:
    """Connect ``client``, so that the next call needs no time for that."""
    script.play("Get", answer(storage_pb2.GetResponse()))
    await client.get("x")
    script.requests.clear()


async def serve(script: Script, *, port: int = 0) -> grpc.aio.Server:
    """Serve a script on this machine; its address is in ``script.address``."""
    server = grpc.aio.server()
    storage_pb2_grpc.add_StorageServiceServicer_to_server(script, server)
    session_pb2_grpc.add_SessionServiceServicer_to_server(script, server)
    file_pb2_grpc.add_FileServiceServicer_to_server(script, server)
    migration_pb2_grpc.add_MigrationServiceServicer_to_server(script, server)
    script.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    await server.start()
    return server
