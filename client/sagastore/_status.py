"""Conversion of a gRPC status to an exception of the library."""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from sagastore import _wire, errors
from sagastore._transport import Cause, Security, explain, is_broken, is_unsent
from sagastore.errors import SagaStoreError

__all__ = ["NOT_REPLICATED", "from_rpc_error", "is_transient"]

_TRAILER: Final = "grpc-status-details-bin"
_DOMAIN: Final = "sagastore"
_PLAIN: Final = Security()

_CLASSES: Final[dict[grpc.StatusCode, type[SagaStoreError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExistsError,
    grpc.StatusCode.ABORTED: errors.AbortedError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPreconditionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: errors.UnavailableError,
    grpc.StatusCode.UNAUTHENTICATED: errors.UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDeniedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceededError,
    grpc.StatusCode.UNIMPLEMENTED: errors.UnimplementedError,
    grpc.StatusCode.INTERNAL: errors.InternalError,
    grpc.StatusCode.UNKNOWN: errors.InternalError,
    grpc.StatusCode.DATA_LOSS: errors.InternalError,
}

NOT_REPLICATED = "NOT_REPLICATED"
"""Reason of a write that was refused because no synchronous standby of PostgreSQL streams."""


def is_transient(error: SagaStoreError) -> bool:
    """Report whether the same call may succeed later.

    A request or response that is too large stays too large. A required standby of PostgreSQL that
    is missing may return while the server says so.
    """
    if isinstance(error, errors.ResourceExhaustedError):
        return not error.too_large
    if isinstance(error, errors.UnauthenticatedError):
        return error.outdated
    if isinstance(error, errors.FailedPreconditionError):
        return error.reason == NOT_REPLICATED and error.retry_after is not None
    return isinstance(error, errors.UnavailableError) and not error.misconfigured


def from_rpc_error(
    error: grpc.aio.AioRpcError,
    call: str,
    address: str,
    security: Security = _PLAIN,
    *,
    timeout: float | None = None,
    connected: bool = True,
) -> SagaStoreError:
    """Return the exception for a failed call.

    Args:
        error: The exception of gRPC.
        call: Name of the RPC.
        address: The server.
        security: How the connection is secured.
        timeout: Seconds that the call had, if it had a limit.
        connected: Whether there is a connection now.
    """
    code = error.code()
    text = " ".join((error.details() or "").split())
    details = _Details(error)
    if not details.from_server and is_broken(code, text):
        code = grpc.StatusCode.UNAVAILABLE
    kind = _CLASSES.get(code, SagaStoreError)
    cause = (
        Cause(text or f"{call} failed with {code.name}")
        if details.from_server
        else explain(
            code,
            text,
            call,
            address,
            security=security,
            timeout=timeout,
            connected=connected,
        )
    )
    result = kind(
        _with_violations(cause.line, details.violations),
        code=code.name,
        reason=details.reason,
        domain=details.domain,
        metadata=details.metadata,
        details=details.others,
        reference=details.reference,
        retry_after=details.retry_after,
    )
    if isinstance(result, errors.InvalidArgumentError):
        result.violations = tuple(details.field_violations)
    elif isinstance(result, errors.FailedPreconditionError):
        result.violations = tuple(details.precondition_violations)
    elif isinstance(result, errors.UnavailableError):
        result.unsent = not details.from_server and is_unsent(text)
        result.misconfigured = cause.misconfigured
    return result


def _with_violations(line: str, violations: list[str]) -> str:
    """Append the violations that the line does not contain."""
    missing = [text for text in violations if text.rpartition(": ")[2] not in line]
    return f"{line}: {'; '.join(missing)}" if missing else line


class _Details:
    """The details of google.rpc.Status that came with an error."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.reason = ""
        self.domain = ""
        self.metadata: dict[str, str] = {}
        self.reference = ""
        self.retry_after: float | None = None
        self.field_violations: list[errors.FieldViolation] = []
        self.precondition_violations: list[errors.PreconditionViolation] = []
        self.others: list[errors.Detail] = []
        for key, value in error.trailing_metadata() or ():
            if key == _TRAILER and isinstance(value, bytes):
                self._read_status(value)

    @property
    def from_server(self) -> bool:
        """True if the error comes from a SagaStore server, not from gRPC."""
        return self.domain == _DOMAIN

    @property
    def violations(self) -> list[str]:
        """Every violation as text."""
        fields = [f"{v.field}: {v.description}" for v in self.field_violations]
        # One line each, as the text of the status, with which they are compared.
        return [
            " ".join(text.split())
            for text in (*fields, *(v.description for v in self.precondition_violations))
        ]

    def _read_status(self, data: bytes) -> None:
        try:
            status = _wire.message_class("google.rpc.Status").FromString(data)
            for item in status.details:
                self._read(item.type_url.rpartition("/")[2], item.value)
        except DecodeError:
            pass  # The status code and text remain.

    def _read(self, name: str, value: bytes) -> None:
        reader = _READERS.get(name)
        if reader is None:
            self.others.append(errors.Detail(name, value))
        else:
            reader(self, _wire.message_class(name).FromString(value))

    def read_error_info(self, info: Any) -> None:
        self.reason, self.domain = info.reason, info.domain
        self.metadata = dict(info.metadata)
        self.reference = self.reference or self.metadata.get("reference", "")

    def read_bad_request(self, bad: Any) -> None:
        self.field_violations += (
            errors.FieldViolation(v.field, v.description, v.reason) for v in bad.field_violations
        )

    def read_precondition_failure(self, failure: Any) -> None:
        self.precondition_violations += (
            errors.PreconditionViolation(v.type, v.subject, v.description)
            for v in failure.violations
        )

    def read_retry_info(self, info: Any) -> None:
        delay = info.retry_delay
        self.retry_after = max(0.0, delay.seconds + delay.nanos / 1e9)

    def read_request_info(self, info: Any) -> None:
        self.reference = info.request_id or self.reference


_READERS: Final = {
    "google.rpc.ErrorInfo": _Details.read_error_info,
    "google.rpc.BadRequest": _Details.read_bad_request,
    "google.rpc.PreconditionFailure": _Details.read_precondition_failure,
    "google.rpc.RetryInfo": _Details.read_retry_info,
    "google.rpc.RequestInfo": _Details.read_request_info,
}
