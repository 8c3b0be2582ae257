"""Tracing interface: spans of a call and of its steps. `telemetry` implements it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Protocol

Attributes = Mapping[str, str | int | float | bool]


class Span(Protocol):
    """The span of a call, while the call lasts."""

    def ended(self, method: str, code: str) -> None:
        """Record the method and its final status code (``OK``, ``NOT_FOUND``, …)."""


class Tracer:
    """Creates spans; the parent of a span is the span that is current when it begins.

    This class is the tracer of a server that is not traced: it creates no spans.
    """

    def call(self, metadata: Mapping[str, str]) -> AbstractContextManager[Span]:
        """Begin the span of a call, within the trace that ``metadata`` names."""
        del metadata
        return _NO_CALL

    def step(self, name: str, attributes: Attributes) -> AbstractContextManager[object]:
        """Begin the span of a step within a call, such as a read of a store."""
        del name, attributes
        return _NO_STEP

    def headers(self) -> Mapping[str, str]:
        """Return the headers that name the current span as the parent; empty without a span."""
        return _NO_HEADERS


class _NoSpan:
    """The span of a call that is not traced."""

    def ended(self, method: str, code: str) -> None:
        """Do nothing."""


_NO_CALL: AbstractContextManager[Span] = contextlib.nullcontext(_NoSpan())
_NO_STEP: AbstractContextManager[None] = contextlib.nullcontext()
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})

NO_TRACER = Tracer()
"""Default tracer of every component: tracing is off."""
