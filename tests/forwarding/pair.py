"""A holder and a forwarder in this process, on real sockets and on one store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from grpc import aio

from sagastore.v1.migration_pb2_grpc import MigrationServiceStub
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from sagastore_server.rpc.forwarding import Forwarding, ForwardingOptions
from sagastore_server.rpc.holder_connection import Target
from sagastore_server.rpc.server import RpcServer, ServerOptions
from sagastore_server.runtime.supervisor import Supervisor
from tests.e2e.scripted import Scripted, Timed
from tests.support.memory import MemoryState
from tests.support.waiting import until

STORE = "store-1"
"""Identity of the store of the holder."""


class Node:
    """A server and stubs that call it."""

    def __init__(self, state: MemoryState, options: ServerOptions) -> None:
        """Create a server on ``state``."""
        self.backend = Timed(state)
        self.control = Scripted()
        self.server = RpcServer(self.backend, self.control, options)
        self.address = ""

    async def start(self) -> None:
        """Listen and accept calls."""
        await self.backend.open()
        port = await self.server.start("127.0.0.1:0")
        await self.server.start_accepting()
        self.address = f"127.0.0.1:{port}"
        self.channel = aio.insecure_channel(
            self.address, options=(("grpc.use_local_subchannel_pool", 1),)
        )
        # The published types of stubs are those of blocking calls.
        self.storage: Any = StorageServiceStub(self.channel)
        self.migration: Any = MigrationServiceStub(self.channel)

    async def close(self) -> None:
        """Stop."""
        await self.channel.close()
        await self.server.stop()


class Pair:
    """A holder, and a forwarder that is to use the same store later."""

    def __init__(self, holder: ServerOptions, forwarder: ServerOptions) -> None:
        """Create both with these options."""
        state = MemoryState()
        self.forwarding = Forwarding(ForwardingOptions(tracer=forwarder.tracer), Supervisor())
        self.holder = Node(state, holder._replace(store_id=lambda: STORE))
        self.forwarder = Node(state, forwarder._replace(forwarding=self.forwarding))

    def connect(self, store_id: str = STORE) -> None:
        """Forward to the holder."""
        self.forwarding.set_target(Target(self.holder.address, store_id))

    async def connected(self) -> None:
        """Forward to the holder, and wait until that is possible."""
        self.connect()
        await until(lambda: self.forwarding.state().is_serving)


@asynccontextmanager
async def pair(
    holder: ServerOptions = ServerOptions(),  # noqa: B008 - immutable
    forwarder: ServerOptions = ServerOptions(),  # noqa: B008 - immutable
    *,
    connected: bool = True,
) -> AsyncIterator[Pair]:
    """Run a holder and a forwarder for the duration of the context."""
    made = Pair(holder, forwarder)
    await made.holder.start()
    try:
        await made.forwarder.start()
        try:
            if connected:
                await made.connected()
            yield made
        finally:
            await made.forwarder.close()
    finally:
        await made.holder.close()
