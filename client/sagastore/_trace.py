"""The trace that a call belongs to, for programs that trace with OpenTelemetry."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["trace_headers"]


def trace_headers() -> tuple[tuple[str, str], ...]:
    """Return the headers that name the active span, as W3C's Trace Context has them.

    Nothing is imported: where a span is active, OpenTelemetry has been loaded already.
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
