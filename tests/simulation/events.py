"""Event log of a round: actor, event and virtual time.

A recorded round keeps one event per durable or visible step: commits of both stores, changes of
state in memory, calls and their answers, faults. `trace.py` prints them; `tools/spec` checks that
they conform to the specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Event(NamedTuple):
    """One step."""

    at: float
    """Virtual seconds since the start of the round."""
    actor: str
    """A process, a client, the operator, or ``faults``."""
    kind: str
    facts: Mapping[str, Any]


class Recorder:
    """Keeps events in order if enabled."""

    def __init__(self, *, on: bool) -> None:
        """Start without events."""
        self.on = on
        self.events: list[Event] = []

    def note(self, at: float, actor: str, kind: str, **facts: Any) -> None:
        """Record an event."""
        if self.on:
            self.events.append(Event(at, actor, kind, facts))
