"""Python client process that replaces ghz.

    python -m tools.benchmarks.python_client ADDRESS METHOD FILE ...

Sends its part of the serialized requests in a file over its own connections, and prints the results
as JSON. See load.py.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop
from google.protobuf import json_format
from grpc import aio

from sagastore.v1 import storage_pb2

_CONNECTIONS = 4


def _requests(method: str, file: Path, part: int, parts: int) -> list[bytes]:
    kind = getattr(storage_pb2, f"{method}Request")
    wanted = json.loads(file.read_text(encoding="utf-8"))[part::parts]
    return [json_format.ParseDict(one, kind()).SerializeToString() for one in wanted]


async def main() -> None:
    """Send the requests; load.py passes the options."""
    address, method, file, in_flight, rate, part, parts = sys.argv[1:]
    requests = _requests(method, Path(file), int(part), int(parts))
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [aio.insecure_channel(address, options=options) for _ in range(_CONNECTIONS)]
    calls: list[Any] = [
        one.unary_unary(f"/sagastore.v1.StorageService/{method}") for one in channels
    ]
    for channel in channels:
        await channel.channel_ready()
    done: list[tuple[float, float, str]] = []
    waiting = iter(requests)
    began, clock = time.time(), time.perf_counter()
    turns = itertools.count()

    async def worker(call: Any, mine: Iterator[bytes]) -> None:
        for request in mine:
            if float(rate):
                due = clock + next(turns) / float(rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
            start, failure = time.perf_counter(), ""
            try:
                await call(request, timeout=60)
            except aio.AioRpcError as error:
                failure = f"{error.code().name}: {error.details()}"
            done.append((time.time(), time.perf_counter() - start, failure))

    await asyncio.gather(
        *(worker(calls[number % _CONNECTIONS], waiting) for number in range(int(in_flight)))
    )
    ended = time.time()
    for channel in channels:
        await channel.close()
    sys.stdout.write(json.dumps({"began": began, "ended": ended, "calls": done}))


if __name__ == "__main__":
    uvloop.run(main())
