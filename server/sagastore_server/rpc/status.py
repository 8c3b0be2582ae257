"""Status mapping: one table from errors to gRPC status codes and details.

Every status carries ``google.rpc.ErrorInfo`` with the domain ``sagastore`` and a stable reason,
and ``google.rpc.RequestInfo`` with the id of the call. The table gives the code and further
details. An error that is not in the table is a defect: the caller gets INTERNAL with the id of the
call, and the log gets the id and the traceback.

Details are sent in the trailing metadata. A gRPC client accepts 8 KiB of it by default, and
otherwise drops the whole response, so this module bounds their size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from sagastore_server.interfaces.errors import (
    NoRequestError,
    OverloadedError,
    PermissionDeniedError,
    RequestTooLargeError,
    SearchTooLongError,
    UnauthenticatedError,
)
from sagastore_server.storage.errors import (
    AlreadyExistsError,
    FencedError,
    InvalidRequestError,
    NotFoundError,
    NotReplicatedError,
    PreconditionError,
    ResponseTooLargeError,
    RevisionMismatchError,
    StorageError,
    StorageFullError,
    UnavailableError,
    Violation,
)

DOMAIN = "sagastore"
STATUS_KEY = "grpc-status-details-bin"

_MAX_MESSAGE = 500
"""Bytes of the status message; gRPC escapes each non-ASCII byte into three."""
_MAX_DETAILS = 3200
"""Bytes of violations, or blockers; base64 adds a third."""
_MAX_REASON = 400
"""Characters of one violation's text."""
_SUBJECT = "migration"
"""Subject of the violations of a PreconditionFailure."""
_FENCED_RETRY_MS = 1000
"""Time for a client to find the server that holds the migration lease."""


class Refusal(NamedTuple):
    """A status as the caller receives it."""

    code: grpc.StatusCode
    message: str
    details: bytes
    """A serialized ``google.rpc.Status``, for the trailing metadata."""


class _Rule(NamedTuple):
    code: grpc.StatusCode
    details: Callable[[Any], Iterator[Message]]
    metadata: Callable[[Any], dict[str, str]]


def refusal_of(error: Exception, call_id: str) -> Refusal:
    """Return the status of ``error`` in the call ``call_id``; never raises."""
    for kind in type(error).__mro__:
        rule = _TABLE.get(kind)
        if rule is not None:
            break
    else:
        return _defect(getattr(error, "reason", None) if _is_storage(error) else None, call_id)
    message = _cut(str(error), _MAX_MESSAGE)
    info = _info(str(getattr(error, "reason", "UNKNOWN")), rule.metadata(error))
    named = error_details_pb2.RequestInfo(request_id=call_id)
    return _refusal(rule.code, message, [info, *rule.details(error), named])


def one_line(violations: list[Violation]) -> str:
    """Join ``violations`` into one line of bounded length."""
    return _cut("; ".join(f"{field} {reason}" for field, reason in violations), _MAX_MESSAGE)


def _is_storage(error: Exception) -> bool:
    return isinstance(error, StorageError)


def _defect(reason: str | None, call_id: str) -> Refusal:
    """Return the status of a defect, which reveals nothing of the error but a public reason."""
    message = f"internal error; see the server log, reference {call_id}"
    details: list[Message] = [
        _info(reason or "INTERNAL", {"reference": call_id}),
        error_details_pb2.RequestInfo(request_id=call_id),
    ]
    return _refusal(grpc.StatusCode.INTERNAL, message, details)


def _refusal(code: grpc.StatusCode, message: str, details: list[Message]) -> Refusal:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return Refusal(code, message, status.SerializeToString())


def _info(reason: str, metadata: dict[str, str]) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)


def _no_details(_: StorageError) -> Iterator[Message]:
    return iter(())


def _bad_request(error: InvalidRequestError) -> Iterator[Message]:
    """List as many violations as fit."""
    bad_request = error_details_pb2.BadRequest()
    room = _MAX_DETAILS
    for shown, (field, reason) in enumerate(error.violations):
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(field, _MAX_REASON), description=_cut(reason, _MAX_REASON)
        )
        room -= entry.ByteSize() + 4
        if room < 0:
            more = f"and {len(error.violations) - shown} more invalid fields"
            bad_request.field_violations.add(field=entry.field, description=more)
            break
        bad_request.field_violations.append(entry)
    yield bad_request


def _precondition_failure(error: PreconditionError) -> Iterator[Message]:
    """List as many blockers as fit."""
    failure = error_details_pb2.PreconditionFailure()
    room = _MAX_DETAILS
    for shown, (reason, detail) in enumerate(error.blockers):
        entry = error_details_pb2.PreconditionFailure.Violation(
            type=reason, subject=_SUBJECT, description=_cut(detail, _MAX_REASON)
        )
        room -= entry.ByteSize() + 4
        if room < 0:
            more = f"and {len(error.blockers) - shown} more"
            failure.violations.add(type=reason, subject=_SUBJECT, description=more)
            break
        failure.violations.append(entry)
    yield failure


def _not_replicated(error: NotReplicatedError) -> Iterator[Message]:
    yield from _precondition_failure(error)
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(error.retry_after * 1000))
        yield retry


def _retry_elsewhere(_: FencedError) -> Iterator[Message]:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(_FENCED_RETRY_MS)
    yield retry


def _retry(error: StorageFullError | UnavailableError | OverloadedError) -> Iterator[Message]:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(int(error.retry_after * 1000))
    yield retry


def _retry_at_once(_: StorageError) -> Iterator[Message]:
    yield error_details_pb2.RetryInfo(retry_delay={})


def _no_metadata(_: StorageError) -> dict[str, str]:
    return {}


def _violation_metadata(error: InvalidRequestError) -> dict[str, str]:
    return {"violations": str(len(error.violations))}


def _blocker_metadata(error: PreconditionError) -> dict[str, str]:
    return {"blockers": str(len(error.blockers))}


def _id_metadata(error: NotFoundError) -> dict[str, str]:
    return {"id": error.message_id}


def _exists_metadata(error: AlreadyExistsError) -> dict[str, str]:
    return {"id": error.message_id, "stored_revision": str(error.revision)}


def _mismatch_metadata(error: RevisionMismatchError) -> dict[str, str]:
    stored = {} if error.stored is None else {"stored_revision": str(error.stored)}
    return {"id": error.message_id, "expected_revision": str(error.expected), **stored}


_CODE = grpc.StatusCode
_TABLE: dict[type, _Rule] = {
    InvalidRequestError: _Rule(_CODE.INVALID_ARGUMENT, _bad_request, _violation_metadata),
    NotFoundError: _Rule(_CODE.NOT_FOUND, _no_details, _id_metadata),
    AlreadyExistsError: _Rule(_CODE.ALREADY_EXISTS, _no_details, _exists_metadata),
    RevisionMismatchError: _Rule(_CODE.ABORTED, _no_details, _mismatch_metadata),
    # Retry at once: a smaller request succeeds, a later one does not.
    ResponseTooLargeError: _Rule(_CODE.RESOURCE_EXHAUSTED, _retry_at_once, _no_metadata),
    StorageFullError: _Rule(_CODE.RESOURCE_EXHAUSTED, _retry, _no_metadata),
    UnavailableError: _Rule(_CODE.UNAVAILABLE, _retry, _no_metadata),
    UnauthenticatedError: _Rule(_CODE.UNAUTHENTICATED, _no_details, _no_metadata),
    PermissionDeniedError: _Rule(_CODE.PERMISSION_DENIED, _no_details, _no_metadata),
    OverloadedError: _Rule(_CODE.RESOURCE_EXHAUSTED, _retry, _no_metadata),
    # Without a retry delay: the same request will never be accepted.
    RequestTooLargeError: _Rule(_CODE.RESOURCE_EXHAUSTED, _no_details, _no_metadata),
    # gRPC's code for a wrong number of messages.
    NoRequestError: _Rule(_CODE.UNIMPLEMENTED, _no_details, _no_metadata),
    # Not RESOURCE_EXHAUSTED, which clients retry: the same search would take as long again.
    SearchTooLongError: _Rule(_CODE.DEADLINE_EXCEEDED, _no_details, _no_metadata),
    PreconditionError: _Rule(_CODE.FAILED_PRECONDITION, _precondition_failure, _blocker_metadata),
    NotReplicatedError: _Rule(_CODE.FAILED_PRECONDITION, _not_replicated, _blocker_metadata),
    # The request had no effect and is valid: the server that holds the migration lease accepts
    # it, and the client or its load balancer has the address of that server. Clients do not
    # retry FAILED_PRECONDITION.
    FencedError: _Rule(_CODE.UNAVAILABLE, _retry_elsewhere, _no_metadata),
}


def _cut(text: str, size: int) -> str:
    """Return ``text`` in one line, truncated with an ellipsis to ``size`` bytes of UTF-8."""
    line = " ".join(text.split()) if "\n" in text or "\r" in text else text
    if not line.isascii():
        # File names may contain lone surrogates, which protobuf rejects.
        line = line.encode("utf-8", "replace").decode("utf-8")
    if len(line) * 4 <= size:
        return line
    raw = line.encode("utf-8", "replace")
    if len(raw) <= size:
        return line
    return raw[: size - 3].decode("utf-8", "ignore") + "…"
