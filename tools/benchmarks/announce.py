"""Prints the address of a server for the process that started it."""

from __future__ import annotations

import sys

from grpc import aio


async def announced(server: aio.Server) -> None:
    """Start a server on any free port and print its address."""
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"127.0.0.1:{port}\n")
    sys.stdout.flush()
