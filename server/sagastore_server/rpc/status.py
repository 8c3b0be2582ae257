"""From errors to gRPC status: the one table.

Every error carries ``google.rpc.ErrorInfo`` with the domain ``sagastore`` and a
stable reason; the table says which code and which further details it gets. What
the table does not know is a defect: the caller gets INTERNAL and the id of the call,
the log gets the same id and the traceback. Every other error names its call as well.

Details travel in the trailing metadata, for which a gRPC client grants 8 KiB by
default and otherwise drops the whole answer. So their size is bounded here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from sagastore_server.interfaces.errors import (
    OverloadedError,
    PermissionDeniedError,
    SearchTooLongError,
    UnauthenticatedError,
)
from sagastore_server.storage.errors import (
    AlreadyExistsError,
    FencedError,
    InvalidRequestError,
    NotFoundError,
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
"""Bytes of the public line; gRPC escapes each non-ASCII byte into three."""
_MAX_DETAILS = 3200
"""Bytes of violations, or blockers; base64 adds a third."""
_MAX_REASON = 400
"""Characters of one violation's text."""
_SUBJECT = "migration"
"""What the blockers of a PreconditionFailure are about."""
_FENCED_RETRY_MS = 1000
"""Time for a client to find the server that holds the migration now."""


class Refusal(NamedTuple):
    """What the caller is told."""

    code: grpc.StatusCode
    message: str
    details: bytes
    """A serialized ``google.rpc.Status``, for the trailing metadata."""


class _Rule(NamedTuple):
    code: grpc.StatusCode
    details: Callable[[Any], Iterator[Message]]
    metadata: Callable[[Any], dict[str, str]]


def refusal_of(error: Exception, call_id: str) -> Refusal:
    """Return what the caller is told of ``error`` in the call ``call_id``; never raises."""
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
    """Say all of ``violations`` in one line of bounded length."""
    return _cut("; ".join(f"{field} {reason}" for field, reason in violations), _MAX_MESSAGE)


def _is_storage(error: Exception) -> bool:
    return isinstance(error, StorageError)


def _defect(reason: str | None, call_id: str) -> Refusal:
    """Tell of a defect: nothing of the error itself but a reason that is public."""
    message = f"internal error; the server's log has it under the reference {call_id}"
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


def _nothing(_: StorageError) -> Iterator[Message]:
    return iter(())


def _bad_request(error: InvalidRequestError) -> Iterator[Message]:
    """List the violations; where they are very many, as many as fit."""
    answer = error_details_pb2.BadRequest()
    room = _MAX_DETAILS
    for shown, (field, reason) in enumerate(error.violations):
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(field, _MAX_REASON), description=_cut(reason, _MAX_REASON)
        )
        room -= entry.ByteSize() + 4
        if room < 0:
            more = f"and {len(error.violations) - shown} more fields break rules"
            answer.field_violations.add(field=entry.field, description=more)
            break
        answer.field_violations.append(entry)
    yield answer


def _precondition_failure(error: PreconditionError) -> Iterator[Message]:
    """List the blockers; where they are very many, as many as fit."""
    answer = error_details_pb2.PreconditionFailure()
    room = _MAX_DETAILS
    for shown, (reason, detail) in enumerate(error.blockers):
        entry = error_details_pb2.PreconditionFailure.Violation(
            type=reason, subject=_SUBJECT, description=_cut(detail, _MAX_REASON)
        )
        room -= entry.ByteSize() + 4
        if room < 0:
            more = f"and {len(error.blockers) - shown} more"
            answer.violations.add(type=reason, subject=_SUBJECT, description=more)
            break
        answer.violations.append(entry)
    yield answer


def _retry_elsewhere(_: FencedError) -> Iterator[Message]:
    answer = error_details_pb2.RetryInfo()
    answer.retry_delay.FromMilliseconds(_FENCED_RETRY_MS)
    yield answer


def _retry(error: StorageFullError | UnavailableError | OverloadedError) -> Iterator[Message]:
    answer = error_details_pb2.RetryInfo()
    answer.retry_delay.FromMilliseconds(int(error.retry_after * 1000))
    yield answer


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
    NotFoundError: _Rule(_CODE.NOT_FOUND, _nothing, _id_metadata),
    AlreadyExistsError: _Rule(_CODE.ALREADY_EXISTS, _nothing, _exists_metadata),
    RevisionMismatchError: _Rule(_CODE.ABORTED, _nothing, _mismatch_metadata),
    # At once: waiting does not make the answer smaller, asking for less does.
    ResponseTooLargeError: _Rule(_CODE.RESOURCE_EXHAUSTED, _retry_at_once, _no_metadata),
    StorageFullError: _Rule(_CODE.RESOURCE_EXHAUSTED, _retry, _no_metadata),
    UnavailableError: _Rule(_CODE.UNAVAILABLE, _retry, _no_metadata),
    UnauthenticatedError: _Rule(_CODE.UNAUTHENTICATED, _nothing, _no_metadata),
    PermissionDeniedError: _Rule(_CODE.PERMISSION_DENIED, _nothing, _no_metadata),
    OverloadedError: _Rule(_CODE.RESOURCE_EXHAUSTED, _retry, _no_metadata),
    # Not RESOURCE_EXHAUSTED, which clients repeat: the same search would take as long again.
    SearchTooLongError: _Rule(_CODE.DEADLINE_EXCEEDED, _nothing, _no_metadata),
    PreconditionError: _Rule(_CODE.FAILED_PRECONDITION, _precondition_failure, _blocker_metadata),
    # Nothing is wrong with the request: another server holds the migration and takes it,
    # and a client has, or its balancer has, that server's address. FAILED_PRECONDITION
    # would tell it to give up. Nothing of the request was stored here.
    FencedError: _Rule(_CODE.UNAVAILABLE, _retry_elsewhere, _no_metadata),
}


def _cut(text: str, size: int) -> str:
    """Shorten ``text`` to ``size`` bytes of UTF-8, in one line, and say that it was."""
    line = " ".join(text.split()) if "\n" in text or "\r" in text else text
    if not line.isascii():
        # The name of a file may hold what is no text; protobuf refuses that.
        line = line.encode("utf-8", "replace").decode("utf-8")
    if len(line) * 4 <= size:
        return line
    raw = line.encode("utf-8", "replace")
    if len(raw) <= size:
        return line
    return raw[: size - 3].decode("utf-8", "ignore") + "…"
