"""Conversion between sessions and protobuf messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sagastore import _json
from sagastore._checks import invalid, wrong_type
from sagastore._convert import message_from_pb, message_to_pb, naming, time_of
from sagastore._enums import Store
from sagastore._ids import new_id
from sagastore._model import Message, Page
from sagastore._session_model import AppendResult, SavedMessage, Session, TruncateResult
from sagastore.errors import InvalidArgumentError
from sagastore.v1 import message_pb2, session_pb2

__all__ = [
    "append_result",
    "messages_to_pb",
    "session",
    "session_page",
    "session_to_pb",
    "truncate_result",
]


def messages_to_pb(session_id: str, messages: Iterable[Message]) -> Sequence[message_pb2.Message]:
    """Return the messages of a turn, each with an id and with the session.

    Raises:
        InvalidArgumentError: An item is not a message, or a value cannot be
            encoded; the error names its field.
    """
    return [_message(session_id, message, n) for n, message in enumerate(messages)]


def _message(session_id: str, message: Message, index: int) -> message_pb2.Message:
    if not isinstance(message, Message):
        raise wrong_type(f"messages[{index}]", "a Message", message)
    try:
        pb = message_to_pb(message, message.id or new_id())
    except InvalidArgumentError as exc:
        (violation,) = exc.violations
        field = f"messages[{index}].{violation.field}"
        raise invalid(field, violation.description) from None
    if message.session_id is None:
        pb.session_id = session_id
    return pb


def session_to_pb(
    session_id: str, title: str | None, metadata: Mapping[str, Any] | None
) -> session_pb2.Session:
    """Return a session with the values that a caller can set.

    Raises:
        InvalidArgumentError: A value cannot be encoded; the error names its
            field.
    """
    pb = session_pb2.Session(session_id=session_id, title=title or "")
    with naming("metadata"):
        pb.metadata_json = _json.dumps(metadata) if metadata else ""
    return pb


def session(pb: session_pb2.Session) -> Session:
    """Return a session."""
    metadata = pb.metadata_json
    return Session(
        session_id=pb.session_id,
        title=pb.title,
        metadata=_json.loads(metadata) if metadata and metadata != "{}" else {},
        message_count=pb.message_count,
        first_time=time_of(pb, "first_time"),
        last_time=time_of(pb, "last_time"),
        created_at=time_of(pb, "created_at"),
        updated_at=time_of(pb, "updated_at"),
        revision=pb.revision,
        providers=tuple(pb.providers),
        first_message=pb.first_message,
        last_sequence=pb.last_sequence,
    )


def append_result(pb: session_pb2.AppendResponse, new: frozenset[str]) -> AppendResult:
    """Return the result of an append.

    Args:
        pb: The response.
        new: The ids that the client assigned: their messages are new, whatever
            the response to a repeated call says.
    """
    return AppendResult(
        session=session(pb.session),
        saved=tuple(
            SavedMessage(s.id, s.revision, s.sequence, s.created or s.id in new) for s in pb.saved
        ),
        durable_on=frozenset(map(Store, pb.durable_on)),
        position=pb.position,
    )


def truncate_result(pb: session_pb2.TruncateSessionResponse, *, complete: bool) -> TruncateResult:
    """Return the result of a truncation."""
    removed = tuple(map(message_from_pb, pb.removed))
    return TruncateResult(removed, session(pb.session), complete, pb.position)


def session_page(pb: session_pb2.ListSessionsResponse) -> Page[Session]:
    """Return a page of sessions."""
    return Page(tuple(map(session, pb.sessions)), pb.next_page_token, pb.position)
