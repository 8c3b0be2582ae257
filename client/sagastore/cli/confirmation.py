"""Confirmation of commands that cannot be undone.

The questions are asked without a running event loop, so that Ctrl+C interrupts them.
"""

from __future__ import annotations

import sys

import typer

from sagastore.cli.failures import CommandError
from sagastore.commandline.sanitize import unbroken

__all__ = ["ask", "has_terminal", "require"]


def has_terminal() -> bool:
    """Report whether a person can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def require(sure: bool, action: str) -> None:
    """Require that the user can be asked, or has answered with `--yes`.

    Raises:
        typer.BadParameter: There is no terminal.
    """
    if not sure and not has_terminal():
        raise typer.BadParameter(f"{action} requires --yes where there is no terminal to ask")


def ask(question: str) -> None:
    """Ask for confirmation on the terminal.

    Raises:
        CommandError: The user did not confirm.
    """
    sys.stderr.write(f"{unbroken(question)} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise CommandError("not confirmed; nothing has changed")
