"""Health and reflection services on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]
from grpc_reflection.v1alpha.reflection_pb2_grpc import (  # type: ignore[import-untyped]
    ServerReflectionStub,
)

from sagastore_server.rpc.admission import Limits
from sagastore_server.rpc.error_responder import ErrorResponder
from sagastore_server.rpc.health_service import Health, health_admission, health_handlers
from tests.support.rpc_errors import Refusal, refusal_of

NAME = "sagastore.v1.StorageService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
CHECK = "/grpc.health.v1.Health/Check"


@pytest.fixture
def health() -> Health:
    return Health(("", NAME))


@pytest.fixture
async def channel(health: Health) -> AsyncIterator[aio.Channel]:
    server = aio.server()
    admission = health_admission(Limits(max_streams=1, max_connections=2))
    handlers = health_handlers(health, [NAME], admission, ErrorResponder(), reflection=True)
    server.add_generic_rpc_handlers(handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def refusal(call: Any) -> Refusal:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return refusal_of(caught.value)


async def test_check_and_list_return_the_status(health: Health, channel: aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for status in (NOT_SERVING, SERVING):
        for name in ("", NAME):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == status
        # Later versions of the protocol have List.
        if hasattr(stub, "List"):
            listed = (await stub.List(health_pb2.HealthListRequest())).statuses
            assert {name: one.status for name, one in listed.items()} == {"": status, NAME: status}
        health.set(SERVING)


async def test_unknown_service_is_not_found(channel: aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    refused = await refusal(stub.Check(health_pb2.HealthCheckRequest(service="n" * 5000)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")
    assert len(refused.message) < 200


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x02\xff\xff"])
async def test_unparsable_request_is_invalid(channel: aio.Channel, data: bytes) -> None:
    call: Any = channel.unary_unary(CHECK)
    refused = await refusal(call(data))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    stream: Any = channel.stream_stream(path)
    refused = await refusal(stream(iter([data])).read())
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_watch_streams_every_change(health: Health, channel: aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    watching = stub.Watch(health_pb2.HealthCheckRequest(service=NAME))
    unknown = stub.Watch(health_pb2.HealthCheckRequest(service="nothing"))
    assert (await watching.read()).status == NOT_SERVING
    assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    for status in (SERVING, NOT_SERVING):
        health.set(status)
        health.set(status)
        assert (await watching.read()).status == status


async def test_excess_watchers_are_refused(channel: aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    watching = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
    await asyncio.gather(*(one.read() for one in watching))
    refused = await refusal(stub.Watch(health_pb2.HealthCheckRequest()).read())
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    answer = await stub.Check(health_pb2.HealthCheckRequest())
    assert answer.status == NOT_SERVING


async def test_reflection_describes_the_services(channel: aio.Channel) -> None:
    requests = (
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such.Thing"),
    )
    first, second = [
        answer
        async for answer in ServerReflectionStub(channel).ServerReflectionInfo(iter(requests))
    ]
    names = [service.name for service in first.list_services_response.service]
    assert names == sorted(
        [NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
    )
    assert second.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
