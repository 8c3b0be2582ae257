"""Parses the status and the details of a failed RPC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2


class Refusal(NamedTuple):
    """Status with its details."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    fields: dict[str, str]
    """BadRequest: descriptions by field."""
    retry_after: float | None
    """RetryInfo: delay in seconds."""
    reference: str
    """RequestInfo: request id."""


def refusal_of(error: grpc.RpcError) -> Refusal:
    """Parse ``error``; every refusal of the server contains ErrorInfo."""
    call = cast("grpc.Call", error)
    status = status_pb2.Status()
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(cast("bytes", value))
    info = _detail(status, error_details_pb2.ErrorInfo())
    if info.reason:
        assert info.domain == "sagastore"
        assert (status.code, status.message) == (call.code().value[0], call.details())
    bad = _detail(status, error_details_pb2.BadRequest())
    retry = error_details_pb2.RetryInfo()
    has_retry = any(detail.Unpack(retry) for detail in status.details)
    return Refusal(
        call.code(),
        call.details() or "",
        info.reason,
        dict(info.metadata),
        {violation.field: violation.description for violation in bad.field_violations},
        retry.retry_delay.ToMilliseconds() / 1000 if has_retry else None,
        _detail(status, error_details_pb2.RequestInfo()).request_id,
    )


class Refused:
    """Contains the refusal after the block."""

    refusal: Refusal


@contextmanager
def refused(code: grpc.StatusCode) -> Iterator[Refused]:
    """Expect a call in the block to fail with ``code``."""
    result = Refused()
    with pytest.raises(grpc.RpcError) as caught:
        yield result
    result.refusal = refusal_of(caught.value)
    assert result.refusal.code is code, result.refusal


def invalid_fields(call: Callable[[], Any]) -> dict[str, str]:
    """Expect INVALID_ARGUMENT with BadRequest, and return its fields."""
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as result:
        call()
    assert result.refusal.reason == "INVALID_REQUEST"
    assert result.refusal.fields
    return result.refusal.fields


def _detail(status: Any, empty: Any) -> Any:
    for detail in status.details:
        if detail.Unpack(empty):
            break
    return empty
