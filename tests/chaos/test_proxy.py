"""Proxy: forwarding and its faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import pytest

from tools.chaos.proxy import Proxy, running_proxy

WITHIN = 60.0


class Echo(NamedTuple):
    """Echo server, and a link to it."""

    proxy: Proxy
    port: int
    ended: asyncio.Queue[str]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with running_proxy() as running:
        yield running


@pytest.fixture
async def echo(proxy: Proxy) -> AsyncIterator[Echo]:
    ended: asyncio.Queue[str] = asyncio.Queue()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                writer.write(data)
            ended.put_nowait("end")
            writer.write(b"last words")
            await writer.drain()
        except ConnectionError:
            ended.put_nowait("reset")
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield Echo(proxy, proxy.open("link", f"127.0.0.1:{port}"), ended)
        proxy.cut("link")


async def said(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, word: bytes) -> bytes:
    writer.write(word)
    async with asyncio.timeout(WITHIN):
        return await reader.readexactly(len(word))


async def test_proxy_forwards_both_directions_independently(echo: Echo) -> None:
    reader, writer = await echo.connect()
    assert await said(reader, writer, b"hello") == b"hello"
    writer.write_eof()
    async with asyncio.timeout(WITHIN):
        assert await echo.ended.get() == "end"
        assert await reader.read() == b"last words"
    writer.close()


async def test_cut_resets_both_sides(echo: Echo) -> None:
    reader, writer = await echo.connect()
    await said(reader, writer, b"hello")
    assert echo.proxy.cut("link") == 1
    async with asyncio.timeout(WITHIN):
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert await echo.ended.get() == "reset"
    writer.close()


async def test_held_bytes_are_delivered_after_release(echo: Echo) -> None:
    reader, writer = await echo.connect()
    await said(reader, writer, b"hello")
    echo.proxy.set("link", hold=("down",))
    writer.write(b"held")
    # A second link shows that the bytes were received and answered.
    other = echo.proxy.open("other", f"127.0.0.1:{echo.port}")
    second = await asyncio.open_connection("127.0.0.1", other)
    second[1].write(b"too")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await reader.read(10)
    echo.proxy.set("link")
    async with asyncio.timeout(WITHIN):
        assert await reader.readexactly(4) == b"held"
        assert await second[0].readexactly(3) == b"too"
    for each in (writer, second[1]):
        each.close()


async def test_half_close_sends_fin_to_server(echo: Echo) -> None:
    reader, writer = await echo.connect()
    await said(reader, writer, b"hello")
    assert echo.proxy.half_close("link", "up") == 1
    async with asyncio.timeout(WITHIN):
        assert await echo.ended.get() == "end"
        assert await reader.read() == b"last words"
    writer.close()


async def test_delay_and_rate_slow_a_link(echo: Echo) -> None:
    reader, writer = await echo.connect()
    loop = asyncio.get_running_loop()
    for policy in ({"delay": 0.1}, {"rate": 50}):
        echo.proxy.set("link", **policy)
        began = loop.time()
        assert await said(reader, writer, b"hello") == b"hello"
        # In both directions.
        assert loop.time() - began >= 0.19
    writer.close()


async def a_byte(echo: Echo) -> bytes:
    """Connect and read; a reset may arrive before the connection is reported."""
    reader, writer = await echo.connect()
    try:
        return await reader.readexactly(1)
    finally:
        writer.close()


async def test_refused_and_unreachable_connections_are_reset(echo: Echo) -> None:
    echo.proxy.set("link", refuse=True)
    with pytest.raises(ConnectionResetError):
        await a_byte(echo)
    echo.proxy.set("link")
    echo.proxy.lead("link", "127.0.0.1:1")
    with pytest.raises(ConnectionResetError):
        await a_byte(echo)
    assert echo.proxy.accepted("link") == 2


async def test_invalid_command_is_an_error(proxy: Proxy) -> None:
    with pytest.raises(RuntimeError, match="could not cut"):
        proxy.cut("no such link")
