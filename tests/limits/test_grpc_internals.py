"""The private interfaces of gRPC that `rpc.grpc_internals` relies on, on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc import aio

from sagastore_server.rpc.grpc_internals import CallCounts, create_server


class Server:
    """A server whose only method, ``/s/m``, waits for `release`."""

    def __init__(self) -> None:
        self.server, self.call_counts = create_server(())
        self.release = asyncio.Event()
        handlers: dict[str, Any] = {"m": grpc.unary_unary_rpc_method_handler(self._method)}
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", handlers),))

    @asynccontextmanager
    async def method(self) -> AsyncIterator[Callable[[bytes], Any]]:
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            method: Any = channel.unary_unary("/s/m")
            yield method
        await self.server.stop(None)

    async def _method(self, request: bytes, _: object) -> bytes:
        await self.release.wait()
        return request


async def counted(server: Server, expected: CallCounts) -> None:
    """Wait for the counts; the test's time limit ends a wait in vain."""
    while server.call_counts() != expected:  # noqa: ASYNC110 - gRPC sends no event
        await asyncio.sleep(0.001)


async def test_counts_follow_calls_from_start_to_end() -> None:
    server = Server()
    assert server.call_counts() == CallCounts(0, 0)
    async with server.method() as method:
        calls = [asyncio.ensure_future(method(b"x")) for _ in range(3)]
        await counted(server, CallCounts(3, 0))
        server.release.set()
        await asyncio.gather(*calls)
        await counted(server, CallCounts(3, 3))


async def test_counts_include_cancelled_calls() -> None:
    server = Server()
    async with server.method() as method:
        call = method(b"x")
        await counted(server, CallCounts(1, 0))
        call.cancel()
        await counted(server, CallCounts(1, 1))


async def test_counts_of_two_servers_are_separate() -> None:
    first, second = Server(), Server()
    first.release.set()
    async with first.method() as method, second.method():
        await method(b"x")
        await counted(first, CallCounts(1, 1))
        assert second.call_counts() == CallCounts(0, 0)
