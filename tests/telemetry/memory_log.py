"""Log of this process in memory, for tests of its lines."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from sagastore_server.telemetry import logs


@contextmanager
def logging_to_memory(level: str) -> Iterator[io.StringIO]:
    """Log at ``level`` into the stream while the context lasts, and restore the logging then."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, threshold = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure(level, stream)
    try:
        yield stream
    finally:
        root.handlers[0].close()
        root.handlers[:], root.level = handlers, threshold
        structlog.configure(**before)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Return the logged lines."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]
