"""How a command ends: with a status, and at most one line of complaint."""

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

__all__ = ["CommandError", "StoppedError", "complain", "execute", "explain", "terminated"]

_INTERRUPTED = 130
_TERMINATED = 143
_BROKEN_PIPE = 141

# What the library calls its arguments, and what the options are called here.
_OUR_WORDS = (
    ("leave out tls", "leave out --tls"),
    ("see TLS(ca=...)", "see --tls-ca"),
    ("see TLS(server_name=...)", "see --tls-server-name"),
    ("(TLS(cert=..., key=...))", "(--tls-cert, --tls-key)"),
    ("(tls=True)", "(--tls)"),
)


class CommandError(Exception):
    """The command cannot go on; the text is the line that says why, and what to do."""


class StoppedError(Exception):
    """Somebody asked the command to stop; the text says how to go on."""


def complain(line: str) -> None:
    """Write one line to standard error."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"sagastore: {one_line(line)}\n")
        sys.stderr.flush()


def explain(error: SagaStoreError) -> str:
    """Return an error of the library as a line for people at a terminal."""
    text = str(error)
    for theirs, ours in _OUR_WORDS:
        text = text.replace(theirs, ours)
    if isinstance(error, UnauthenticatedError):
        text = f"{text}; set SAGASTORE_TOKEN or --token-file"
    # Every error has one; only that of a defect leads on to something in the server's log.
    if isinstance(error, InternalError) and error.reference and error.reference not in text:
        text = f"{text} (reference {error.reference})"
    return text


def terminated() -> bool:
    """Tell whether it was SIGTERM that asked the command to stop."""
    return _Stop.by_sigterm


def execute(job: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run a command to its end, and leave with its exit status.

    Raises:
        SystemExit: Always.
    """
    status = 1
    try:
        # Called before there is a loop, so that what it reads can be interrupted.
        status = _run(job())
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has had enough, and that is all right. What is
        # still buffered must not be tried again when Python ends.
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
        # A person gets a line, never a traceback.
        if os.environ.get("SAGASTORE_TRACEBACK"):
            raise
        complain(
            f"a defect of this program: {type(exc).__name__}: {exc}; "
            "SAGASTORE_TRACEBACK=1 shows where, for a report"
        )
    raise SystemExit(status)


class _Stop:
    """Remembers what asked us to stop."""

    by_sigterm = False


def _run(job: Coroutine[Any, Any, int]) -> int:
    async def run() -> int:
        task = asyncio.current_task()

        def stop() -> None:
            _Stop.by_sigterm = True
            if task is not None:
                task.cancel()

        # Not everywhere: Windows has no SIGTERM to speak of.
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
        return await job

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        raise StoppedError("terminated") from None
