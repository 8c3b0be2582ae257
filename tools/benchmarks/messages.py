"""Any number of realistic messages: the same dialogues repeated with new ids and later times.

``SAGASTORE_BENCH_MESSAGES`` names a file of JSON Lines (optionally compressed with xz) as the
source; the default is the sample of the tests.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from sagastore.v1 import message_pb2, storage_pb2
from sagastore_server.storage.canonical_json import canonical_object
from sagastore_server.storage.model import Message

VARIABLE = "SAGASTORE_BENCH_MESSAGES"
SAMPLE = Path(__file__).parents[2] / "tests" / "data" / "sgd-sample.jsonl"

RARE_EVERY = 5000
"""One message in so many contains a unique word, like an order number: the rare words."""

BATCH = 1000
"""Messages per BulkSave batch, and per transaction of the driver loops."""

Request = dict[str, Any]
"""Request in protobuf's JSON form."""


class Item(NamedTuple):
    """Message before it is sent."""

    id: str
    provider: str
    role: str
    content: str
    tags: list[str]
    timestamp: datetime
    metadata: dict[str, Any]
    session_id: str


@lru_cache(maxsize=1)
def dialogues() -> list[dict[str, Any]]:
    """Return the dialogues that all messages are derived from."""
    path = Path(os.environ.get(VARIABLE) or SAMPLE)
    data = path.read_bytes()
    text = (lzma.decompress(data) if path.suffix == ".xz" else data).decode()
    return [json.loads(line) for line in text.splitlines()]


def source() -> str:
    """Return the source of the messages, for the report."""
    return f"{len(dialogues()):,} dialogue messages of {os.environ.get(VARIABLE) or SAMPLE.name}"


def message_id(name: str, number: int) -> str:
    """Return the id of a message: deterministic, and as scattered as a random UUID."""
    digest = hashlib.blake2b(f"{name}-{number}".encode(), digest_size=16).digest()
    return str(uuid.UUID(bytes=digest, version=4))


def rare_word(number: int) -> str:
    """Return the unique word of message ``number``, a multiple of RARE_EVERY."""
    return f"order{number:07}"


def items(name: str, start: int, count: int) -> Iterator[Item]:
    """Yield ``count`` messages from ``start`` on; ``name`` separates their ids from others."""
    known = dialogues()
    for number in range(start, start + count):
        turn, place = divmod(number, len(known))
        said = known[place]
        content = said["content"]
        if number % RARE_EVERY == 0:
            content = f"{content} {rare_word(number)}"
        yield Item(
            message_id(name, number),
            said["provider"],
            said["role"],
            content,
            said["tags"],
            datetime.fromisoformat(said["timestamp"]).astimezone(UTC) + timedelta(days=turn),
            {**said["metadata"], "round": turn},
            f"{said['session_id']}-{turn}",
        )


def save_requests(name: str, start: int, count: int) -> list[Request]:
    """Return Save requests."""
    return [{"message": _as_json(item)} for item in items(name, start, count)]


def get_requests(name: str, stored: int, count: int) -> list[Request]:
    """Return Get requests, spread evenly over the first ``stored`` messages of a name."""
    step = max(1, stored // count)
    return [{"id": message_id(name, number * step % stored)} for number in range(count)]


def _as_json(item: Item) -> Request:
    return {
        "id": item.id,
        "provider": item.provider,
        "role": item.role,
        "content": item.content,
        "tags": item.tags,
        "timestamp": item.timestamp.isoformat().replace("+00:00", "Z"),
        "metadataJson": json.dumps(item.metadata),
        "sessionId": item.session_id,
    }


def import_line(item: Item) -> str:
    """Return a line of the file that ``sagastore import`` reads."""
    fields = item._asdict() | {"timestamp": item.timestamp.isoformat()}
    return json.dumps(fields, ensure_ascii=False) + "\n"


def batches(name: str, start: int, count: int) -> Iterator[bytes]:
    """Yield serialized BulkSave requests of a thousand messages each."""
    for number, first in enumerate(range(start, start + count, BATCH)):
        size = min(BATCH, start + count - first)
        request = storage_pb2.BulkSaveRequest(
            sequence=number, messages=[_as_pb(item) for item in items(name, first, size)]
        )
        yield request.SerializeToString()


def _as_pb(item: Item) -> message_pb2.Message:
    moment = Timestamp()
    moment.FromDatetime(item.timestamp)
    return message_pb2.Message(
        id=item.id,
        provider=item.provider,
        role=item.role,
        content=item.content,
        tags=item.tags,
        timestamp=moment,
        metadata_json=json.dumps(item.metadata),
        session_id=item.session_id,
    )


def stored_messages(name: str, start: int, count: int) -> list[Message]:
    """Return messages as the stores hold them, for the driver loops."""
    return [_as_stored(item, number) for number, item in enumerate(items(name, start, count), 1)]


def _as_stored(item: Item, revision: int) -> Message:
    micros = round(item.timestamp.timestamp() * 1_000_000)
    metadata = canonical_object(json.dumps(item.metadata))
    values = (*item[:4], tuple(item.tags), micros, metadata, item.session_id)
    return Message(*values, micros, revision, revision)


def chunks(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """Split messages into batches."""
    return [messages[start : start + BATCH] for start in range(0, len(messages), BATCH)]
