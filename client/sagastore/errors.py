"""What can go wrong, one exception for each kind.

Every exception is a `SagaStoreError`, and `str(error)` is one line that says
what happened and, where something can be done, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sagastore._migration_model import Blocker

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
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
]


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One rule that a request broke.

    Attributes:
        field: Path of the field, for example `message.content`.
        description: What is wrong with it.
        reason: A stable name in UPPER_SNAKE_CASE; may be empty.
    """

    field: str
    description: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PreconditionViolation:
    """One condition that does not hold.

    Attributes:
        type: A stable name in UPPER_SNAKE_CASE.
        subject: What it is about.
        description: What it is and what to do.
    """

    type: str
    subject: str
    description: str


@dataclass(frozen=True, slots=True)
class Detail:
    """A detail of an error as it came, for kinds that the library does not read.

    Attributes:
        type_name: Full name of its protobuf message.
        value: The message, serialized.
    """

    type_name: str
    value: bytes


class SagaStoreError(Exception):
    """Anything that went wrong with a call.

    Attributes:
        code: Name of the gRPC status code, for example `NOT_FOUND`.
        reason: A stable name in UPPER_SNAKE_CASE of why; empty when the error
            did not come from a SagaStore server.
        domain: Who named the reason: `sagastore`, or empty.
        metadata: More about the reason, by name.
        details: Further details that the library has no attribute for.
        reference: Finds the error in the server's log; may be empty.
        retry_after: Seconds to wait before trying again, where the server said
            so; None otherwise.
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
        """Make an error; see the class for the meaning of each value."""
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
    """The request breaks a rule; sending it again cannot help.

    Found by the server, or by the client before anything is sent. Also a
    `ValueError`.

    Attributes:
        violations: Every rule broken.
    """

    code = "INVALID_ARGUMENT"
    violations: tuple[FieldViolation, ...] = ()


class NotFoundError(SagaStoreError):
    """No message has the id."""

    code = "NOT_FOUND"


class AlreadyExistsError(SagaStoreError):
    """A Save with `if_revision=0` found the id stored already."""

    code = "ALREADY_EXISTS"


class AbortedError(SagaStoreError):
    """The stored revision is not the one given as `if_revision`.

    Read the message again and decide anew.
    """

    code = "ABORTED"


class FailedPreconditionError(SagaStoreError):
    """The service's state does not allow this now; nothing has changed.

    Attributes:
        violations: Every condition that does not hold.
    """

    code = "FAILED_PRECONDITION"
    violations: tuple[PreconditionViolation, ...] = ()

    @property
    def blockers(self) -> tuple[Blocker, ...]:
        """The violations in the words of a migration: what stands in the way, and what to do."""
        return tuple(Blocker(v.type, v.description) for v in self.violations)


class ResourceExhaustedError(SagaStoreError):
    """The server is overloaded or its disk is full; later the same call may succeed.

    Or the request or its answer is too large (`too_large`), and will be again.
    """

    code = "RESOURCE_EXHAUSTED"

    @property
    def too_large(self) -> bool:
        """True when asking for less would help, and asking again would not."""
        return self.retry_after is None or self.reason == "RESPONSE_TOO_LARGE"


class UnavailableError(SagaStoreError):
    """The server cannot be reached, or a store behind it is down.

    The call may be repeated; the client has done so, where that was safe.
    """

    code = "UNAVAILABLE"
    unsent: bool = False
    """True when no connection could be made, so that nothing has happened."""


class UnauthenticatedError(SagaStoreError):
    """The server wants a token or a client certificate that it knows.

    Nothing of the call was done, unless it was a stream that had begun.
    """

    code = "UNAUTHENTICATED"
    outdated: bool = False
    """True when the client has another token by now than the call was made with; the
    client has repeated the call, where that was safe."""


class PermissionDeniedError(SagaStoreError):
    """The token or certificate does not allow this call."""

    code = "PERMISSION_DENIED"


class DeadlineExceededError(SagaStoreError):
    """The call took longer than its timeout.

    A write may or may not have happened, wholly; sending it again is safe.
    """

    code = "DEADLINE_EXCEEDED"


class InternalError(SagaStoreError):
    """A defect in the server or in the connection to it.

    `reference`, where the server sent one, finds it in the server's log.
    """

    code = "INTERNAL"


class UnimplementedError(SagaStoreError):
    """The server does not know the call: another version, or no SagaStore."""

    code = "UNIMPLEMENTED"
