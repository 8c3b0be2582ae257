"""Error responder: what is logged of refused calls, and how often."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from sagastore_server.interfaces.call_context import CallContext
from sagastore_server.interfaces.errors import StalledError
from sagastore_server.rpc.error_responder import ErrorResponder
from sagastore_server.rpc.lifecycle import ServerDrainingError
from sagastore_server.storage.errors import NotFoundError, UnavailableError


class Context:
    """The part of gRPC's context that the responder uses."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("x-request-id", "call-1"),)

    async def abort(self, code: grpc.StatusCode, message: str, metadata: object) -> None:
        self.code = code


async def refuse(responder: ErrorResponder, error: Exception) -> grpc.StatusCode | None:
    context: Any = Context()
    with pytest.raises(asyncio.CancelledError):
        await responder.refuse(context, CallContext("service/Method"), error)
    code: grpc.StatusCode | None = context.code
    return code


async def test_outages_are_logged_once_a_second_with_their_number() -> None:
    now = 100.0
    responder = ErrorResponder(lambda: now)
    with capture_logs() as lines:
        for _ in range(4):
            error = UnavailableError("PostgreSQL is unavailable")
            assert await refuse(responder, error) is grpc.StatusCode.UNAVAILABLE
        now += 1.0
        await refuse(responder, UnavailableError("PostgreSQL is unavailable"))
    assert [(line["detail"], line["call"], line["more"]) for line in lines] == [
        ("PostgreSQL is unavailable", "call-1", 0),
        ("PostgreSQL is unavailable", "call-1", 3),
    ]


@pytest.mark.parametrize(
    "error",
    [StalledError("unread"), ServerDrainingError("stopping"), NotFoundError("m-1")],
)
async def test_errors_that_are_no_outage_are_not_logged(error: Exception) -> None:
    with capture_logs() as lines:
        await refuse(ErrorResponder(), error)
    assert lines == []


async def test_defects_are_always_logged() -> None:
    responder = ErrorResponder()
    with capture_logs() as lines:
        for _ in range(2):
            assert await refuse(responder, KeyError("x")) is grpc.StatusCode.INTERNAL
    assert [line["event"] for line in lines] == ["internal error", "internal error"]
