"""Errors and exit statuses of commands; an error is one line on standard error."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

import typer

from sagastore.cli.sanitize import one_line
from sagastore.errors import InternalError, SagaStoreError, UnauthenticatedError

__all__ = [
    "CommandError",
    "StoppedError",
    "complain",
    "execute",
    "explain",
    "terminated",
    "with_option_names",
]

_INTERRUPTED = 130
_TERMINATED = 143
_BROKEN_PIPE = 141

# Argument names in errors of the library, and the names of the options.
_OPTION_NAMES = (
    ("leave out tls", "leave out --tls"),
    ("check TLS(ca=..., cert=..., key=...)", "check --tls-ca, --tls-cert and --tls-key"),
    ("see TLS(ca=...)", "see --tls-ca"),
    ("see TLS(server_name=...)", "see --tls-server-name"),
    ("(TLS(cert=..., key=...))", "(--tls-cert, --tls-key)"),
    ("(tls=True)", "(--tls)"),
)


class CommandError(Exception):
    """The command failed; the text is one line with the reason and what to do."""


class StoppedError(Exception):
    """The command was interrupted; the text says how to resume it."""


def complain(line: str) -> None:
    """Write one line to standard error."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"sagastore: {one_line(line)}\n")
        sys.stderr.flush()


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


def execute(job: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run a command and exit with its status.

    Raises:
        SystemExit: Always.
    """
    status = 1
    try:
        # Called without a running event loop, so that Ctrl+C interrupts reads.
        status = _run(job())
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe, which is not an error. Python must not flush
        # the buffered output again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = _BROKEN_PIPE
    except StoppedError as exc:
        complain(str(exc))
        status = _TERMINATED if _Stop.by_sigterm else _INTERRUPTED
    except KeyboardInterrupt:
        complain("interrupted")
        status = _INTERRUPTED
    except CommandError as exc:
        complain(str(exc))
    except SagaStoreError as exc:
        complain(explain(exc))
    except OSError as exc:
        name = f"{exc.filename}: " if exc.filename else ""
        complain(f"{name}{exc.strerror or exc}")
    except (typer.BadParameter, typer.Exit):
        raise
    except Exception as exc:
        # Users get one line, not a traceback.
        if os.environ.get("SAGASTORE_TRACEBACK"):
            raise
        complain(
            f"internal error: {type(exc).__name__}: {exc}; "
            "set SAGASTORE_TRACEBACK=1 to show the traceback, and report it"
        )
    raise SystemExit(status)


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
