"""Classes of the argument parser, for typer: one style of help and errors for both programs."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from sagastore.commandline.errors import MASK, Failure, json_errors, report, unexpected
from sagastore.commandline.exit_status import ExitStatus
from sagastore.commandline.text import prepare_streams

__all__ = ["CONTEXT", "Command", "Group", "Program", "discard_output"]

CONTEXT = {"help_option_names": ["-h", "--help"]}
"""Settings of every parser."""

# The base class of usage errors, which typer exports only through its subclass.
_UsageError: Any = typer.BadParameter.__base__
# Where the secret part of a connection string begins. It has no recognisable end.
_SECRET = re.compile(r"(://|password\w*\s*=).*", re.IGNORECASE)
_JSON = "--json"


class _Readable:
    """Shows parameters in the help without types that mean nothing to a reader."""

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters: flags without `<bool>`, named arguments without a type."""
        found = super().get_params(ctx)  # type: ignore[misc]
        for parameter in found:
            if getattr(parameter, "is_bool_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
            elif parameter.param_type_name == "argument" and parameter.metavar is not None:
                # An argument has no setting for it.
                parameter.display_type_rich = _no_type
        return found


def _no_type(ctx: Any) -> None:
    del ctx


class Command(_Readable, TyperCommand):
    """A command."""


class Group(_Readable, TyperGroup):
    """A group of commands."""


class Program(Group):
    """The root of a program: reports wrong usage in one line, or as JSON with `--json`."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse the arguments and run the command.

        Raises:
            SystemExit: Always, with an `ExitStatus`.
        """
        del standalone_mode
        prepare_streams(sys.stdout, sys.stderr)
        given = list(sys.argv[1:] if args is None else args)
        json_errors.set(_wants_json(given))
        # Not the path of a wrapper script; typer's completion needs it as well.
        name = prog_name or self.name or "sagastore"
        try:
            result = super().main(given, name, complete_var, False, windows_expand_args, **extra)
            sys.stdout.flush()
        except _UsageError as exc:
            _report_usage(name, exc)
            raise SystemExit(ExitStatus.USAGE) from None
        except typer.Abort:
            raise SystemExit(ExitStatus.INTERRUPTED) from None
        except BrokenPipeError:
            discard_output()
            raise SystemExit(ExitStatus.PIPE_CLOSED) from None
        except Exception as exc:
            # Users get one line, not a traceback; a program that logs its errors still logs it.
            if os.environ.get("SAGASTORE_TRACEBACK") or sys.excepthook is not sys.__excepthook__:
                raise
            report(name, unexpected(exc))
            raise SystemExit(ExitStatus.FAILED) from None
        raise SystemExit(result if isinstance(result, int) else ExitStatus.DONE)


def discard_output() -> None:
    """Direct standard output to nowhere, so that its buffer is not written again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _wants_json(args: Sequence[str]) -> bool:
    options = args[: args.index("--")] if "--" in args else args
    return _JSON in options


def _report_usage(program: str, error: Any) -> None:
    # The parser has already printed the help of a command without arguments.
    if type(error).__name__ != "NoArgsIsHelpError":
        report(program, _usage(error, error.format_message()))
    elif json_errors.get():
        report(program, _usage(error, "Missing command or argument."))


def _usage(error: Any, text: str) -> Failure:
    """Return a usage error as one line, with the command that explains the usage.

    The parser repeats arguments that it does not understand, and one may be a connection string
    with a password.
    """
    line = " ".join(text.split()).removeprefix("Invalid value: ").rstrip(".")
    # The wording of the library that converts values.
    line = line.replace(": Value error, ", ": ").replace(": Input should be ", ": must be ")
    if not _is_own(error):
        line = _SECRET.sub(lambda found: found[1] + MASK, line)
    line = line[:1].lower() + line[1:]
    command = () if error.ctx is None else (*error.ctx.command_path.split(), "-h")
    if command:
        line += " For help, run:" if line.endswith("?") else "; for help, run:"
    return Failure(line, ExitStatus.USAGE, "INVALID_ARGUMENT", "USAGE", command=command)


def _is_own(error: Any) -> bool:
    """Report whether a command, not the parser, has written the text."""
    return isinstance(error, typer.BadParameter) and error.param is None
