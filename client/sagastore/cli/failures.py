"""Errors and exit statuses of commands; an error is one line on standard error."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar, NoReturn

import typer

from sagastore.commandline.errors import Failure, report, unexpected, write_note
from sagastore.commandline.exit_status import ExitStatus, status_of
from sagastore.commandline.program import discard_output
from sagastore.errors import (
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    SagaStoreError,
    UnauthenticatedError,
)

__all__ = [
    "CommandError",
    "StoppedError",
    "UnsupportedFormatError",
    "complain",
    "execute",
    "explain",
    "failure_of",
    "show_error",
    "terminated",
    "with_option_names",
]

_PROGRAM = "sagastore"

# Argument names in errors of the library, and the names of the options.
_OPTION_NAMES = (
    ("consistency.at_least", "--consistency"),
    ("leave out tls", "leave out --tls"),
    ("check TLS(ca=..., cert=..., key=...)", "check --tls-ca, --tls-cert and --tls-key"),
    ("see TLS(ca=...)", "see --tls-ca"),
    ("see TLS(server_name=...)", "see --tls-server-name"),
    ("(TLS(cert=..., key=...))", "(--tls-cert, --tls-key)"),
    ("(tls=True)", "(--tls)"),
)


class CommandError(Exception):
    """The command failed; the text is one line with the reason and what to do.

    Args:
        text: The line.
        cause: The error of the library that the text explains; its code decides the exit status.
        command: A command that helps; printed after the line.
    """

    status: ClassVar = ExitStatus.FAILED
    """The exit status without a cause."""

    def __init__(
        self, text: str, cause: SagaStoreError | None = None, *, command: Sequence[str] = ()
    ) -> None:
        """See the class."""
        super().__init__(text)
        self.cause = cause
        self.command = tuple(command)


class UnsupportedFormatError(CommandError):
    """The file to import has another format, so nothing of it was stored."""

    status: ClassVar = ExitStatus.INCOMPLETE


class StoppedError(Exception):
    """The command was interrupted; the text says how to resume it."""


def show_error(error: Exception | Failure) -> ExitStatus:
    """Write an error to standard error after the output; return its exit status."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    failure = error if isinstance(error, Failure) else failure_of(error)
    report(_PROGRAM, failure)
    return failure.status


def complain(text: str, command: Sequence[str] = ()) -> None:
    """Write a remark to standard error after the output; `command` can be pasted."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    write_note(_PROGRAM, text, command)


def with_option_names(text: str) -> str:
    """Replace the argument names of the library with option names."""
    for argument, option in _OPTION_NAMES:
        text = text.replace(argument, option)
    return text


def explain(error: SagaStoreError) -> str:
    """Return an error of the library as one line with option names."""
    text = with_option_names(str(error))
    if isinstance(error, UnauthenticatedError):
        text = f"{text}; set SAGASTORE_TOKEN or --token-file"
    # Every error has a reference; the server logs details only for internal errors.
    if isinstance(error, InternalError) and error.reference and error.reference not in text:
        text = f"{text} (reference {error.reference})"
    return text


def terminated() -> bool:
    """Report whether SIGTERM interrupted the command."""
    return _Stop.by_sigterm


def failure_of(error: Exception) -> Failure:
    """Return what to print about an error, and the exit status."""
    if isinstance(error, SagaStoreError):
        return _failure(explain(error), error)
    if isinstance(error, CommandError):
        if error.cause is not None:
            return _failure(str(error), error.cause, error.command)
        return Failure(str(error), error.status, reason="COMMAND_FAILED", command=error.command)
    return unexpected(error)


def _failure(text: str, error: SagaStoreError, command: Sequence[str] = ()) -> Failure:
    violations: list[dict[str, str]] = []
    if isinstance(error, InvalidArgumentError):
        violations = [
            {"field": one.field, "reason": one.reason, "description": one.description}
            for one in error.violations
        ]
    elif isinstance(error, FailedPreconditionError):
        violations = [
            {"subject": one.subject, "reason": one.type, "description": one.description}
            for one in error.violations
        ]
    return Failure(text, status_of(error.code), error.code, error.reason, violations, command)


def execute(job: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run a command and exit with its status.

    Raises:
        SystemExit: Always.
    """
    try:
        # Called without a running event loop, so that Ctrl+C interrupts reads.
        status = _run(job())
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe, which is not an error.
        discard_output()
        status = ExitStatus.PIPE_CLOSED
    except StoppedError as exc:
        status = ExitStatus.TERMINATED if _Stop.by_sigterm else ExitStatus.INTERRUPTED
        show_error(_stopped(str(exc), status))
    except KeyboardInterrupt:
        status = ExitStatus.INTERRUPTED
        show_error(_stopped("interrupted", status))
    except (typer.BadParameter, typer.Exit):
        raise
    except Exception as exc:
        # Users get one line, not a traceback.
        failure = failure_of(exc)
        if failure.reason == "INTERNAL" and os.environ.get("SAGASTORE_TRACEBACK"):
            raise
        status = show_error(failure)
    raise SystemExit(status)


def _stopped(text: str, status: ExitStatus) -> Failure:
    return Failure(text, status, "CANCELLED", status.name)


class _Stop:
    """Records the signal that interrupted the command."""

    by_sigterm = False


def _run(job: Coroutine[Any, Any, int]) -> int:
    async def run() -> int:
        task = asyncio.current_task()

        def stop() -> None:
            _Stop.by_sigterm = True
            if task is not None:
                task.cancel()

        # Windows does not support signal handlers of the event loop.
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
        return await job

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        raise StoppedError("terminated") from None
