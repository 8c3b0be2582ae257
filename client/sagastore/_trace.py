"""Trace context propagation for programs that use OpenTelemetry."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["trace_headers"]


def trace_headers() -> tuple[tuple[str, str], ...]:
    """Return the W3C Trace Context headers of the active span.

    OpenTelemetry is not imported: if a span is active, the program has imported it.
    """
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ()
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return ()
    parent = f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"
    if not span.trace_state:
        return (("traceparent", parent),)
    return (("traceparent", parent), ("tracestate", span.trace_state.to_header()))
