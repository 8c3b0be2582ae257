"""Server in this process, on a real store and a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from grpc import aio

from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from sagastore_server.migration.single_store import SingleStore
from sagastore_server.rpc.admission import Limits
from sagastore_server.rpc.server import RpcServer, ServerOptions
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.phase import Phase


class Served:
    """Running server."""

    def __init__(self, server: RpcServer, address: str) -> None:
        """Wrap ``server``, which listens on ``address``."""
        self.server = server
        self.address = address

    def channel(self, *options: tuple[str, Any]) -> aio.Channel:
        """Return a separate connection."""
        own = ("grpc.use_local_subchannel_pool", 1)
        return aio.insecure_channel(self.address, options=(own, *options))

    @asynccontextmanager
    async def stub(self, *options: tuple[str, Any]) -> AsyncIterator[Any]:
        """Create a connection for the duration of the context.

        The type is Any, because the published types of a stub are those of blocking calls.
        """
        async with self.channel(*options) as channel:
            yield StorageServiceStub(channel)


@asynccontextmanager
async def served(backend: StorageBackend, limits: Limits) -> AsyncIterator[Served]:
    """Serve the open ``backend`` for the duration of the context."""
    control = SingleStore(backend, Phase.SQLITE_ONLY)
    server = RpcServer(backend, control, ServerOptions(limits))
    port = await server.start("127.0.0.1:0")
    try:
        await server.start_accepting()
        yield Served(server, f"127.0.0.1:{port}")
    finally:
        await server.stop()
