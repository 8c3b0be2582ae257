"""Conversion between messages and protobuf messages; the hot path of bulk calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from sagastore import _json, _time
from sagastore._enums import Store
from sagastore._model import (
    BatchGetResult,
    ExportBatch,
    Message,
    Page,
    SaveResult,
    SearchResult,
    _fill,
)
from sagastore.errors import FieldViolation, InvalidArgumentError
from sagastore.v1 import message_pb2, storage_pb2

__all__ = [
    "batch_get_result",
    "export_batch",
    "invalid",
    "message_from_pb",
    "message_page",
    "message_to_pb",
    "naming",
    "same_message",
    "save_result",
    "search_page",
    "timestamp_to_pb",
]

_new: Callable[[type[Message]], Message] = Message.__new__
_PbMessage = message_pb2.Message


def invalid(field: str, description: str) -> InvalidArgumentError:
    """Return the error for one invalid field."""
    text = description if description.startswith(field) else f"{field}: {description}"
    error = InvalidArgumentError(text)
    error.violations = (FieldViolation(field, description.removeprefix(f"{field}: ")),)
    return error


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
    except (TypeError, ValueError) as exc:
        raise _explain(message, id, exc) from None
    return pb


def _explain(message: Message, id: str, cause: Exception) -> InvalidArgumentError:
    """Return an error with the invalid field, which protobuf's errors do not name."""
    for name in ("id", "provider", "role", "content", "session_id"):
        value: object = id if name == "id" else getattr(message, name)
        if value is None and name == "session_id":
            continue
        problem = _text_problem(value)
        if problem:
            return invalid(name, problem)
    for index, tag in enumerate(message.tags):
        problem = _text_problem(tag)
        if problem:
            return invalid(f"tags[{index}]", problem)
    if isinstance(cause, UnicodeEncodeError):
        return invalid("metadata", "contains a lone surrogate, which is not text")
    field = str(cause).partition(":")[0].partition(".")[0].partition("[")[0]
    return invalid(
        field if field in ("metadata", "timestamp", "created_at") else "message", str(cause)
    )


def _text_problem(value: object) -> str:
    if not isinstance(value, str):
        return f"expected a str, got {type(value).__name__}"
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        return (
            f"contains the lone surrogate U+{ord(value[exc.start]):04X} at position {exc.start}, "
            "which is not text"
        )
    return ""


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


def timestamp_to_pb(value: datetime, name: str) -> Timestamp:
    """Return a time as a protobuf message.

    Raises:
        InvalidArgumentError: The time is naive or out of range.
    """
    try:
        _time.require_aware(value, name)
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
    )


def batch_get_result(pb: storage_pb2.BatchGetResponse) -> BatchGetResult:
    """Return the result of a BatchGet."""
    return BatchGetResult(tuple(map(message_from_pb, pb.messages)), tuple(pb.missing_ids))


def message_page(pb: storage_pb2.ListResponse) -> Page[Message]:
    """Return a page of a session's messages."""
    return Page(tuple(map(message_from_pb, pb.messages)), pb.next_page_token)


def search_page(pb: storage_pb2.SearchResponse) -> Page[SearchResult]:
    """Return a page of search results."""
    return Page(tuple(map(_search_result, pb.results)), pb.next_page_token)


def _search_result(pb: storage_pb2.SearchResult) -> SearchResult:
    return SearchResult(message_from_pb(pb.message), pb.score, pb.snippet)


def export_batch(pb: storage_pb2.ExportResponse) -> ExportBatch:
    """Return a batch of an export."""
    return ExportBatch(tuple(map(message_from_pb, pb.messages)), pb.resume_token)
