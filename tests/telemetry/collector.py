"""An OTLP collector that keeps the spans it receives."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

_WITHIN = 100.0


class Collector(services.TraceServiceServicer):
    """An OTLP collector on a free port."""

    def __init__(self) -> None:
        self.requests: list[messages.ExportTraceServiceRequest] = []
        self._received = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(1))
        services.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Collector:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop(None)

    def Export(
        self, request: messages.ExportTraceServiceRequest, context: Any
    ) -> messages.ExportTraceServiceResponse:
        with self._received:
            self.requests.append(request)
            self._received.notify_all()
        return messages.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Span]:
        """All spans received so far."""
        return [
            span
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def wait_for(self, name: str, trace_id: int | None = None, status: int | None = None) -> Span:
        """Wait for a span, optionally of a given trace or with a given status code."""
        found: list[Span] = []

        def received() -> bool:
            found[:] = [
                span
                for span in self.spans
                if span.name == name
                and trace_id in {None, int.from_bytes(span.trace_id)}
                and status in {None, attributes(span).get("rpc.grpc.status_code")}
            ]
            return bool(found)

        with self._received:
            assert self._received.wait_for(received, _WITHIN), [span.name for span in self.spans]
        return found[0]

    def resource(self) -> dict[str, str]:
        """Return the attributes of the resource."""
        attributes = self.requests[0].resource_spans[0].resource.attributes
        return {one.key: one.value.string_value for one in attributes}


def attributes(span: Span) -> dict[str, object]:
    """Return the attributes of a span."""
    return {
        one.key: getattr(one.value, one.value.WhichOneof("value") or "") for one in span.attributes
    }
