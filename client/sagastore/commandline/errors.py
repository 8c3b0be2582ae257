"""Errors and notes on standard error: lines for people, or JSON objects with `--json`.

With `--json` every line on standard error is one JSON object: an error has `code`, `reason`,
`message` and `violations`; a note has `note`.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from sagastore.commandline.exit_status import ExitStatus
from sagastore.commandline.sanitize import json_safe, one_line
from sagastore.commandline.text import write_command, write_paragraph

__all__ = ["MASK", "Failure", "json_errors", "masked", "report", "unexpected", "write_note"]

MASK = "********"
_PASSWORDS = (
    re.compile(r"(://[^\s/:@]*:).*(@)"),
    re.compile(r"(password\w*\s*=).*()", re.IGNORECASE),
)

json_errors: ContextVar[bool] = ContextVar("json_errors", default=False)
"""True while a command with `--json` runs."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a command failed.

    Attributes:
        message: One line: what is wrong, why, and what to do.
        status: The exit status.
        code: Name of the gRPC status code that describes the failure best.
        reason: A stable name in UPPER_SNAKE_CASE; may be empty.
        violations: Invalid fields or unmet preconditions, as objects for `--json`.
        command: A command that helps, which is printed after the message.
    """

    message: str
    status: ExitStatus = ExitStatus.FAILED
    code: str = "FAILED_PRECONDITION"
    reason: str = "FAILED"
    violations: Sequence[dict[str, str]] = ()
    command: Sequence[str] = ()


def unexpected(error: Exception) -> Failure:
    """Return the failure for an error that no command expects: of the system, or a defect."""
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return Failure(f"{name}{error.strerror or error}", reason="SYSTEM_ERROR")
    return Failure(
        f"internal error: {type(error).__name__}: {error}; "
        "set SAGASTORE_TRACEBACK=1 to show the traceback, and report it",
        code="INTERNAL",
        reason="INTERNAL",
    )


def masked(text: str) -> str:
    """Return a line without the passwords of connection strings.

    Commands repeat what they were given, and that may be in the wrong place. A password has no
    recognisable end, so too much is masked rather than too little.
    """
    for pattern in _PASSWORDS:
        text = pattern.sub(rf"\1{MASK}\2", text)
    return text


def report(program: str, failure: Failure) -> None:
    """Write an error to standard error.

    Args:
        program: Name of the program, which begins the line.
        failure: The error.
    """
    if not json_errors.get():
        _write(program, failure.message, failure.command)
        return
    message = " ".join((masked(one_line(failure.message)), *_quoted(failure.command)))
    _write_json(
        {
            "code": failure.code,
            "reason": failure.reason,
            "message": message,
            "violations": [
                {name: masked(value) for name, value in one.items()} for one in failure.violations
            ],
        }
    )


def write_note(program: str, text: str, command: Sequence[str] = ()) -> None:
    """Write a remark that is no error to standard error; as `report`."""
    if json_errors.get():
        _write_json({"note": " ".join((masked(one_line(text)), *_quoted(command)))})
    else:
        _write(program, text, command)


def _quoted(command: Sequence[str]) -> list[str]:
    return [shlex.join(command)] if command else []


def _write(program: str, text: str, command: Sequence[str]) -> None:
    """Write a line; on a terminal, a command has its own lines so that it can be pasted."""
    line = f"{program}: {masked(one_line(text))}"
    with contextlib.suppress(OSError, ValueError):  # Standard error is closed.
        if command and not sys.stderr.isatty():
            line = " ".join((line, *_quoted(command)))
        write_paragraph(sys.stderr, line)
        if command and sys.stderr.isatty():
            write_command(sys.stderr, command)
        sys.stderr.flush()


def _write_json(document: dict[str, object]) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(json_safe(json.dumps(document, ensure_ascii=True)) + "\n")
        sys.stderr.flush()
