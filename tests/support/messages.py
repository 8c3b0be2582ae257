"""Messages for RPC tests."""

from __future__ import annotations

import uuid
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from sagastore.v1 import message_pb2, storage_pb2


def new_id() -> str:
    """Return an id that no other test uses."""
    return str(uuid.uuid4())


def message(**fields: Any) -> message_pb2.Message:
    """Return a valid message; ``fields`` override its defaults."""
    usual: dict[str, Any] = {
        "id": new_id(),
        "provider": "openai",
        "role": "user",
        "content": "what is a saga",
    }
    return message_pb2.Message(**(usual | fields))


def batch(
    sequence: int, *messages: message_pb2.Message, **fields: Any
) -> storage_pb2.BulkSaveRequest:
    """Return a batch of ``messages``."""
    return storage_pb2.BulkSaveRequest(sequence=sequence, messages=messages, **fields)


def at(seconds: int, nanos: int = 0) -> Timestamp:
    """Return a Timestamp."""
    return Timestamp(seconds=seconds, nanos=nanos)
