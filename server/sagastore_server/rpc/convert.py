"""Conversion between protobuf messages and the values of the storage contract.

It runs in every call, so it avoids work: times use integer arithmetic, and a message is filled in
place in the response instead of being built and copied.
"""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from sagastore.v1 import message_pb2, storage_pb2
from sagastore_server.storage.model import Message, OnConflict, SaveResult, Store
from sagastore_server.storage.validation import Sent

_MICRO = 1_000_000

STORES: dict[Store, storage_pb2.Store.ValueType] = {
    Store.SQLITE: storage_pb2.STORE_SQLITE,
    Store.POSTGRESQL: storage_pb2.STORE_POSTGRESQL,
}

ON_CONFLICT: dict[int, OnConflict] = {
    storage_pb2.ON_CONFLICT_UNSPECIFIED: OnConflict.REPLACE,
    storage_pb2.ON_CONFLICT_REPLACE: OnConflict.REPLACE,
    storage_pb2.ON_CONFLICT_SKIP: OnConflict.SKIP,
}


def sent_of(source: message_pb2.Message, message_id: str, *, keep_created_at: bool = False) -> Sent:
    """Return the fields of a received message; ``revision`` and ``sequence`` are ignored.

    ``message_id`` is its id, already assigned if the sender gave none. ``created_at`` is ignored
    as well, unless ``keep_created_at`` is set.
    """
    timestamp = created_at = None
    if source.HasField("timestamp"):
        sent = source.timestamp
        timestamp = sent.seconds, sent.nanos
    if keep_created_at and source.HasField("created_at"):
        sent = source.created_at
        created_at = sent.seconds, sent.nanos
    return (
        message_id,
        source.provider,
        source.role,
        source.content,
        tuple(source.tags),
        timestamp,
        source.metadata_json,
        source.session_id if source.HasField("session_id") else None,
        created_at,
    )


def fill(target: message_pb2.Message, source: Message) -> None:
    """Write a stored message into an empty message of a response."""
    target.id = source.id
    target.provider = source.provider
    target.role = source.role
    target.content = source.content
    if source.tags:
        target.tags.extend(source.tags)
    fill_time(target.timestamp, source.timestamp)
    target.metadata_json = source.metadata
    if source.session_id is not None:
        target.session_id = source.session_id
    if source.created_at is not None:
        fill_time(target.created_at, source.created_at)
    target.revision = source.revision
    target.sequence = source.sequence


def fill_time(target: Timestamp, micros: int) -> None:
    """Write microseconds since 1970 into a Timestamp, whose nanos are never negative."""
    # An assignment of 0 sets the field as well, so the epoch is not lost.
    target.seconds, rest = divmod(micros, _MICRO)
    if rest:
        target.nanos = rest * 1000


def saved(result: SaveResult) -> storage_pb2.SaveResponse:
    """Return the response to a save."""
    return storage_pb2.SaveResponse(
        id=result.id,
        revision=result.revision,
        created=result.created,
        durable_on=[STORES[store] for store in result.durable_on],
    )
