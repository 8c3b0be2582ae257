"""Share of one worker process in the limits of the service (`serve --workers N`).

Each limit of the settings holds for the whole service. A worker enforces an equal part of it, so
the sum never exceeds the setting. `postgres_writers` alone is a number for each worker.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sagastore_server.config.settings import Settings

_SHARED = (
    "postgres_pool_min",
    "postgres_pool_max",
    "request_memory",
    "answer_memory",
    "max_calls",
    "max_streams",
    "max_connections",
)
"""Whole numbers that are divided, rounded down."""

_FEWEST_CONNECTIONS = 2
"""Least size of a worker's pool, as of `postgres_pool_max` itself: a write and a read."""


def share_of(settings: Settings) -> Settings:
    """Return the settings of one worker: its part of each limit, and no ops port."""
    parts: dict[str, object] = {
        name: getattr(settings, name) // settings.workers for name in _SHARED
    }
    parts |= {"caller_rate": settings.caller_rate / settings.workers, "ops_listen": "off"}
    return settings.model_copy(update=parts)


def misfits(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield each setting that contradicts ``workers``, and why."""
    if settings.workers == 1:
        return
    if not sys.platform.startswith("linux"):
        yield "workers", "must be 1: only Linux distributes the connections of a port to processes"
    if settings.postgres is None:
        yield (
            "workers",
            "must be 1 with a SQLite file, which one process uses; to run several, set postgres",
        )
    elif settings.names_sqlite:
        yield (
            "workers",
            "must be 1 with sqlite, because one process runs a migration; remove sqlite after it",
        )
    elif settings.forward:
        yield "workers", "must be 1 with forward; restart with more once the migration is finished"
    else:
        yield from _too_small(settings)


def _too_small(settings: Settings) -> Iterator[tuple[str, str]]:
    least = {
        "postgres_pool_max": (_FEWEST_CONNECTIONS, "2 connections"),
        "request_memory": (settings.max_request_bytes, "max_request_bytes"),
        "answer_memory": (settings.max_request_bytes, "max_request_bytes"),
        "max_calls": (1, "1"),
        "max_streams": (1, "1"),
        "max_connections": (1, "1"),
    }
    for name, (each, what) in least.items():
        value, needed = getattr(settings, name), each * settings.workers
        if value < needed:
            problem = f"{value} is too small for {settings.workers} workers, which need {what} each"
            yield name, f"{problem}; set {needed} or more, or fewer workers"
