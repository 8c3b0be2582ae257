"""Export of messages as JSON Lines without decoding their metadata.

It does not use `AsyncClient.export_batches`, because a `Message` has its metadata as
Python values, where 1.50 is 1.5. The JSON text from the server, which is canonical, is
written unchanged.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from json.encoder import encode_basestring
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from sagastore import AsyncClient, Consistency
from sagastore._async_reads import exported
from sagastore.commandline.sanitize import json_safe
from sagastore.v1 import message_pb2, storage_pb2

__all__ = ["Batch", "export_lines", "line_of"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Batch(NamedTuple):
    """A batch of messages as JSON Lines.

    Attributes:
        lines: The lines, each with its newline.
        messages: Number of messages.
        resume_token: Token for the messages after the batch.
    """

    lines: bytes
    messages: int
    resume_token: str


async def export_lines(
    client: AsyncClient,
    resume_token: str,
    stream_timeout: float,
    consistency: Consistency | None,
) -> AsyncGenerator[Batch, None]:
    """Yield all messages in the order in which they were first stored; resume broken streams.

    Args:
        client: The client.
        resume_token: Where to start: the token of a batch, or "".
        stream_timeout: Maximum seconds between responses.
        consistency: The state to read; None for the latest.

    Raises:
        SagaStoreError: The export failed.
    """
    start = storage_pb2.ExportRequest(resume_token=resume_token)
    responses = exported(client._caller, start, stream_timeout, consistency)
    async with aclosing(responses):
        async for response in responses:
            lines = "".join(map(line_of, response.messages))
            yield Batch(lines.encode(), len(response.messages), response.resume_token)


def line_of(message: message_pb2.Message) -> str:
    """Return a message as a JSON line, with the fields that an import reads."""
    text = encode_basestring
    session = text(message.session_id) if message.HasField("session_id") else "null"
    created = f'"{_iso(message.created_at)}"' if message.HasField("created_at") else "null"
    return json_safe(
        f'{{"id": {text(message.id)}, "provider": {text(message.provider)}, '
        f'"role": {text(message.role)}, "content": {text(message.content)}, '
        f'"tags": [{", ".join(map(text, message.tags))}], '
        f'"timestamp": "{_iso(message.timestamp)}", '
        f'"metadata": {message.metadata_json or "{}"}, "session_id": {session}, '
        f'"created_at": {created}}}\n'
    )


def _iso(stamp: Timestamp) -> str:
    return (_EPOCH + timedelta(0, stamp.seconds, stamp.nanos // 1000)).isoformat()
