"""Echo server on grpc.aio: the reference for every call.

It answers with the bytes of the request without parsing them, which is the upper bound of a
grpc.aio server. A stream of batches is read and discarded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from grpc import aio

from sagastore.v1 import storage_pb2
from tools.benchmarks.announce import announced


async def _echo(request: bytes, context: object) -> bytes:
    del context
    return request


async def _sink(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
    del context
    answer = storage_pb2.BulkSaveResponse(sequence=1).SerializeToString()
    async for _ in requests:
        yield answer


class _Handler(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method; handlers without codecs receive bytes."""
        if details.method.endswith("/BulkSave"):
            return grpc.stream_stream_rpc_method_handler(_sink)
        return grpc.unary_unary_rpc_method_handler(_echo)


async def main() -> None:
    """Serve until the process ends."""
    server = aio.server()
    server.add_generic_rpc_handlers((_Handler(),))
    await announced(server)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
