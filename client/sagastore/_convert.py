"""Conversion between messages and protobuf messages; the hot path of bulk calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from sagastore import _checks as checks
from sagastore import _json, _time
from sagastore._checks import invalid
from sagastore._enums import Store, _Wire
from sagastore._model import (
    ExportBatch,
    Message,
    Page,
    SaveResult,
    SearchResult,
    _fill,
)
from sagastore.errors import InvalidArgumentError
from sagastore.v1 import message_pb2, storage_pb2

__all__ = [
    "export_batch",
    "invalid",
    "member",
    "message_from_pb",
    "message_page",
    "message_to_pb",
    "naming",
    "same_message",
    "save_result",
    "search_page",
    "time_of",
    "timestamp_to_pb",
]

W = TypeVar("W", bound=_Wire)

_new: Callable[[type[Message]], Message] = Message.__new__
_PbMessage = message_pb2.Message


def member(kind: type[W], value: W | str, name: str) -> W:
    """Return a member of an enumeration, which may be given by its name.

    Raises:
        InvalidArgumentError: There is no such member.
    """
    with naming(name):
        return kind.of(value)


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Convert a ValueError or TypeError in the block to InvalidArgumentError for `field`."""
    try:
        yield
    except InvalidArgumentError:
        raise
    except UnicodeEncodeError as exc:
        text = ascii(exc.object[:40])
        raise invalid(field, f"{text} contains a lone surrogate, which is not text") from None
    except (TypeError, ValueError) as exc:
        raise invalid(field, str(exc)) from None


def message_to_pb(
    message: Message, id: str, *, keep_created_at: bool = False
) -> message_pb2.Message:
    """Return the protobuf message for a message with the given id.

    It has `created_at` only with `keep_created_at`.

    Raises:
        InvalidArgumentError: A value cannot be encoded; the error names its
            field.
    """
    try:
        _require_texts(message, id)
        metadata = message.metadata
        pb = _PbMessage(
            id=id,
            provider=message.provider,
            role=message.role,
            content=message.content,
            tags=message.tags,
            metadata_json=_json.dumps(metadata) if metadata else "",
            session_id=message.session_id,
        )
        if message.timestamp is not None:
            stamp = pb.timestamp
            stamp.seconds, stamp.nanos = _time.to_wire(message.timestamp, "timestamp")
        if keep_created_at and message.created_at is not None:
            stamp = pb.created_at
            stamp.seconds, stamp.nanos = _time.to_wire(message.created_at, "created_at")
    except InvalidArgumentError:
        raise
    except (TypeError, ValueError) as exc:
        raise _explain(message, id, exc) from None
    return pb


def _require_texts(message: Message, id: str) -> None:
    """Require strings: protobuf also takes bytes, and None for an empty string."""
    if not (
        type(message.content) is str
        and type(message.provider) is str
        and type(message.role) is str
        and type(id) is str
    ):
        for name in ("provider", "role", "content"):
            checks.text(getattr(message, name), name)
        checks.text(id, "id")
    if message.session_id is not None and type(message.session_id) is not str:
        checks.text(message.session_id, "session_id")
    for index, tag in enumerate(message.tags):
        if type(tag) is not str:
            checks.text(tag, f"tags[{index}]")


def _explain(message: Message, id: str, cause: Exception) -> InvalidArgumentError:
    """Return an error with the invalid field, which protobuf's errors do not name."""
    texts: dict[str, object] = {
        "id": id,
        "provider": message.provider,
        "role": message.role,
        "content": message.content,
        "session_id": "" if message.session_id is None else message.session_id,
    }
    texts |= {f"tags[{index}]": tag for index, tag in enumerate(message.tags)}
    for name, value in texts.items():
        try:
            checks.text(value, name)
        except InvalidArgumentError as exc:
            return exc
    if isinstance(cause, UnicodeEncodeError):
        return invalid("metadata", "contains a lone surrogate, which is not text")
    field = str(cause).partition(":")[0].partition(".")[0].partition("[")[0]
    known = field in {"metadata", "timestamp", "created_at"}
    return invalid(field if known else "message", str(cause))


def message_from_pb(pb: message_pb2.Message) -> Message:
    """Return the message for a protobuf message from the server."""
    has = pb.HasField
    timestamp = created_at = None
    if has("timestamp"):
        stamp = pb.timestamp
        timestamp = _time.from_wire(stamp.seconds, stamp.nanos)
    if has("created_at"):
        stamp = pb.created_at
        created_at = _time.from_wire(stamp.seconds, stamp.nanos)
    metadata = pb.metadata_json
    return _fill(
        _new(Message),
        pb.provider,
        pb.role,
        pb.content,
        pb.id,
        tuple(pb.tags),
        timestamp,
        _json.loads(metadata) if metadata and metadata != "{}" else {},
        pb.session_id if has("session_id") else None,
        created_at,
        pb.revision,
        pb.sequence,
    )


def time_of(pb: Any, field: str) -> datetime | None:
    """Return the time in a field of a protobuf message; None if it is unset."""
    if not pb.HasField(field):
        return None
    stamp: Timestamp = getattr(pb, field)
    return _time.from_wire(stamp.seconds, stamp.nanos)


def timestamp_to_pb(value: datetime, name: str) -> Timestamp:
    """Return an aware time as a protobuf message.

    Raises:
        InvalidArgumentError: The time is out of range.
    """
    try:
        seconds, nanos = _time.to_wire(value, name)
    except (TypeError, ValueError) as exc:
        raise invalid(name, str(exc)) from None
    return Timestamp(seconds=seconds, nanos=nanos)


def same_message(sent: message_pb2.Message, stored: message_pb2.Message) -> bool:
    """Report whether the stored message equals the message sent.

    If no timestamp was sent, the server chose it, and it is not compared.
    """
    return (
        sent.id == stored.id
        and sent.provider == stored.provider
        and sent.role == stored.role
        and sent.content == stored.content
        and sent.tags == stored.tags
        and sent.HasField("session_id") == stored.HasField("session_id")
        and sent.session_id == stored.session_id
        and (not sent.HasField("timestamp") or sent.timestamp == stored.timestamp)
        and _json.same(sent.metadata_json or "{}", stored.metadata_json or "{}")
    )


def save_result(pb: storage_pb2.SaveResponse, *, created: bool | None = None) -> SaveResult:
    """Return the result of a save; `created` overrides the value of the response."""
    return SaveResult(
        id=pb.id,
        revision=pb.revision,
        created=pb.created if created is None else created,
        durable_on=frozenset(map(Store, pb.durable_on)),
        position=pb.position,
    )


def message_page(pb: storage_pb2.ListResponse) -> Page[Message]:
    """Return a page of a session's messages."""
    return Page(tuple(map(message_from_pb, pb.messages)), pb.next_page_token, pb.position)


def search_page(pb: storage_pb2.SearchResponse) -> Page[SearchResult]:
    """Return a page of search results."""
    return Page(tuple(map(_search_result, pb.results)), pb.next_page_token, pb.position)


def _search_result(pb: storage_pb2.SearchResult) -> SearchResult:
    return SearchResult(message_from_pb(pb.message), pb.score, pb.snippet)


def export_batch(pb: storage_pb2.ExportResponse) -> ExportBatch:
    """Return a batch of an export."""
    return ExportBatch(tuple(map(message_from_pb, pb.messages)), pb.resume_token, pb.position)
