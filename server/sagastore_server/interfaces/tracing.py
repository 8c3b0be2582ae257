"""Spans of traces: nothing at all until ``ops`` turns tracing on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

Attributes = Mapping[str, str | int | float | bool]


class Span(Protocol):
    """A piece of work in a trace, while it lasts."""

    def ended(self, method: str, code: str) -> None:
        """Record what was called, and the status it ended with (``OK``, ``NOT_FOUND``, …)."""


class Tracer(Protocol):
    """Makes spans; each is a child of the one that it is begun in."""

    def call(self, metadata: Mapping[str, str]) -> AbstractContextManager[Span]:
        """Begin the span of a call, within the trace that ``metadata`` names."""

    def step(self, name: str, attributes: Attributes) -> AbstractContextManager[object]:
        """Begin the span of a step within a call."""


class _Tracing:
    """Holds the tracer of this process."""

    def __init__(self) -> None:
        self.tracer: Tracer | None = None


_tracing = _Tracing()
_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()


def use(tracer: Tracer | None) -> None:
    """Trace with ``tracer`` from now on; None: not at all."""
    _tracing.tracer = tracer


def tracer() -> Tracer | None:
    """Return what traces, if anything does."""
    return _tracing.tracer


def step(name: str, **attributes: str | int | float | bool) -> AbstractContextManager[object]:
    """Trace a step within a call, such as a read of a store. Costs next to nothing when off."""
    if _tracing.tracer is None:
        return _NOTHING
    return _tracing.tracer.step(name, attributes)
