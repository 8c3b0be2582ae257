"""Client process that sends batches of BulkSave.

    python -m tools.benchmarks.bulk_client ADDRESS FILE

The file contains serialized requests, each prefixed with its length in four bytes, so that the
measured time includes no serialization. Four batches are in flight, as with the client library.
Prints the seconds, the number of saved messages, and the share of a core that this process used.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import uvloop
from grpc import aio

from sagastore.v1 import storage_pb2

_IN_FLIGHT = 4
_OPTIONS = [("grpc.max_send_message_length", -1)]


def write_frames(path: Path, requests: Iterable[bytes]) -> None:
    """Write the file that this program reads."""
    with path.open("wb") as file:
        for request in requests:
            file.write(struct.pack(">I", len(request)) + request)


def read_frames(path: Path) -> list[bytes]:
    """Return the requests in such a file."""
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):
        (size,) = struct.unpack_from(">I", data, place)
        found.append(data[place + 4 : place + 4 + size])
        place += 4 + size
    return found


async def main() -> None:
    """Send the file and print the result."""
    address, file = sys.argv[1:]
    requests = read_frames(Path(file))
    async with aio.insecure_channel(address, options=_OPTIONS) as channel:
        await channel.channel_ready()
        slots = asyncio.Semaphore(_IN_FLIGHT)

        async def sent() -> AsyncIterator[bytes]:
            for request in requests:
                await slots.acquire()
                yield request

        call: Any = channel.stream_stream(
            "/sagastore.v1.StorageService/BulkSave",
            response_deserializer=storage_pb2.BulkSaveResponse.FromString,
        )
        saved = 0
        began, used = time.perf_counter(), time.process_time()
        async for answer in call(sent()):
            saved += answer.saved
            slots.release()
        seconds = time.perf_counter() - began
        processor = (time.process_time() - used) / seconds
    result = {"seconds": seconds, "saved": saved, "processor": processor}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    uvloop.run(main())
