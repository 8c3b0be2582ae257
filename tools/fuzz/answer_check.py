"""Checks that an answer is one that a caller may receive."""

from __future__ import annotations

import re
from typing import NamedTuple

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from tools.fuzz.fuzz_input import Input
from tools.fuzz.input_mix import PATIENT

DETAILS = "grpc-status-details-bin"
NEVER = {StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.DATA_LOSS}

_LEAK = re.compile(
    r"Traceback|sqlite3|aiosqlite|asyncpg|psycopg|SELECT |INSERT |UPDATE |DELETE FROM|<class|"
    r"object at 0x|\.py\b|/tmp/|/home/|/work/|Exception|Error\(|errno|NoneType",
    re.IGNORECASE,
)
_LIBRARY: dict[StatusCode, re.Pattern[str]] = {
    # Answers of the gRPC library itself; such calls never reach the service.
    StatusCode.CANCELLED: re.compile(r".*", re.DOTALL),
    StatusCode.DEADLINE_EXCEEDED: re.compile(r".*", re.DOTALL),
    StatusCode.UNIMPLEMENTED: re.compile(
        r"Method not (found|implemented)!|Compression algorithm '(gzip|deflate)' is disabled\."
    ),
    StatusCode.RESOURCE_EXHAUSTED: re.compile(
        r"(SERVER: |CLIENT: )?Received message larger than max \(\d+ vs\. \d+\)|"
        r"received (initial |trailing )?metadata size exceeds .*"
    ),
}
_BEFORE_US = re.compile(
    r"Error parsing '[^']*' metadata.*|Illegal header key: .*|Failed parsing HTTP/2.*|"
    r"Metadata keys cannot be zero length|Duplicate '[^']*' header received|Socket closed|"
    r"Decompression failed due to zlib error|Unexpected error decompressing .*|"
    r"Compression bit set but no encoding configured|"
    r"Unexpected <class 'UnicodeDecodeError'>.*",
    re.DOTALL,
)
"""Texts of the gRPC library's transport, with INTERNAL or UNAVAILABLE, for traffic that is not
valid HTTP/2 or gRPC. The service neither creates nor can change them. No client library sends such
traffic, so only raw connections may receive them.
"""


_CUT_OFF = "Stream removed ("
"""Text of gRPC's client when a deadline expires between the parts of a refusal."""


class Answer(NamedTuple):
    """Result of one call."""

    code: StatusCode
    message: str = ""
    details: bytes | None = None
    """Value of ``grpc-status-details-bin``, if present."""
    answered: bool = False
    """Whether a stream received answers before; a long one may then reach its deadline."""


def complaints(one: Input, answers: list[Answer]) -> list[str]:
    """Return everything that is wrong with the answers to ``one``."""
    if one.must_answer and not answers:
        return ["no answer"]
    return sorted({found for answer in answers if (found := wrong(one, answer)) is not None})


def wrong(one: Input, answer: Answer) -> str | None:
    """Return what is wrong with ``answer``, or None."""
    if answer.code is StatusCode.OK:
        return None
    if one.steps and answer.details is None and _BEFORE_US.fullmatch(answer.message):
        return None
    if answer.code in NEVER:
        return f"{answer.code.name}: {answer.message}"
    if answer.details is None:
        return _wrong_without_details(one, answer)
    if answer.message.startswith(_CUT_OFF) and (one.behaviour or one.deadline < PATIENT):
        return None
    return _wrong_with_details(answer, answer.details)


def _wrong_without_details(one: Input, answer: Answer) -> str | None:
    if answer.code is StatusCode.RESOURCE_EXHAUSTED and not answer.message and one.metadata:
        return None  # The answer has more headers than the library accepts.
    known = _LIBRARY.get(answer.code)
    if known is None or not known.fullmatch(answer.message):
        return f"{answer.code.name} without ErrorInfo: {answer.message}"
    proper = not answer.answered and (one.must_answer or not one.steps)
    if answer.code is StatusCode.DEADLINE_EXCEEDED and proper and one.deadline >= PATIENT:
        return f"no answer within {one.deadline} s"
    if answer.code is StatusCode.CANCELLED and not (one.behaviour or one.steps or one.streams):
        return f"cancelled, but not by the caller: {answer.message}"
    return None


def _wrong_with_details(answer: Answer, details: bytes) -> str | None:
    status = status_pb2.Status()
    try:
        status.ParseFromString(details)
    except DecodeError:
        return f"details are not a google.rpc.Status: {details!r}"
    info = error_details_pb2.ErrorInfo()
    if not any(detail.Unpack(info) for detail in status.details):
        return "details without ErrorInfo"
    if info.domain != "sagastore" or not re.fullmatch("[A-Z][A-Z0-9_]+", info.reason):
        return f"unexpected ErrorInfo: domain {info.domain!r}, reason {info.reason!r}"
    if (status.code, status.message) != (answer.code.value[0], answer.message):
        return f"the status message is {answer.message!r}, that of its details {status.message!r}"
    return _wrong_line(answer.message, info.metadata.get("id", ""))


def _wrong_line(message: str, message_id: str) -> str | None:
    if not message or len(message.splitlines()) != 1:
        return f"message has several lines: {message!r}"
    leak = _LEAK.search(message.replace(repr(message_id), "") if message_id else message)
    return f"message leaks {leak[0]!r}: {message}" if leak else None
