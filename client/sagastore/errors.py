"""Exceptions of the client library.

Every exception is a subclass of `SagaStoreError`. `str(error)` is one line with the
problem and, if there is a remedy, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sagastore._migration_model import Blocker

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "ArgumentTypeError",
    "DeadlineExceededError",
    "Detail",
    "FailedPreconditionError",
    "FieldViolation",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "PermissionDeniedError",
    "PreconditionViolation",
    "ResourceExhaustedError",
    "SagaStoreError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "WrongEventLoopError",
]


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """An invalid field of a request.

    Attributes:
        field: Path of the field, for example `message.content`.
        description: The problem.
        reason: A stable name in UPPER_SNAKE_CASE; may be empty.
    """

    field: str
    description: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PreconditionViolation:
    """A precondition that is not met.

    Attributes:
        type: A stable name in UPPER_SNAKE_CASE.
        subject: The object concerned.
        description: The problem and what to do.
    """

    type: str
    subject: str
    description: str


@dataclass(frozen=True, slots=True)
class Detail:
    """An error detail of a type that the library does not decode.

    Attributes:
        type_name: Full name of the protobuf message.
        value: The serialized message.
    """

    type_name: str
    value: bytes


class SagaStoreError(Exception):
    """Base class of all errors of a call.

    Attributes:
        code: Name of the gRPC status code, for example `NOT_FOUND`.
        reason: A stable name of the cause in UPPER_SNAKE_CASE; empty if the
            error does not come from a SagaStore server.
        domain: `sagastore` if there is a reason, else empty.
        metadata: Values that belong to the reason, by name.
        details: Details for which the library has no attribute.
        reference: Identifies the error in the server's log; may be empty.
        retry_after: Seconds after which the server recommends a retry; None if
            it recommends none.
    """

    code = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        reason: str = "",
        domain: str = "",
        metadata: Mapping[str, str] | None = None,
        details: Iterable[Detail] = (),
        reference: str = "",
        retry_after: float | None = None,
    ) -> None:
        """Create an error; see the class for the meaning of each value."""
        super().__init__(message)
        if code is not None:
            self.code = code
        self.reason = reason
        self.domain = domain
        self.metadata = dict(metadata or {})
        self.details = tuple(details)
        self.reference = reference
        self.retry_after = retry_after


class InvalidArgumentError(SagaStoreError, ValueError):
    """The request is invalid; a retry cannot succeed.

    Raised by the server, or by the client before it sends the request. Also a
    `ValueError`.

    Attributes:
        violations: All invalid fields.
    """

    code = "INVALID_ARGUMENT"
    violations: tuple[FieldViolation, ...] = ()


class ArgumentTypeError(InvalidArgumentError, TypeError):
    """An argument has the wrong type; the client has sent nothing. Also a `TypeError`."""


class NotFoundError(SagaStoreError):
    """No message, session or file has the id."""

    code = "NOT_FOUND"


class AlreadyExistsError(SagaStoreError):
    """A write with `if_revision=0` found that the message, session or file exists."""

    code = "ALREADY_EXISTS"


class AbortedError(SagaStoreError):
    """The stored revision is not `if_revision`.

    Read the message, session or file again, then decide whether to repeat the change.
    """

    code = "ABORTED"


class FailedPreconditionError(SagaStoreError):
    """The state of the service does not allow the call; nothing has changed.

    Attributes:
        violations: All preconditions that are not met.
    """

    code = "FAILED_PRECONDITION"
    violations: tuple[PreconditionViolation, ...] = ()

    @property
    def blockers(self) -> tuple[Blocker, ...]:
        """The violations as blockers of a migration."""
        return tuple(Blocker(v.type, v.description) for v in self.violations)


class ResourceExhaustedError(SagaStoreError):
    """The server is overloaded or its disk is full, or a message is too large.

    A retry may succeed later unless `too_large` is True.
    """

    code = "RESOURCE_EXHAUSTED"

    @property
    def too_large(self) -> bool:
        """True if only a smaller request can succeed."""
        return self.retry_after is None or self.reason == "RESPONSE_TOO_LARGE"


class UnavailableError(SagaStoreError):
    """The server or one of its stores is unavailable.

    The client has already retried the call if that was safe.
    """

    code = "UNAVAILABLE"
    unsent: bool = False
    """True if there was no connection, so the call had no effect."""
    misconfigured: bool = False
    """True if the connection fails until someone changes a setting: the wrong port, a
    certificate that is not trusted. The client does not retry."""


class UnauthenticatedError(SagaStoreError):
    """The token or client certificate is missing or unknown to the server.

    The call had no effect, unless it was a stream that had started.
    """

    code = "UNAUTHENTICATED"
    outdated: bool = False
    """True if the client's token has changed since the call; the client has retried the
    call if that was safe."""


class PermissionDeniedError(SagaStoreError):
    """The token or certificate does not allow this call."""

    code = "PERMISSION_DENIED"


class DeadlineExceededError(SagaStoreError):
    """The call took longer than its timeout.

    A write may or may not have taken effect, never in part; a retry is safe.
    """

    code = "DEADLINE_EXCEEDED"


class InternalError(SagaStoreError):
    """A defect in the server or in the connection to it.

    `reference`, if the server sent one, identifies the error in the server's log.
    """

    code = "INTERNAL"


class UnimplementedError(SagaStoreError):
    """The server does not implement the call: it has another version or is not SagaStore."""

    code = "UNIMPLEMENTED"


class WrongEventLoopError(SagaStoreError, RuntimeError):
    """An `AsyncClient` was used on another event loop than the one that first used it.

    The connections of gRPC belong to one event loop, and each `asyncio.run` starts a new
    one. Create one client for each loop, or use the blocking `Client`. The call had no
    effect. Also a `RuntimeError`.
    """

    code = "FAILED_PRECONDITION"
