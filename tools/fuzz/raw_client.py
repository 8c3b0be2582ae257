"""Sends raw bytes and parses the HTTP/2 frames of the response."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import unquote

from grpc import StatusCode
from hpack import Decoder, HPACKError
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import Frame, HeadersFrame, RstStreamFrame

from tools.fuzz.answer_check import DETAILS, Answer
from tools.fuzz.fuzz_input import Input

_CODES = {code.value[0]: code for code in StatusCode}
_SLOWLY = 0.005
"""Seconds between two bytes."""
_HEAD = 9


async def send(address: str, one: Input) -> list[Answer]:
    """Execute the steps of ``one`` on a separate connection; return the statuses received.

    A closed connection, or no response at all, is not an answer.
    """
    async with connected(address) as (reader, writer):
        responses = _ResponseReader(reader)
        # After the server has closed the connection, every further step fails.
        with contextlib.suppress(ConnectionError):
            for what, value in one.steps:
                await _step(writer, responses, what, value)
        return responses.answers


@contextlib.asynccontextmanager
async def connected(
    address: str,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect; drop the connection at the end without a shutdown."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _step(
    writer: asyncio.StreamWriter, responses: _ResponseReader, what: str, value: bytes | int
) -> None:
    if isinstance(value, int):
        if what == "half-close":
            writer.write_eof()
        elif what == "hold":
            await asyncio.sleep(value / 1000)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(value / 1000):
                    await responses.until_closed()
    elif what == "slowly":
        for byte in value:
            writer.write(bytes([byte]))
            await asyncio.sleep(_SLOWLY)
    else:
        writer.write(value)
        # A server that stops reading must not block the client.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await writer.drain()


class _ResponseReader:
    """Reads frames and collects the statuses in them."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._decoder = Decoder()
        self.answers: list[Answer] = []

    async def until_closed(self) -> None:
        """Read until the connection ends or a stream is answered or reset."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                frame, length = Frame.parse_frame_header(
                    memoryview(await self._reader.readexactly(_HEAD))
                )
                body = await self._reader.readexactly(length)
                try:
                    frame.parse_body(memoryview(body))
                except HyperframeError as exc:
                    raise AssertionError(f"the server sent a broken frame: {exc}") from exc
                if isinstance(frame, RstStreamFrame) or self._is_answer(frame):
                    return

    def _is_answer(self, frame: Frame) -> bool:
        if not isinstance(frame, HeadersFrame):
            return False
        try:
            raw = self._decoder.decode(frame.data, raw=True)
        except HPACKError as exc:
            raise AssertionError(f"the server sent broken headers: {exc}") from exc
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
        if "grpc-status" not in headers:
            return False
        details = headers.get(DETAILS)
        self.answers.append(
            Answer(
                _CODES[int(headers["grpc-status"])],
                unquote(headers.get("grpc-message", "")),
                None if details is None else base64.b64decode(details + "=" * (-len(details) % 4)),
            )
        )
        return True
