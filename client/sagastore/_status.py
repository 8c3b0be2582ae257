"""Conversion of a gRPC status to an exception of the library."""

from __future__ import annotations

import enum
import re
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from sagastore import _wire, errors
from sagastore.errors import SagaStoreError

__all__ = ["Security", "from_rpc_error", "is_transient"]

_TRAILER: Final = "grpc-status-details-bin"
_DOMAIN: Final = "sagastore"

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

# Texts of INTERNAL and UNKNOWN errors that mean a broken connection.
_BROKEN: Final = re.compile(
    r"RST_STREAM|Stream removed|Connection reset|Socket closed|GOAWAY|Broken pipe"
    r"|Internal error from Core",
    re.IGNORECASE,
)
_UNSENT: Final = re.compile(
    r"failed to connect|connections to all backends failing|errors? resolving|resolution failed"
    r"|connect failed|handshake failed",
    re.IGNORECASE,
)


class Security(enum.Enum):
    """How a connection is secured; selects the hint for an unexplained disconnection."""

    PLAIN = "plain text"
    TLS = "TLS"
    CERTIFICATE = "TLS with a client certificate"


def is_transient(error: SagaStoreError) -> bool:
    """Report whether the same call may succeed later.

    A request or response that is too large stays too large.
    """
    if isinstance(error, errors.ResourceExhaustedError):
        return not error.too_large
    if isinstance(error, errors.UnauthenticatedError):
        return error.outdated
    return isinstance(error, errors.UnavailableError)


def from_rpc_error(
    error: grpc.aio.AioRpcError, call: str, address: str, security: Security = Security.PLAIN
) -> SagaStoreError:
    """Return the exception for a failed call.

    Args:
        error: The exception of gRPC.
        call: Name of the RPC.
        address: The server.
        security: How the connection is secured.
    """
    code = error.code()
    text = " ".join((error.details() or "").split())
    details = _Details(error)
    if not details.from_server and _is_broken(code, text):
        code = grpc.StatusCode.UNAVAILABLE
    kind = _CLASSES.get(code, SagaStoreError)
    line = text if details.from_server else _transport_line(code, text, call, address, security)
    result = kind(
        _with_violations(line or f"{call} failed with {code.name}", details.violations),
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
        result.unsent = not details.from_server and bool(_UNSENT.search(text))
    return result


def _is_broken(code: grpc.StatusCode, text: str) -> bool:
    if code is grpc.StatusCode.CANCELLED:
        # A cancellation by this client raises asyncio.CancelledError. The server
        # cancelled the call, for example because it shuts down.
        return True
    suspects = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
    return code in suspects and bool(_BROKEN.search(text))


def _with_violations(line: str, violations: list[str]) -> str:
    """Append the violations that the line does not contain."""
    missing = [text for text in violations if text.rpartition(": ")[2] not in line]
    return f"{line}: {'; '.join(missing)}" if missing else line


def _transport_line(
    code: grpc.StatusCode, text: str, call: str, address: str, security: Security
) -> str:
    """Return the text of an error that does not come from a SagaStore server."""
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return _unreachable(text, address, security)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"{call} timed out: no response from {address}"
        case grpc.StatusCode.UNIMPLEMENTED:
            return f"{address} does not implement {call}; is it a SagaStore server of this version?"
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return f"{address} rejected {call}: {text}"
        case _:
            return f"{call} at {address} failed with {code.name}" + (f": {text}" if text else "")


_CAUSES: Final = (
    ("connection refused", "connection refused; is the server running?"),
    ("no such file", "no such socket; is the server running?"),
    ("wrong_version_number", "the server does not use TLS on this port; leave out tls"),
    ("certificate has expired", "the server's certificate has expired; renew it"),
    (
        "certificate is not yet valid",
        "the server's certificate is not valid yet; check the clocks",
    ),
    ("certificate_verify_failed", "the server's certificate is not trusted; see TLS(ca=...)"),
    (
        "hostname verification",
        "the server's certificate is for another name; see TLS(server_name=...)",
    ),
    ("handshake failed", "the TLS handshake failed; check the certificates"),
    ("timed out", "the connection timed out"),
    ("timeout", "the connection timed out"),
    ("no route to host", "no route to the host"),
    ("network is unreachable", "the network is unreachable"),
    ("cancelling all calls", "the server is shutting down"),
)

# A server that rejects a connection only closes it, so gRPC reports no cause.
_CLOSED_AT_ONCE: Final = re.compile(
    r"socket closed|connection reset|broken pipe|handshake read failed"
)
_LIKELY: Final = {
    Security.PLAIN: "the server closed the connection; does the server require TLS (tls=True)?",
    Security.TLS: "the server closed the connection after the TLS handshake; does it require a "
    "client certificate (TLS(cert=..., key=...))?",
    Security.CERTIFICATE: "the server closed the connection after the TLS handshake; has "
    "the client certificate expired, or does the server not trust its authority?",
}


def _unreachable(text: str, address: str, security: Security) -> str:
    low = text.lower()
    if _UNSENT.search(low) and _CLOSED_AT_ONCE.search(low):
        return f"cannot reach {address}: {_LIKELY[security]}"
    for pattern, line in _CAUSES:
        if pattern in low:
            return f"cannot reach {address}: {line}"
    if "resolv" in low or "name not found" in low or "lookup" in low:
        return f"cannot reach {address}: the name cannot be resolved"
    if _BROKEN.search(text):
        return f"the connection to {address} was lost"
    return f"{address} is unavailable: {text}" if text else f"{address} is unavailable"


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
