"""Consistency of calls: takes the requirement from the request, and fills in the position.

Which methods have the fields is decided once, when they are registered. Where the store tells no
positions (SQLite, and every phase of a migration but the last), a call costs one look at the
context more, and ``consistency`` of a request is only checked for its form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from sagastore.v1 import message_pb2
from sagastore_server.interfaces import consistency
from sagastore_server.interfaces.consistency import Level
from sagastore_server.rpc import page_tokens
from sagastore_server.rpc.page_tokens import Scalar
from sagastore_server.storage.errors import InvalidRequestError, Violation

_REQUEST_FIELD, _RESPONSE_FIELD = "consistency", "position"

_NO_POSITION = (
    "is not a position of SagaStore; send the position of a response unchanged, or leave it empty "
    "to read the latest state"
)

Require = Callable[[Any], None]
"""Sets the requirement of the running call from its request."""

Locate = Callable[[Any], None]
"""Sets the position of a response from the running call."""


def requirement_reader(method: MethodDescriptor) -> Require | None:
    """Return what takes the requirement from the requests of ``method``; None: they have none."""
    field = method.input_type.fields_by_name.get(_REQUEST_FIELD)
    is_one = field is not None and field.message_type is message_pb2.Consistency.DESCRIPTOR
    return _require if is_one else None


def position_writer(method: MethodDescriptor) -> Locate | None:
    """Return what sets the position in the responses of ``method``; None: they have none."""
    return _locate if _RESPONSE_FIELD in method.output_type.fields_by_name else None


def position_text() -> str:
    """Return the position of the running call as responses carry it; empty if it is not known."""
    position = consistency.noted()
    return "" if position is None else position.encoded()


def _require(request: Any) -> None:
    """Set the requirement of the running call.

    Raises:
        InvalidRequestError: ``at_least`` is not a position.

    """
    if request.HasField(_REQUEST_FIELD):
        consistency.require(required_by(request.consistency))


def required_by(wanted: message_pb2.Consistency) -> consistency.Consistency:
    """Return the requirement of a message.

    Raises:
        InvalidRequestError: ``at_least`` is not a position.

    """
    match wanted.WhichOneof("requirement"):
        case "any_replica":
            return consistency.Consistency(Level.ANY_REPLICA)
        case "at_least" if wanted.at_least:
            try:
                position = consistency.decoded(wanted.at_least)
            except ValueError:
                violation = Violation("consistency.at_least", _NO_POSITION)
                raise InvalidRequestError((violation,)) from None
            return consistency.Consistency(Level.AT_LEAST, position)
    return consistency.LATEST


def _locate(response: Message | bytes) -> None:
    """Set the position of a response; one that is serialized already has it."""
    position = consistency.noted()
    if position is not None and not isinstance(response, bytes):
        response.position = position.encoded()  # type: ignore[attr-defined]


# ------------------------------------------------------------------ tokens


def token_of(key: bytes, cursor: Sequence[Scalar]) -> str:
    """Return the token for the rest of a result after ``cursor``.

    It carries the position of the call, so that no later page is older than this one, if the
    request names a consistency. Other requests read the latest state, which is never older;
    their tokens stay as earlier versions of the server know them.
    """
    position = consistency.noted() if consistency.is_required() else None
    return page_tokens.encode(key, cursor, position)


def cursor_of(
    key: bytes, token: str, field: str, shape: tuple[type, ...] | None = None
) -> tuple[Scalar, ...]:
    """Return the cursor of a token, and require that the call reads nothing older than its page.

    Args and errors are those of `page_tokens.decode`.
    """
    cursor, position = page_tokens.decode(key, token, field, shape)
    consistency.follow(position)
    return cursor
