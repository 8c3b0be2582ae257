"""`Message.size`, which limits pages, against the size on the wire."""

from __future__ import annotations

import pytest

from sagastore.v1 import storage_pb2
from sagastore_server.rpc import convert
from sagastore_server.storage import validation
from sagastore_server.storage.canonical_json import MAX_BYTES
from sagastore_server.storage.limits import LARGEST_MESSAGE, MAX_PAGE_BYTES
from sagastore_server.storage.model import Message

WIDE = "\U0001f680"


def _message(char: str, *, long: bool) -> Message:
    return Message(
        id=char * validation.MAX_ID,
        provider=char * validation.MAX_PROVIDER,
        role=char * validation.MAX_ROLE,
        content=char * (validation.MAX_CONTENT if long else 1),
        tags=(char * validation.MAX_TAG,) * (validation.MAX_TAGS if long else 0),
        timestamp=validation.MAX_TIMESTAMP,
        metadata='{"a": "' + "x" * (MAX_BYTES - 9) + '"}' if long else "{}",
        session_id=char * validation.MAX_SESSION_ID,
        created_at=validation.MIN_TIMESTAMP,
        revision=2**63 - 1,
        sequence=2**63 - 1,
    )


@pytest.mark.parametrize("char", ["x", "é", "你", WIDE])
@pytest.mark.parametrize("long", [False, True])
def test_message_size_is_an_upper_bound_of_the_wire_size(char: str, long: bool) -> None:
    message = _message(char, long=long)
    page = storage_pb2.ListResponse()
    convert.fill(page.messages.add(), message)
    assert page.ByteSize() <= message.size
    assert page.ByteSize() < LARGEST_MESSAGE
    assert (message.size < MAX_PAGE_BYTES) is (not long or char == "x")
