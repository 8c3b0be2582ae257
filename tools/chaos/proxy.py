"""TCP proxy with controllable faults, in a separate process.

    client ── link "clients" ── server ── link "postgres" ── PostgreSQL

A link forwards bytes and can delay, throttle or hold them in either direction, reset its
connections (RST), close one half of them (FIN), or refuse new ones. *Up* is the direction from the
accepting side to the target. Held bytes are neither lost nor acknowledged to the application, as on
a network that drops all packets. They are forwarded when the hold ends, unless the connection was
reset.

As a module this is the process itself: it reads and answers one JSON document per line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Literal

Direction = Literal["up", "down"]
DIRECTIONS: tuple[Direction, Direction] = ("up", "down")

_CHUNK = 64 * 1024
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing sends RST."""


class _Policy:
    """How a link treats its traffic."""

    def __init__(self) -> None:
        self.delay = 0.0
        """Seconds of delay per chunk."""
        self.jitter = 0.0
        """Maximum additional random delay in seconds."""
        self.rate = 0
        """Bytes per second per direction and connection; 0: unlimited."""
        self.refuse = False
        """Whether new connections are reset."""
        self.gates = {direction: asyncio.Event() for direction in DIRECTIONS}
        for gate in self.gates.values():
            gate.set()

    def set(
        self,
        delay: float = 0.0,
        jitter: float = 0.0,
        rate: int = 0,
        hold: tuple[Direction, ...] = (),
        *,
        refuse: bool = False,
    ) -> None:
        self.delay, self.jitter, self.rate, self.refuse = delay, jitter, rate, refuse
        for direction, gate in self.gates.items():
            if direction in hold:
                gate.clear()
            else:
                gate.set()


class _Pair:
    """Accepted connection and its connection to the target."""

    def __init__(
        self,
        policy: _Policy,
        near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._policy = policy
        self._writers: dict[Direction, asyncio.StreamWriter] = {"up": far[1], "down": near[1]}
        self._readers: dict[Direction, asyncio.StreamReader] = {"up": near[0], "down": far[0]}

    async def run(self) -> None:
        """Forward bytes until both directions have ended, or one has failed."""
        try:
            await asyncio.gather(*(self._forward_bytes(direction) for direction in DIRECTIONS))
        except OSError:
            self.cut()
        finally:
            for writer in self._writers.values():
                writer.close()

    async def _forward_bytes(self, direction: Direction) -> None:
        policy, reader, writer = self._policy, self._readers[direction], self._writers[direction]
        while data := await reader.read(_CHUNK if not policy.rate else 4096):
            await policy.gates[direction].wait()
            if policy.delay or policy.jitter:
                await asyncio.sleep(policy.delay + random.random() * policy.jitter)
            if policy.rate:
                await asyncio.sleep(len(data) / policy.rate)
            await policy.gates[direction].wait()
            writer.write(data)
            await writer.drain()
        await policy.gates[direction].wait()
        self.half_close(direction)

    def half_close(self, direction: Direction) -> None:
        """Send FIN in one direction; the other direction stays open."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writers[direction].write_eof()

    def cut(self) -> None:
        """Reset both connections; bytes in transit are lost."""
        for writer in self._writers.values():
            reset(writer)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with RST."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        if connection is not None and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


class _Link:
    """Listens on its own port and forwards to ``to``."""

    def __init__(self, to: str) -> None:
        self.to = to
        self.policy = _Policy()
        self.accepted = 0
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut(1.0)

    def cut(self, share: float) -> int:
        """Reset a random share of the connections; return their number."""
        chosen = [pair for pair in self._pairs if random.random() < share]
        for pair in chosen:
            pair.cut()
        return len(chosen)

    def half_close(self, direction: Direction) -> int:
        for pair in self._pairs:
            pair.half_close(direction)
        return len(self._pairs)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.policy.refuse:
            reset(writer)
            return
        try:
            far = await _connect(self.to)
        except OSError:
            reset(writer)
            return
        pair = _Pair(self.policy, (reader, writer), far)
        self._pairs.add(pair)
        try:
            await pair.run()
        finally:
            self._pairs.discard(pair)


async def _connect(to: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if to.startswith("/"):
        return await asyncio.open_unix_connection(to)
    host, _, port = to.rpartition(":")
    return await asyncio.open_connection(host, int(port))


class _Service:
    """Executes the commands of the controlling process."""

    def __init__(self) -> None:
        self._links: dict[str, _Link] = {}

    async def answer(self, line: str) -> dict[str, Any]:
        order: dict[str, Any] = json.loads(line)
        name, link = order.pop("do"), order.pop("link")
        if name == "open":
            if link in self._links:
                self._links[link].close()
            self._links[link] = _Link(order["to"])
            return {"port": await self._links[link].open()}
        known = self._links[link]
        actions: dict[str, Callable[..., Any]] = {
            "set": known.policy.set,
            "cut": known.cut,
            "half_close": known.half_close,
            "lead": lambda to: setattr(known, "to", to),
            "accepted": lambda: known.accepted,
            "close": known.close,
        }
        return {"done": actions[name](**order)}


async def serve() -> None:
    """Execute commands from standard input until it ends."""
    service = _Service()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        try:
            answer = await service.answer(line.decode())
        except (KeyError, TypeError, ValueError, OSError) as exc:
            answer = {"error": repr(exc)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


# ---------------------------------------------------------------------- control


class Proxy:
    """Handle of the proxy process. Its calls block for about a millisecond."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl+C is handled by the campaign, which then ends the proxy.
            start_new_session=True,
        )

    def open(self, link: str, to: str) -> int:
        """Create a link to ``host:port`` or to the path of a socket; return its port."""
        port: int = self._order("open", link, to=to)["port"]
        return port

    def lead(self, link: str, to: str) -> None:
        """Forward new connections of a link to another target."""
        self._order("lead", link, to=to)

    def set(
        self,
        link: str,
        delay: float = 0.0,
        jitter: float = 0.0,
        rate: int = 0,
        hold: tuple[Direction, ...] = (),
        *,
        refuse: bool = False,
    ) -> None:
        """Set the faults of a link; omitted options are reset."""
        self._order("set", link, delay=delay, jitter=jitter, rate=rate, hold=hold, refuse=refuse)

    def cut(self, link: str, share: float = 1.0) -> int:
        """Reset a share of the connections of a link; return their number."""
        return int(self._order("cut", link, share=share)["done"])

    def half_close(self, link: str, direction: Direction) -> int:
        """Close one direction of all connections of a link; return their number."""
        return int(self._order("half_close", link, direction=direction)["done"])

    def accepted(self, link: str) -> int:
        """Return the number of accepted connections."""
        return int(self._order("accepted", link)["done"])

    def close(self) -> None:
        """End the process and all its connections."""
        with self._lock:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()

    def _order(self, do: str, link: str, **facts: Any) -> dict[str, Any]:
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps({"do": do, "link": link, **facts}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the proxy process has ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the proxy could not {do}: {answer['error']}")
        return answer


@contextlib.contextmanager
def running_proxy() -> Iterator[Proxy]:
    """Run a proxy for the duration of the context."""
    proxy = Proxy()
    try:
        yield proxy
    finally:
        proxy.close()


def _run(work: Coroutine[Any, Any, None]) -> None:
    # asyncio would log every reset connection.
    asyncio.run(_quietly(work))


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    await work


if __name__ == "__main__":
    _run(serve())
