"""Whether an answer is one that a caller may get."""

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
    # What the gRPC library answers in our place; none of it reaches the service.
    StatusCode.CANCELLED: re.compile(r".*", re.DOTALL),
    StatusCode.DEADLINE_EXCEEDED: re.compile(r".*", re.DOTALL),
    StatusCode.UNIMPLEMENTED: re.compile(r"Method not (found|implemented)!"),
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
"""What the gRPC library's transport says, with INTERNAL or UNAVAILABLE, of what is no
HTTP/2 or no gRPC. Nothing of it comes from the service, nor can be changed by it; no client
library sends such things, so only raw connections may hear it."""


_CUT_OFF = "Stream removed ("
"""What gRPC's client says when a deadline comes between the parts of a refusal."""


class Answer(NamedTuple):
    """How one call ended."""

    code: StatusCode
    message: str = ""
    details: bytes | None = None
    """What ``grpc-status-details-bin`` held, if it was there."""
    heard: bool = False
    """Whether there were answers of a stream before: a long one may meet its deadline."""


def complaints(one: Input, answers: list[Answer]) -> list[str]:
    """Tell all that is wrong with the answers to ``one``."""
    if one.must_answer and not answers:
        return ["no answer"]
    return sorted({found for answer in answers if (found := wrong(one, answer)) is not None})


def wrong(one: Input, answer: Answer) -> str | None:
    """Tell what is wrong with ``answer``, or None: it is as it should be."""
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
        return None  # More headers than the library takes.
    known = _LIBRARY.get(answer.code)
    if known is None or not known.fullmatch(answer.message):
        return f"{answer.code.name} without ErrorInfo: {answer.message}"
    proper = not answer.heard and (one.must_answer or not one.steps)
    if answer.code is StatusCode.DEADLINE_EXCEEDED and proper and one.deadline >= PATIENT:
        return f"no answer within {one.deadline} s"
    if answer.code is StatusCode.CANCELLED and not (one.behaviour or one.steps or one.streams):
        return f"cancelled, though not by the caller: {answer.message}"
    return None


def _wrong_with_details(answer: Answer, details: bytes) -> str | None:
    status = status_pb2.Status()
    try:
        status.ParseFromString(details)
    except DecodeError:
        return f"details that are no google.rpc.Status: {details!r}"
    info = error_details_pb2.ErrorInfo()
    if not any(detail.Unpack(info) for detail in status.details):
        return "details without ErrorInfo"
    if info.domain != "sagastore" or not re.fullmatch("[A-Z][A-Z0-9_]+", info.reason):
        return f"an ErrorInfo of {info.domain!r} with the reason {info.reason!r}"
    if (status.code, status.message) != (answer.code.value[0], answer.message):
        return f"the status says {answer.message!r}, its details {status.message!r}"
    return _wrong_line(answer.message, info.metadata.get("id", ""))


def _wrong_line(message: str, message_id: str) -> str | None:
    if not message or len(message.splitlines()) != 1:
        return f"not one line: {message!r}"
    leak = _LEAK.search(message.replace(repr(message_id), "") if message_id else message)
    return f"shows {leak[0]!r}: {message}" if leak else None
