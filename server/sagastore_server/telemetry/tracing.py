"""OpenTelemetry traces: a span for each call and each store operation, exported by OTLP.

Names and attributes follow OpenTelemetry's semantic conventions for RPC and databases. No span
has content, a query, an id or a caller. Needs the extra ``sagastore-server[tracing]``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sagastore_server.interfaces.tracing import Attributes, Span, Tracer

if TYPE_CHECKING:
    from opentelemetry.context import Context

_TIMEOUT = 5.0
"""Seconds that the collector may take to accept a batch; then the batch is dropped."""

_FLUSH_SECONDS = 2.0
"""Seconds for the remaining spans when the server stops."""

_FAULTS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""Statuses that count as errors of the server in the conventions for RPC."""

_CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND"),
    *("ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
    *("ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
    "UNAUTHENTICATED",
)
"""The status codes of gRPC by number."""

_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()


class OpenTelemetryTracer(Tracer):
    """Creates spans and exports them in batches, from a background thread.

    The queue holds 2048 spans; when the collector is too slow, the oldest are dropped.
    """

    def __init__(self, endpoint: str, share: float, version: str) -> None:
        """Export to ``endpoint``; sample ``share`` (0 to 1) of the calls without trace context."""
        resource = Resource.create(
            {
                "service.name": "sagastore",
                "service.version": version,
                "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
            }
        )
        # The SDK warns of every dropped span; a failed export is an error.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        exporter = OTLPSpanExporter(_without_userinfo(endpoint), timeout=_TIMEOUT)
        self._exporter = exporter
        # `call` decides which calls without a trace context are sampled, so that the others
        # cost nothing: no span is created for them.
        self._provider = TracerProvider(ParentBased(ALWAYS_ON), resource, shutdown_on_exit=False)
        self._share = share
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("sagastore_server", version)
        self._propagator = TraceContextTextMapPropagator()

    def call(self, metadata: Mapping[str, str]) -> AbstractContextManager[Span]:
        """See the contract."""
        parent = None
        if "traceparent" in metadata:
            parent = self._propagator.extract(dict(metadata))
            if not trace.get_current_span(parent).get_span_context().is_valid:
                parent = None
        if parent is None and random.random() >= self._share:  # noqa: S311 - a sample, no secret
            return _UNTRACED
        return self._call(parent)

    @contextlib.contextmanager
    def _call(self, parent: Context | None) -> Iterator[Span]:
        span = self._tracer.start_span("rpc", parent, trace.SpanKind.SERVER)
        with trace.use_span(
            span, end_on_exit=True, record_exception=False, set_status_on_exception=False
        ):
            yield _CallSpan(span)

    def step(self, name: str, attributes: Attributes) -> AbstractContextManager[object]:
        """See the contract. Work outside of a call, or after its end, has no spans."""
        if not trace.get_current_span().is_recording():
            return _NOTHING
        return self._step(name, attributes)

    def headers(self) -> Mapping[str, str]:
        """See the contract."""
        found: dict[str, str] = {}
        if trace.get_current_span().is_recording():
            self._propagator.inject(found)
        return found

    def close(self) -> None:
        """Export the remaining spans, if the collector accepts them within `_FLUSH_SECONDS`."""
        # A daemon thread: a collector that hangs must not delay the exit of the server.
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_FLUSH_SECONDS)
        if sending.is_alive():
            self._exporter.shutdown()

    @contextlib.contextmanager
    def _step(self, name: str, attributes: Attributes) -> Iterator[None]:
        span = self._tracer.start_span(name, None, trace.SpanKind.CLIENT, attributes)
        with trace.use_span(
            span, end_on_exit=True, record_exception=False, set_status_on_exception=False
        ):
            try:
                yield
            except BaseException as exc:
                # The type only: the message may contain an id.
                span.set_attribute("error.type", type(exc).__name__)
                span.set_status(trace.StatusCode.ERROR)
                raise


class _NoSpan:
    """Replaces the span of a call that is not sampled."""

    def ended(self, method: str, code: str) -> None:
        """See `interfaces.tracing.Span`."""


_UNTRACED: AbstractContextManager[Span] = contextlib.nullcontext(_NoSpan())


class _CallSpan:
    """The span of a call."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def ended(self, method: str, code: str) -> None:
        """See `interfaces.tracing.Span`."""
        span = self._span
        if not span.is_recording():
            return
        service, _, name = method.rpartition("/")
        span.update_name(method)
        span.set_attributes(
            {
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": name,
                "rpc.grpc.status_code": _CODES.index(code),
            }
        )
        if code in _FAULTS:
            span.set_attribute("error.type", code)
            span.set_status(trace.StatusCode.ERROR)


def _without_userinfo(endpoint: str) -> str:
    """Remove user name and password, which OTLP does not use and the exporter would log."""
    parts = urlsplit(endpoint)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
