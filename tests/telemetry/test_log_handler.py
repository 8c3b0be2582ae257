"""Log handler: what is limited, what is not, and the count of suppressed lines."""

from __future__ import annotations

import contextvars
import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from sagastore_server.interfaces import call_context
from sagastore_server.interfaces.access import ANYONE, Caller, Role
from sagastore_server.telemetry.log_handler import KNOWN_RATE, STRANGER_RATE
from tests.telemetry.memory_log import lines, logging_to_memory

LINES = 200
LONG = "x" * 3000
"""More in all than each rate allows, also if a slow machine writes three lines in a second."""
LONGEST = 3500
"""Bytes of a line; the last accepted one may exceed the credit."""

UNHANDLED = """
import logging, sys, threading, warnings
from sagastore_server.telemetry import logs

class Broken:
    def __del__(self):
        raise ValueError("password=planted0f3c")

def fail():
    raise ValueError("Bearer planted0f3c-token")

logs.configure("info")
logs.capture_unhandled()
thread = threading.Thread(target=fail)
thread.start()
thread.join()
Broken()
warnings.warn("token=planted0f3c")
logging.getLogger("a.library").error("%d planted0f3c", "not a number")
"""


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    with logging_to_memory("info") as found:
        yield found


def in_call(identity: Caller | None, code: str = "") -> None:
    call = call_context.begin("a.Service/Method")
    call.peer, call.identity, call.code = "ipv4:10.0.0.7:1234", identity, code
    for _ in range(LINES):
        structlog.get_logger("sagastore_server.x").warning("a line", text=LONG)


def from_library() -> None:
    for _ in range(LINES):
        logging.getLogger("asyncio").error("Task exception was never retrieved: %s", LONG)


@pytest.mark.parametrize(
    ("write", "rate", "source"),
    [
        (lambda: in_call(None), STRANGER_RATE, "10.0.0.7"),
        (lambda: in_call(None, "UNAUTHENTICATED"), STRANGER_RATE, "10.0.0.7"),
        (lambda: in_call(ANYONE), STRANGER_RATE, "10.0.0.7"),
        (lambda: in_call(Caller("web", Role.WRITER)), KNOWN_RATE, "10.0.0.7"),
        (from_library, STRANGER_RATE, "library asyncio"),
    ],
)
def test_lines_are_limited_and_counted(
    stream: io.StringIO, write: Callable[[], None], rate: Any, source: str
) -> None:
    began = time.monotonic()
    _apart(write)
    allowed = rate.burst + rate.bytes_per_second * (time.monotonic() - began) + LONGEST
    assert rate.burst / 2 <= len(stream.getvalue()) <= allowed
    written = len(lines(stream))
    logging.getLogger().handlers[0].close()
    summary = lines(stream)[-1]["event"]
    assert summary == f"log lines suppressed: {LINES - written}, from {source}"


@pytest.mark.parametrize("write", [lambda: in_call(Caller("web", Role.WRITER), "OK"), None])
def test_lines_after_a_call_and_outside_of_calls_are_all_written(
    stream: io.StringIO, write: Callable[[], None] | None
) -> None:
    def outside() -> None:
        for _ in range(LINES):
            logging.getLogger("sagastore_server.migration").info("a line %s", LONG)

    _apart(write or outside)
    assert len(lines(stream)) == LINES


def test_what_python_writes_itself_is_a_masked_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNHANDLED], capture_output=True, text=True, check=True, timeout=200
    )
    found = [json.loads(line) for line in done.stderr.splitlines()]
    starts = ["unhandled error in a thread", "unhandled error", "<string>:", "a log line could not"]
    assert len(found) == len(starts)
    for line, start in zip(found, starts, strict=True):
        assert line["event"].startswith(start)
    assert "planted0f3c" not in done.stderr
    assert "Traceback" in found[0]["exception"]


def _apart(write: Callable[[], None]) -> None:
    """Call ``write`` with a separate context, as the task of a call has."""
    contextvars.copy_context().run(write)
