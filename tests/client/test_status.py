from __future__ import annotations

import pickle
import subprocess
import sys

import grpc
import grpc.aio
import pytest
from google.protobuf import empty_pb2
from google.protobuf.message import Message as Pb
from google.rpc import error_details_pb2

from sagastore import errors
from sagastore._status import from_rpc_error, is_transient
from tests.client.failing.scripted import error_info, retry_info, status_bytes

Code = grpc.StatusCode
NO_TLS = "the server does not use TLS on this port; leave out tls, or check the port"


def failed(
    code: grpc.StatusCode, text: str = "", *details: Pb, raw: bytes | None = None
) -> errors.SagaStoreError:
    data = raw if raw is not None else status_bytes(code, text, *details)
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", data))
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=text)
    return from_rpc_error(error, "Save", "host:1")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.INVALID_ARGUMENT, errors.InvalidArgumentError),
        (Code.OUT_OF_RANGE, errors.InvalidArgumentError),
        (Code.NOT_FOUND, errors.NotFoundError),
        (Code.ALREADY_EXISTS, errors.AlreadyExistsError),
        (Code.ABORTED, errors.AbortedError),
        (Code.FAILED_PRECONDITION, errors.FailedPreconditionError),
        (Code.RESOURCE_EXHAUSTED, errors.ResourceExhaustedError),
        (Code.UNAVAILABLE, errors.UnavailableError),
        (Code.UNAUTHENTICATED, errors.UnauthenticatedError),
        (Code.PERMISSION_DENIED, errors.PermissionDeniedError),
        (Code.DEADLINE_EXCEEDED, errors.DeadlineExceededError),
        (Code.UNIMPLEMENTED, errors.UnimplementedError),
        (Code.INTERNAL, errors.InternalError),
        (Code.UNKNOWN, errors.InternalError),
        (Code.DATA_LOSS, errors.InternalError),
        (Code.CANCELLED, errors.SagaStoreError),
    ],
)
def test_status_codes_map_to_exceptions(
    code: grpc.StatusCode, kind: type[errors.SagaStoreError]
) -> None:
    error = failed(code, "why", error_info("REASON", a="b"))
    assert type(error) is kind
    assert error.code == code.name
    assert (error.reason, error.domain, error.metadata) == ("REASON", "sagastore", {"a": "b"})
    assert str(error) == "why"


def test_field_violations_are_read() -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="message.content", description="is blank", reason="BLANK")
    bad.field_violations.add(field="message.role", description="is required")
    error = failed(Code.INVALID_ARGUMENT, "message.content is blank", error_info("X"), bad)
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.violations == (
        errors.FieldViolation("message.content", "is blank", "BLANK"),
        errors.FieldViolation("message.role", "is required"),
    )
    assert str(error) == "message.content is blank: message.role: is required"


def test_precondition_violations_are_read() -> None:
    failure = error_details_pb2.PreconditionFailure()
    failure.violations.add(type="JOURNAL", subject="phase", description="writes are waiting")
    error = failed(Code.FAILED_PRECONDITION, "not now", error_info("X"), failure)
    assert isinstance(error, errors.FailedPreconditionError)
    assert error.violations == (
        errors.PreconditionViolation("JOURNAL", "phase", "writes are waiting"),
    )
    assert str(error) == "not now: writes are waiting"


def test_retry_info_and_reference_are_read() -> None:
    request = error_details_pb2.RequestInfo(request_id="abc")
    error = failed(Code.UNAVAILABLE, "down", error_info("X"), retry_info(1.25), request)
    assert (error.retry_after, error.reference) == (1.25, "abc")
    assert failed(Code.INTERNAL, "x", error_info("X", reference="r")).reference == "r"


def test_other_details_are_kept() -> None:
    error = failed(Code.INTERNAL, "x", error_info("X"), empty_pb2.Empty())
    assert error.details == (errors.Detail("google.protobuf.Empty", b""),)


@pytest.mark.parametrize("raw", [b"", b"\xff\xff\xff", b"\x1a\x03abc"])
def test_undecodable_details_are_ignored(raw: bytes) -> None:
    error = failed(Code.NOT_FOUND, "gone", raw=raw)
    assert isinstance(error, errors.NotFoundError)


def test_error_text_is_one_line() -> None:
    assert str(failed(Code.ABORTED, "a\n  b\tc", error_info("X"))) == "a b c"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: connect: Connection refused",
            "cannot reach host:1: connection refused; is the server running?",
        ),
        (
            "errors resolving nosuch.invalid:1: [hostname lookup error:Domain name not found]",
            "cannot reach host:1: the name cannot be resolved",
        ),
        (
            "connections to all backends failing; last error: SSL_ERROR_SSL: WRONG_VERSION_NUMBER",
            f"cannot reach host:1: {NO_TLS}",
        ),
    ],
)
def test_transport_errors_have_helpful_texts(text: str, line: str) -> None:
    error = failed(Code.UNAVAILABLE, text, raw=b"")
    assert isinstance(error, errors.UnavailableError)
    assert error.unsent
    assert str(error) == line


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (Code.INTERNAL, "Received RST_STREAM with error code 2"),
        (Code.UNKNOWN, "Stream removed"),
        (Code.UNAVAILABLE, "Socket closed"),
        (Code.CANCELLED, "Cancelled on the server side"),
    ],
)
def test_broken_connections_are_transient(code: grpc.StatusCode, text: str) -> None:
    error = failed(code, text, raw=b"")
    assert isinstance(error, errors.UnavailableError)
    assert not error.unsent
    assert is_transient(error)


def test_transient_errors_are_recognized() -> None:
    assert is_transient(failed(Code.UNAVAILABLE, "x", error_info("X")))
    assert is_transient(failed(Code.RESOURCE_EXHAUSTED, "x", error_info("X"), retry_info(0)))
    assert not is_transient(failed(Code.RESOURCE_EXHAUSTED, "message larger than max", raw=b""))
    too_large = failed(
        Code.RESOURCE_EXHAUSTED, "x", error_info("RESPONSE_TOO_LARGE"), retry_info(0)
    )
    assert isinstance(too_large, errors.ResourceExhaustedError)
    assert too_large.too_large
    assert not is_transient(too_large)
    missing = Code.FAILED_PRECONDITION, "x", error_info("NOT_REPLICATED")
    assert is_transient(failed(*missing, retry_info(0)))
    assert not is_transient(failed(*missing))
    assert not is_transient(failed(Code.FAILED_PRECONDITION, "x", error_info("X"), retry_info(0)))
    for code in (Code.INTERNAL, Code.DEADLINE_EXCEEDED, Code.ABORTED):
        assert not is_transient(failed(code, "x", error_info("X")))


def test_errors_can_be_pickled() -> None:
    error = failed(Code.UNAVAILABLE, "down", error_info("X", a="b"), retry_info(2))
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert str(again) == str(error)


def test_private_messages_coexist_with_googleapis() -> None:
    """Two packages that bring google.rpc cannot both be loaded; ours stays apart."""
    ours = "from sagastore import _wire; _wire.message_class('google.rpc.Status')"
    theirs = "from google.rpc import error_details_pb2; from grpc_health.v1 import health_pb2"
    for program in (f"{ours}; {theirs}", f"{theirs}; {ours}"):
        subprocess.run([sys.executable, "-c", program], check=True)
