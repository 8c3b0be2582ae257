"""Usage of a limited resource, as ``rpc`` reports it and ``telemetry`` shows it."""

from __future__ import annotations

from typing import NamedTuple


class Usage(NamedTuple):
    """How much of a resource is in use."""

    name: str
    """Name in metrics, without prefix: ``answer_memory_bytes``."""
    what: str
    """What it is, for people: ``bytes of unread answers``."""
    used: float
    limit: float
    setting: str
    """What sets the limit."""
